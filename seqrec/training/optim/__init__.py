"""Optimisers: settings, from which a model's optimiser is built, and optimisers for row-sparse tables."""

from seqrec.aliases import old_names
from seqrec.training.optim.adam import Adam, AdamW
from seqrec.training.optim.clipping import clip_gradients
from seqrec.training.optim.combined import CombinedOptimizer, describe_optimizer, sparse_tables
from seqrec.training.optim.lazy_adam import LazyAdam, LazyAdamOptimizer
from seqrec.training.optim.optimizer_factory import OptimizerFactory, TableOptimizer
from seqrec.training.optim.row_optimizer import RowOptimizer
from seqrec.training.optim.rowwise_adagrad import RowwiseAdagrad, RowwiseAdagradOptimizer
from seqrec.training.optim.schedules import InverseSquareRoot, LinearWarmup, Schedule, WarmupCosine

__all__ = [
    "Adam",
    "AdamW",
    "CombinedOptimizer",
    "InverseSquareRoot",
    "LazyAdam",
    "LazyAdamOptimizer",
    "LinearWarmup",
    "OptimizerFactory",
    "RowOptimizer",
    "RowwiseAdagrad",
    "RowwiseAdagradOptimizer",
    "Schedule",
    "TableOptimizer",
    "WarmupCosine",
    "clip_gradients",
    "describe_optimizer",
    "sparse_tables",
]

__getattr__ = old_names(__name__)
