"""Base classes of optimiser settings, and checks of the numbers that they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from seqrec.errors import InputError
from seqrec.training.optim.row_optimizer import RowOptimizer
from seqrec.training.optim.schedules import Schedule


class OptimizerFactory(ABC):
    """Settings from which a model's optimiser is built, kept as attributes because checkpoints store them.

    Attributes:
        schedule: How step sizes change during training; None leaves them constant.
    """

    schedule: Schedule | None = None

    @abstractmethod
    def build(self, model: nn.Module) -> Optimizer:
        """Return one optimiser of all parameters of `model` that require a gradient."""


class TableOptimizer(ABC):
    """Settings of the optimiser for tables with row-sparse gradients, kept as attributes for the same reason."""

    @abstractmethod
    def build(self, tables: Sequence[nn.Parameter], *, lr: float, betas: tuple[float, float]) -> RowOptimizer:
        """Return an optimiser of the tables.

        Args:
            tables: (V, D) each, with gradients that are sparse tensors of rows.
            lr: Step size of the dense part, used if these settings have none.
            betas: Decays of the dense part's running means, used if these settings have none.
        """


def check_positive(**values: float) -> None:
    """Refuse step sizes and `eps` that are 0, negative or NaN; with `eps=0`, rows without a history divide by 0."""
    for name, value in values.items():
        if not value > 0:
            raise InputError(f"{name}={value} must be above 0")


def check_betas(betas: tuple[float, float]) -> None:
    """Refuse decays outside [0, 1)."""
    if not all(0 <= beta < 1 for beta in betas):
        raise InputError(f"betas={betas} must be at least 0 and below 1")
