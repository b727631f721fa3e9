"""Models: presets with one encoder and plain arguments, the general recommender, baselines."""

from seqrec.models.baselines import (
    Baseline,
    ItemKNN,
    Markov,
    Popularity,
    RecentItems,
    RecentPopularity,
    TrainingEvents,
)
from seqrec.models.column_heads import ColumnHead
from seqrec.models.explain import Explanation
from seqrec.models.judging import evaluate
from seqrec.models.masked_items import MaskedItems
from seqrec.models.presets import HRNN, HSTU, BERT4Rec, GRU4Rec, MambaRec, MoEMaTrRec, RecMamba, Samba, SASRec, SSD4Rec
from seqrec.models.recipes import recipe
from seqrec.models.recommender import Recommender
from seqrec.models.sequential import SequentialRecommender
from seqrec.models.warm_start import WarmStart

__all__ = [
    "BERT4Rec",
    "Baseline",
    "ColumnHead",
    "Explanation",
    "GRU4Rec",
    "HRNN",
    "HSTU",
    "ItemKNN",
    "MambaRec",
    "Markov",
    "MaskedItems",
    "MoEMaTrRec",
    "Popularity",
    "RecMamba",
    "RecentItems",
    "RecentPopularity",
    "Recommender",
    "SASRec",
    "SSD4Rec",
    "Samba",
    "SequentialRecommender",
    "TrainingEvents",
    "WarmStart",
    "evaluate",
    "recipe",
]
