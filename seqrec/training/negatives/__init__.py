"""Negative samplers, which return draws with their log-probabilities, on the device and without loops."""

from seqrec.training.negatives.alias import AliasTable, alias_table
from seqrec.training.negatives.mixed import MixedNegatives
from seqrec.training.negatives.negative_sampler import Negatives, NegativeSampler
from seqrec.training.negatives.popularity import InBatchNegatives, PopularityNegatives
from seqrec.training.negatives.uniform import UniformNegatives, draw_unseen

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
