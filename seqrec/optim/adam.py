"""Adam and AdamW."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from seqrec.errors import InputError
from seqrec.optim.base import OptimizerFactory

# Ends of the names of parameters that have two dimensions and are not matrices that multiply an input.
UNDECAYED = ("A_log", "positions.weight")


def _check(lr: float, betas: tuple[float, float]) -> None:
    if lr <= 0:
        raise InputError(f"lr={lr} must be above 0")
    if not all(0 <= beta < 1 for beta in betas):
        raise InputError(f"betas={betas} must be at least 0 and below 1")


class Adam(OptimizerFactory):
    """Adam (Kingma & Ba 2015) over all parameters, dense.

    Args:
        lr: Step size.
        betas: Decay of the running mean and of the running square; SASRec's (0.9, 0.98) is the default.

    Raises:
        InputError: a value out of range.
    """

    def __init__(self, lr: float = 1e-3, *, betas: tuple[float, float] = (0.9, 0.98)) -> None:
        _check(lr, betas)
        self.lr = lr
        self.betas = betas

    def build(self, model: nn.Module) -> Optimizer:
        """See `OptimizerFactory.build`."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.Adam(parameters, lr=self.lr, betas=self.betas)


class AdamW(OptimizerFactory):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), dense.

    Matrices decay; vectors (biases, norms), tables of items, users and positions, and the state matrices A of
    Mamba do not.

    Args:
        lr: Step size.
        betas: Decay of the running mean and of the running square.
        weight_decay: Share of a weight that is taken away at each step, times `lr`.

    Raises:
        InputError: a value out of range.
    """

    def __init__(
        self, lr: float = 1e-3, *, betas: tuple[float, float] = (0.9, 0.98), weight_decay: float = 0.01
    ) -> None:
        _check(lr, betas)
        if weight_decay < 0:
            raise InputError(f"weight_decay={weight_decay} must be at least 0")
        self.lr = lr
        self.betas = betas
        self.weight_decay = weight_decay

    def build(self, model: nn.Module) -> Optimizer:
        """See `OptimizerFactory.build`."""
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        decayed: list[nn.Parameter] = []
        kept: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            is_matrix = parameter.ndim >= 2 and id(parameter) not in tables and not name.endswith(UNDECAYED)
            (decayed if is_matrix else kept).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": kept, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas)
