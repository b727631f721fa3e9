"""Optimisers as plain settings, built when the parameters exist, and the optimisers of row-sparse tables."""

from seqrec.training.optim.adam import Adam, AdamW
from seqrec.training.optim.base import OptimizerFactory, TableOptimizer
from seqrec.training.optim.clipping import clip_gradients
from seqrec.training.optim.combined import CombinedOptimizer, in_words
from seqrec.training.optim.parts import sparse_tables
from seqrec.training.optim.row_adagrad import RowAdagrad
from seqrec.training.optim.row_adam import RowAdam
from seqrec.training.optim.row_optimizer import RowOptimizer
from seqrec.training.optim.schedules import InverseSquareRoot, LinearWarmup, Schedule, WarmupCosine
from seqrec.training.optim.tables import LazyAdam, RowwiseAdagrad

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
