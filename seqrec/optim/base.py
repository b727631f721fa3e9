"""The contract of optimiser settings."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn
from torch.optim import Optimizer


class OptimizerFactory(ABC):
    """Settings from which a model's optimiser is built; kept as attributes, so that checkpoints can hold them."""

    @abstractmethod
    def build(self, model: nn.Module) -> Optimizer:
        """Optimiser of all parameters of `model` that want a gradient."""
