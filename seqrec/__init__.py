"""Train, compare and serve sequential recommenders on long histories.

`__all__` is the public API. Each name is loaded when it is first used; `import seqrec` itself loads nothing.

Example:
    >>> import seqrec
    >>> seqrec.MambaRec(num_items=100, d_model=16, max_length=50).title
    'MambaRec'
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

from seqrec import aliases
from seqrec.aliases import __version__ as __version__

# For editors and type checkers; `_MODULES` is the same table at run time, and a test compares the two.
if TYPE_CHECKING:
    from seqrec.catalogue.candidates import Candidates
    from seqrec.catalogue.search import ExactSearch, FaissSearch
    from seqrec.catalogue.table import ItemTable
    from seqrec.data.cold_items import ColdItems
    from seqrec.data.datamodule import SequenceDataModule
    from seqrec.data.event_columns import EventColumn
    from seqrec.data.prepare import Filters, prepare
    from seqrec.data.schema import Schema
    from seqrec.data.sources import ML1M, KuaiRand, LFM1b, PublicLog, Sequences, Source, Synthetic, Table
    from seqrec.data.splits import GlobalTime, LastN, LeaveOneOut, Split
    from seqrec.data.store import EventStore
    from seqrec.data.windows import NewestWindow, RandomCrop, StridedWindows, TrainWindows
    from seqrec.encoders import SequenceEncoder
    from seqrec.encoders.contract import check_encoder
    from seqrec.encoders.event_time import EventTime
    from seqrec.errors import InputError
    from seqrec.evaluation.exposures import ExposureReport
    from seqrec.evaluation.list_report import ListReport
    from seqrec.evaluation.protocols import (
        FullRanking,
        PopularityCandidates,
        Protocol,
        SampledRanking,
        UniformCandidates,
        WholeCatalogue,
    )
    from seqrec.evaluation.results import Comparison, compare, read_results
    from seqrec.inference import load
    from seqrec.inference.export import export
    from seqrec.inference.sessions import Event, InMemoryStore, RedisStore, SessionRecommender, SQLiteStore
    from seqrec.models import (
        HRNN,
        HSTU,
        Baseline,
        BERT4Rec,
        ColumnHead,
        Explanation,
        GRU4Rec,
        ItemKNN,
        MambaRec,
        Markov,
        MoEMaTrRec,
        Popularity,
        RecentItems,
        RecentPopularity,
        RecMamba,
        Recommender,
        Samba,
        SASRec,
        SequentialRecommender,
        SSD4Rec,
        TrainingEvents,
        evaluate,
        recipe,
    )
    from seqrec.models.baselines.comparison import BaselineComparison
    from seqrec.runs import RunFolder
    from seqrec.runs.callbacks import BestCheckpoint, ResumableEarlyStopping, ResumePoints
    from seqrec.training.losses import BCE, GBCE, FullSoftmax, InBatchSoftmax, Loss, NextTargets, SampledSoftmax
    from seqrec.training.negatives import (
        InBatchNegatives,
        MixedNegatives,
        NegativeSampler,
        PopularityNegatives,
        UniformNegatives,
    )
    from seqrec.training.optim import (
        Adam,
        AdamW,
        InverseSquareRoot,
        LazyAdam,
        LinearWarmup,
        RowwiseAdagrad,
        WarmupCosine,
    )
    from seqrec.types import History, Recommendations, SequenceBatch

# Module -> the public names that it offers.
_MODULES = {
    "seqrec.catalogue.candidates": "Candidates",
    "seqrec.catalogue.search": "ExactSearch FaissSearch",
    "seqrec.catalogue.table": "ItemTable",
    "seqrec.data.cold_items": "ColdItems",
    "seqrec.data.datamodule": "SequenceDataModule",
    "seqrec.data.event_columns": "EventColumn",
    "seqrec.data.prepare": "Filters prepare",
    "seqrec.data.schema": "Schema",
    "seqrec.data.sources": "KuaiRand LFM1b ML1M PublicLog Sequences Source Synthetic Table",
    "seqrec.data.splits": "GlobalTime LastN LeaveOneOut Split",
    "seqrec.data.store": "EventStore",
    "seqrec.data.windows": "NewestWindow RandomCrop StridedWindows TrainWindows",
    "seqrec.encoders": "SequenceEncoder",
    "seqrec.encoders.contract": "check_encoder",
    "seqrec.encoders.event_time": "EventTime",
    "seqrec.errors": "InputError",
    "seqrec.evaluation.protocols": (
        "FullRanking PopularityCandidates Protocol SampledRanking UniformCandidates WholeCatalogue"
    ),
    "seqrec.evaluation.exposures": "ExposureReport",
    "seqrec.evaluation.list_report": "ListReport",
    "seqrec.evaluation.results": "Comparison compare read_results",
    "seqrec.inference": "load",
    "seqrec.inference.export": "export",
    "seqrec.inference.sessions": "Event InMemoryStore RedisStore SQLiteStore SessionRecommender",
    "seqrec.models": (
        "BERT4Rec Baseline ColumnHead Explanation GRU4Rec HRNN HSTU ItemKNN MambaRec Markov MoEMaTrRec "
        "Popularity RecMamba RecentItems RecentPopularity Recommender SASRec SSD4Rec Samba SequentialRecommender "
        "TrainingEvents evaluate recipe"
    ),
    "seqrec.models.baselines.comparison": "BaselineComparison",
    "seqrec.runs": "RunFolder",
    "seqrec.runs.callbacks": "BestCheckpoint ResumableEarlyStopping ResumePoints",
    "seqrec.training.losses": "BCE GBCE FullSoftmax InBatchSoftmax Loss NextTargets SampledSoftmax",
    "seqrec.training.negatives": (
        "InBatchNegatives MixedNegatives NegativeSampler PopularityNegatives UniformNegatives"
    ),
    "seqrec.training.optim": "Adam AdamW InverseSquareRoot LazyAdam LinearWarmup RowwiseAdagrad WarmupCosine",
    "seqrec.types": "History Recommendations SequenceBatch",
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = [
    "Adam",
    "AdamW",
    "BCE",
    "BERT4Rec",
    "Baseline",
    "BaselineComparison",
    "BestCheckpoint",
    "Candidates",
    "ColdItems",
    "ColumnHead",
    "Comparison",
    "ResumableEarlyStopping",
    "Event",
    "EventColumn",
    "EventStore",
    "EventTime",
    "ExactSearch",
    "Explanation",
    "ExposureReport",
    "FaissSearch",
    "Filters",
    "FullRanking",
    "FullSoftmax",
    "GBCE",
    "GRU4Rec",
    "HRNN",
    "HSTU",
    "GlobalTime",
    "History",
    "InBatchNegatives",
    "InBatchSoftmax",
    "InMemoryStore",
    "InputError",
    "InverseSquareRoot",
    "ItemKNN",
    "ItemTable",
    "KuaiRand",
    "LFM1b",
    "LastN",
    "LazyAdam",
    "LeaveOneOut",
    "LinearWarmup",
    "ListReport",
    "Loss",
    "ML1M",
    "MambaRec",
    "Markov",
    "MixedNegatives",
    "MoEMaTrRec",
    "NegativeSampler",
    "NewestWindow",
    "NextTargets",
    "Popularity",
    "PopularityCandidates",
    "PopularityNegatives",
    "Protocol",
    "PublicLog",
    "RandomCrop",
    "RecMamba",
    "RecentItems",
    "RecentPopularity",
    "Recommendations",
    "Recommender",
    "RedisStore",
    "ResumePoints",
    "RowwiseAdagrad",
    "RunFolder",
    "SASRec",
    "SSD4Rec",
    "Samba",
    "SQLiteStore",
    "SampledRanking",
    "SampledSoftmax",
    "Schema",
    "SequenceBatch",
    "SequenceDataModule",
    "SequenceEncoder",
    "Sequences",
    "SequentialRecommender",
    "SessionRecommender",
    "Source",
    "Split",
    "StridedWindows",
    "Synthetic",
    "Table",
    "TrainWindows",
    "TrainingEvents",
    "UniformCandidates",
    "UniformNegatives",
    "WarmupCosine",
    "WholeCatalogue",
    "check_encoder",
    "compare",
    "evaluate",
    "export",
    "load",
    "prepare",
    "read_results",
    "recipe",
]

aliases.install()


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562)."""
    if name in aliases.NAMES["seqrec"]:
        return aliases.old_names("seqrec")(name)
    if name not in _PLACES:
        raise AttributeError(f"module 'seqrec' has no attribute {name!r}{_hint(name)}")
    value = globals()[name] = getattr(importlib.import_module(_PLACES[name]), name)
    return value


# The command line looks for the same names again and again.
@functools.cache
def _hint(name: str) -> str:
    """Return how to go on where a name is not public."""
    from seqrec.registry import did_you_mean

    return did_you_mean(name, __all__) or "; `seqrec.__all__` lists the public names"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
