"""Adam and AdamW."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from seqrec.errors import InputError
from seqrec.training.optim.base import OptimizerFactory, TableOptimizer
from seqrec.training.optim.checks import check_betas, check_lr
from seqrec.training.optim.parts import build_parts, uses_fused
from seqrec.training.optim.schedules import Schedule

# Ends of the names of parameters that have two dimensions and are not matrices that multiply an input.
UNDECAYED = ("A_log", "positions.weight")


class Adam(OptimizerFactory):
    """Adam (Kingma & Ba 2015) over dense parameters; tables with row-sparse gradients have `table`.

    Args:
        lr: Step size.
        betas: Decay of the running mean and of the running square; SASRec's (0.9, 0.98) is the default.
        table: Optimiser of tables with row-sparse gradients; None is `LazyAdam` with this step size and these betas.
        schedule: How all step sizes change in training; None leaves them constant.
        fused: Whether one kernel updates all dense parameters, which takes a third of the time on CPU. None: where
            torch has such a kernel for them.

    Raises:
        InputError: a value out of range.
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
        check_lr(lr)
        check_betas(betas)
        self.lr = lr
        self.betas = betas
        self.table = table
        self.schedule = schedule
        self.fused = fused

    def build(self, model: nn.Module) -> Optimizer:
        """See `OptimizerFactory.build`.

        Raises:
            InputError: `table` without a table for it, or `fused` where torch has no such kernel.
        """

        def dense(named: list[tuple[str, nn.Parameter]]) -> Optimizer:
            parameters = [parameter for _, parameter in named]
            fused = uses_fused(parameters, self.fused)
            return torch.optim.Adam(parameters, lr=self.lr, betas=self.betas, fused=fused)

        return build_parts(model, dense, self.table, lr=self.lr, betas=self.betas)


class AdamW(OptimizerFactory):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019) over dense parameters; others have `table`.

    Matrices decay; vectors (biases, norms), tables of items, users and positions, and the state matrices A of
    Mamba do not.

    Args:
        lr: Step size.
        betas: Decay of the running mean and of the running square.
        weight_decay: Share of a weight that is taken away at each step, times `lr`.
        table: See `Adam`.
        schedule: See `Adam`.
        fused: See `Adam`.

    Raises:
        InputError: a value out of range.
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
        check_lr(lr)
        check_betas(betas)
        if weight_decay < 0:
            raise InputError(f"weight_decay={weight_decay} must be at least 0")
        self.lr = lr
        self.betas = betas
        self.weight_decay = weight_decay
        self.table = table
        self.schedule = schedule
        self.fused = fused

    def build(self, model: nn.Module) -> Optimizer:
        """See `OptimizerFactory.build`.

        Raises:
            InputError: `table` without a table for it, or `fused` where torch has no such kernel.
        """
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}

        def dense(named: list[tuple[str, nn.Parameter]]) -> Optimizer:
            decayed: list[nn.Parameter] = []
            kept: list[nn.Parameter] = []
            for name, parameter in named:
                is_matrix = (
                    parameter.ndim >= 2 and id(parameter) not in tables and not name.endswith(UNDECAYED)
                )
                (decayed if is_matrix else kept).append(parameter)
            groups = [
                {"params": decayed, "weight_decay": self.weight_decay},
                {"params": kept, "weight_decay": 0.0},
            ]
            fused = uses_fused([*decayed, *kept], self.fused)
            return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, fused=fused)

        return build_parts(model, dense, self.table, lr=self.lr, betas=self.betas)
