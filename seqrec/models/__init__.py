"""Whole models: encoders with plain arguments, the general recommender, baselines."""

from seqrec.models.base import Recommender
from seqrec.models.evaluate import evaluate
from seqrec.models.popularity import Popularity
from seqrec.models.presets import GRU4Rec, MambaRec, MoEMaTrRec, RecMamba, SASRec
from seqrec.models.sequential import SequentialRecommender

__all__ = [
    "GRU4Rec",
    "MambaRec",
    "MoEMaTrRec",
    "Popularity",
    "RecMamba",
    "Recommender",
    "SASRec",
    "SequentialRecommender",
    "evaluate",
]
