"""Adam and AdamW for a whole model: dense parameters by torch's optimisers, row-sparse tables by a `TableOptimizer`."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.optim import Optimizer

from seqrec.errors import InputError
from seqrec.training.optim.combined import build_optimizer, uses_fused
from seqrec.training.optim.optimizer_factory import (
    OptimizerFactory,
    TableOptimizer,
    check_betas,
    check_positive,
)
from seqrec.training.optim.schedules import Schedule

# Name suffixes of two-dimensional parameters that get no weight decay.
UNDECAYED = ("A_log", "positions.weight")


class Adam(OptimizerFactory):
    """Adam (Kingma & Ba 2015) for dense parameters, and `table` for tables with row-sparse gradients.

    Args:
        lr: Step size.
        betas: Decay of the running mean and of the running square; SASRec's (0.9, 0.98) is the default.
        table: Optimiser of tables with row-sparse gradients; None is `LazyAdam` with this step size and these betas.
        schedule: How all step sizes change during training; None leaves them constant.
        fused: Whether one kernel updates all dense parameters, which takes a third of the time on CPU. None uses the
            kernel if torch has one for the parameters' device.

    Raises:
        InputError: if a value is out of range.

    Example:
        >>> from torch import nn
        >>> from seqrec import Adam
        >>> type(Adam(lr=1e-3).build(nn.Linear(2, 2))).__name__
        'Adam'
        >>> type(Adam().build(nn.Embedding(10, 2, sparse=True))).__name__
        'LazyAdamOptimizer'
    """

    def __init__(
        self,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.98),
        table: TableOptimizer | None = None,
        schedule: Schedule | None = None,
        fused: bool | None = None,
    ) -> None:
        check_positive(lr=lr)
        check_betas(betas)
        self.lr = lr
        self.betas = betas
        self.table = table
        self.schedule = schedule
        self.fused = fused

    def build(self, model: nn.Module) -> Optimizer:
        """Return the optimiser; refuse `table` without such a table in the model, and `fused` without a kernel."""
        return build_optimizer(model, partial(self._dense, model), self.table, lr=self.lr, betas=self.betas)

    def _dense(self, model: nn.Module, named: list[tuple[str, nn.Parameter]]) -> Optimizer:
        """Return the optimiser of the model's named dense parameters."""
        parameters = [parameter for _, parameter in named]
        fused = uses_fused(parameters, self.fused)
        return torch.optim.Adam(parameters, lr=self.lr, betas=self.betas, fused=fused)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), and `table` for row-sparse tables.

    Matrices decay. Vectors (biases, norms), tables of items, users and positions, and the state matrices A of Mamba
    do not.

    Args:
        lr: Step size.
        betas: Decay of the running mean and of the running square.
        weight_decay: Share of a weight that is subtracted at each step, times `lr`.
        table: See `Adam`.
        schedule: See `Adam`.
        fused: See `Adam`.

    Raises:
        InputError: if a value is out of range.

    Example:
        >>> from torch import nn
        >>> from seqrec import AdamW
        >>> optimizer = AdamW(weight_decay=0.1).build(nn.Linear(2, 2))
        >>> [group["weight_decay"] for group in optimizer.param_groups]
        [0.1, 0.0]
    """

    def __init__(
        self,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.01,
        table: TableOptimizer | None = None,
        schedule: Schedule | None = None,
        fused: bool | None = None,
    ) -> None:
        super().__init__(lr, betas=betas, table=table, schedule=schedule, fused=fused)
        if weight_decay < 0:
            raise InputError(f"weight_decay={weight_decay} must be at least 0")
        self.weight_decay = weight_decay

    def _dense(self, model: nn.Module, named: list[tuple[str, nn.Parameter]]) -> Optimizer:
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        decayed: list[nn.Parameter] = []
        kept: list[nn.Parameter] = []
        for name, parameter in named:
            is_matrix = parameter.ndim >= 2 and id(parameter) not in tables and not name.endswith(UNDECAYED)
            (decayed if is_matrix else kept).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": kept, "weight_decay": 0.0},
        ]
        fused = uses_fused([*decayed, *kept], self.fused)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, fused=fused)
