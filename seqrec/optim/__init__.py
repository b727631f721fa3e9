"""Optimisers as plain settings, built when the parameters exist, and the optimisers of row-sparse tables."""

from seqrec.optim.adam import Adam, AdamW
from seqrec.optim.base import OptimizerFactory, TableOptimizer
from seqrec.optim.clipping import clip_gradients
from seqrec.optim.combined import CombinedOptimizer, in_words
from seqrec.optim.parts import sparse_tables
from seqrec.optim.row_adagrad import RowAdagrad
from seqrec.optim.row_adam import RowAdam
from seqrec.optim.row_optimizer import RowOptimizer
from seqrec.optim.schedules import InverseSquareRoot, LinearWarmup, Schedule, WarmupCosine
from seqrec.optim.tables import LazyAdam, RowwiseAdagrad

__all__ = [
    "Adam",
    "AdamW",
    "CombinedOptimizer",
    "InverseSquareRoot",
    "LazyAdam",
    "LinearWarmup",
    "OptimizerFactory",
    "RowAdagrad",
    "RowAdam",
    "RowOptimizer",
    "RowwiseAdagrad",
    "Schedule",
    "TableOptimizer",
    "WarmupCosine",
    "clip_gradients",
    "in_words",
    "sparse_tables",
]
