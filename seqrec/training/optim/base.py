"""The contracts of optimiser settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from seqrec.training.optim.row_optimizer import RowOptimizer
from seqrec.training.optim.schedules import Schedule


class OptimizerFactory(ABC):
    """Settings from which a model's optimiser is built; kept as attributes, so that checkpoints can hold them.

    Attributes:
        schedule: How step sizes change in training; None leaves them constant.
    """

    schedule: Schedule | None = None

    @abstractmethod
    def build(self, model: nn.Module) -> Optimizer:
        """One optimiser of all parameters of `model` that want a gradient."""


class TableOptimizer(ABC):
    """Settings of the optimiser of tables with row-sparse gradients; kept as attributes, for the same reason."""

    @abstractmethod
    def build(self, tables: Sequence[nn.Parameter], *, lr: float, betas: tuple[float, float]) -> RowOptimizer:
        """Optimiser of tables.

        Args:
            tables: (V, D) each, whose gradients are sparse tensors of rows.
            lr: Step size of the dense part, for settings that leave theirs out.
            betas: Decays of the dense part's running means, likewise.
        """
