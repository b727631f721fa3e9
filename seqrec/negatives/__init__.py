"""Samplers of negatives with their log-probabilities, on the device and without loops."""

from seqrec.negatives.alias import AliasTable, alias_table
from seqrec.negatives.base import Negatives, NegativeSampler
from seqrec.negatives.in_batch import InBatchNegatives
from seqrec.negatives.mixed import MixedNegatives
from seqrec.negatives.popularity import PopularityNegatives
from seqrec.negatives.uniform import UniformNegatives
from seqrec.negatives.unseen import draw_unseen

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
