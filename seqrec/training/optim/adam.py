"""Adam and AdamW for a whole model: dense parameters by torch's optimisers, row-sparse tables by a `TableOptimizer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from seqrec.errors import InputError, check_at_least
from seqrec.training.optim.combined import CombinedOptimizer, sparse_tables
from seqrec.training.optim.lazy_adam import LazyAdam
from seqrec.training.optim.optimizer_factory import OptimizerFactory, TableOptimizer, check_betas, check_positive
from seqrec.training.optim.schedules import Schedule

# Devices on which torch's fused Adam was measured or is recommended by torch.
FUSED_DEVICES = ("cpu", "cuda")
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
        """Return one optimiser of all parameters of `model` that require a gradient.

        Raises:
            InputError: if `table` is given and the model has no such table, or `fused` is True without a kernel.
        """
        tables = sparse_tables(model)
        if self.table is not None and not tables:
            raise InputError(
                f"optimizer.table={type(self.table).__name__} is for tables with row-sparse gradients, and this model "
                "has none: set item_table.sparse: true, or leave optimizer.table out"
            )
        sparse_ids = {id(weight) for weight in tables}
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and id(p) not in sparse_ids]
        fused = self._uses_fused([parameter for _, parameter in named])
        parts = [self._dense(model, named, fused)] if named or not tables else []
        # A fused optimiser offers to unscale fp16 gradients itself, and Lightning then refuses to clip them. Without
        # the offer the scaler unscales before the step, and clipping comes in between.
        if parts and getattr(parts[0], "_step_supports_amp_scaling", False):
            parts[0]._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        if tables:
            parts.append((self.table or LazyAdam()).build(tables, lr=self.lr, betas=self.betas))
        return parts[0] if len(parts) == 1 else CombinedOptimizer(parts)

    def _dense(self, model: nn.Module, named: list[tuple[str, nn.Parameter]], fused: bool | None) -> Optimizer:
        """Return the optimiser of the model's named dense parameters."""
        parameters = [parameter for _, parameter in named]
        return torch.optim.Adam(parameters, lr=self.lr, betas=self.betas, fused=fused)

    def _uses_fused(self, parameters: Sequence[Tensor]) -> Literal[True] | None:
        """Return torch's `fused` argument: True for the fused kernel, None to let torch choose among the others."""
        devices = sorted({parameter.device.type for parameter in parameters})
        is_float = all(parameter.is_floating_point() for parameter in parameters)
        has_kernel = is_float and all(device in FUSED_DEVICES for device in devices)
        if self.fused and not has_kernel:
            raise InputError(
                f"fused=True needs floating-point parameters on {' or '.join(FUSED_DEVICES)}, these are on "
                f"{', '.join(devices)}: leave fused out"
            )
        # With False torch would not use its multi-tensor kernels either.
        return True if has_kernel and self.fused is not False else None


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
        check_at_least(0, weight_decay=weight_decay)
        self.weight_decay = weight_decay

    def _dense(self, model: nn.Module, named: list[tuple[str, nn.Parameter]], fused: bool | None) -> Optimizer:
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        decayed: list[nn.Parameter] = []
        kept: list[nn.Parameter] = []
        for name, parameter in named:
            is_matrix = parameter.ndim >= 2 and id(parameter) not in tables and not name.endswith(UNDECAYED)
            (decayed if is_matrix else kept).append(parameter)
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": kept, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, fused=fused)
