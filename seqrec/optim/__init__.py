"""Optimisers as plain settings, built when the parameters exist."""

from seqrec.optim.adam import Adam, AdamW
from seqrec.optim.base import OptimizerFactory

__all__ = ["Adam", "AdamW", "OptimizerFactory"]
