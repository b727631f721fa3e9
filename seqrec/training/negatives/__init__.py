"""Samplers of negatives with their log-probabilities, on the device and without loops."""

from seqrec.training.negatives.alias import AliasTable, alias_table
from seqrec.training.negatives.base import Negatives, NegativeSampler
from seqrec.training.negatives.in_batch import InBatchNegatives
from seqrec.training.negatives.mixed import MixedNegatives
from seqrec.training.negatives.popularity import PopularityNegatives
from seqrec.training.negatives.uniform import UniformNegatives
from seqrec.training.negatives.unseen import draw_unseen

__all__ = [
    "AliasTable",
    "InBatchNegatives",
    "MixedNegatives",
    "NegativeSampler",
    "Negatives",
    "PopularityNegatives",
    "UniformNegatives",
    "alias_table",
    "draw_unseen",
]
