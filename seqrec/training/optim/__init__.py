"""Optimisers as plain settings, built when the parameters exist, and the optimisers of row-sparse tables."""

from seqrec.aliases import old_names
from seqrec.training.optim.adam import Adam, AdamW
from seqrec.training.optim.base import OptimizerFactory, TableOptimizer
from seqrec.training.optim.clipping import clip_gradients
from seqrec.training.optim.combined import CombinedOptimizer, describe_optimizer
from seqrec.training.optim.parts import sparse_tables
from seqrec.training.optim.row_adagrad import RowwiseAdagradOptimizer
from seqrec.training.optim.row_adam import LazyAdamOptimizer
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
    "RowwiseAdagradOptimizer",
    "LazyAdamOptimizer",
    "RowOptimizer",
    "RowwiseAdagrad",
    "Schedule",
    "TableOptimizer",
    "WarmupCosine",
    "clip_gradients",
    "describe_optimizer",
    "sparse_tables",
]

__getattr__ = old_names(__name__)
