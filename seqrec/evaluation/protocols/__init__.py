"""Evaluation protocols: held-out targets, their candidates, the tie rule and the normaliser."""

from seqrec.evaluation.protocols.candidates import Candidates, TrainingCounts, WholeCatalogue
from seqrec.evaluation.protocols.presets import PRESETS
from seqrec.evaluation.protocols.protocol import FullRanking, Protocol, SampledRanking
from seqrec.evaluation.protocols.sampled_candidates import PopularityCandidates, SampledCandidates, UniformCandidates

__all__ = [
    "PRESETS",
    "Candidates",
    "FullRanking",
    "PopularityCandidates",
    "Protocol",
    "SampledCandidates",
    "SampledRanking",
    "TrainingCounts",
    "UniformCandidates",
    "WholeCatalogue",
]
