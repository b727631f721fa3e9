"""Lazy Adam: Adam that updates only the rows of a table that have a gradient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seqrec.training.optim.optimizer_factory import TableOptimizer, check_betas, check_positive
from seqrec.training.optim.row_optimizer import RowOptimizer


class LazyAdam(TableOptimizer):
    """Adam that moves only the rows of the batch; see `LazyAdamOptimizer` for the differences from dense Adam.

    Args:
        lr: Step size; None is the dense part's.
        betas: Decay of the running mean and of the running square; None is the dense part's.
        eps: Added to the root of the running square.
        stochastic_rounding: Whether bfloat16 tables round at random, which keeps small updates.

    Raises:
        InputError: if a value is out of range.

    Example:
        >>> from torch import nn
        >>> from seqrec import Adam, LazyAdam
        >>> optimizer = Adam(lr=1e-3, table=LazyAdam(lr=1e-2)).build(nn.Embedding(10, 2, sparse=True))
        >>> optimizer.param_groups[0]["lr"]
        0.01
    """

    def __init__(
        self,
        lr: float | None = None,
        *,
        betas: tuple[float, float] | None = None,
        eps: float = 1e-8,
        stochastic_rounding: bool = True,
    ) -> None:
        check_positive(lr=1.0 if lr is None else lr, eps=eps)
        check_betas(betas or (0.0, 0.0))
        self.lr = lr
        self.betas = betas
        self.eps = eps
        self.stochastic_rounding = stochastic_rounding

    def build(self, tables: Sequence[nn.Parameter], *, lr: float, betas: tuple[float, float]) -> LazyAdamOptimizer:
        """Return an optimiser of the tables; see `TableOptimizer.build`."""
        return LazyAdamOptimizer(
            tables,
            lr=lr if self.lr is None else self.lr,
            betas=betas if self.betas is None else self.betas,
            eps=self.eps,
            stochastic_rounding=self.stochastic_rounding,
        )


class LazyAdamOptimizer(RowOptimizer):
    """Lazy Adam, with the semantics of `torch.optim.SparseAdam`.

    This is Adam (Kingma & Ba 2015, algorithm 1) for rows that have a gradient. Other rows do not move, and their
    moments do not decay; dense Adam would keep moving them by their old mean. Bias is corrected by the table's number
    of steps, not by the row's. Gradients may list rows in any order and repeatedly; they are summed first.
    See `LazyAdam` and `RowOptimizer` for the arguments.
    """

    state_names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        tables: Iterable[Tensor],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float = 1e-8,
        stochastic_rounding: bool = True,
        seed: int = 0,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps}
        super().__init__(tables, options, stochastic_rounding=stochastic_rounding, seed=seed)

    def _new_state(self, table: Tensor, dtype: torch.dtype, group: dict[str, Any]) -> dict[str, Tensor]:
        return {name: torch.zeros_like(table, dtype=dtype) for name in self.state_names}

    def _changes(self, row_ids: Tensor, gradients: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        beta1, beta2 = group["betas"]
        mean = _decay_towards(state["exp_avg"], row_ids, gradients, beta1)
        square = _decay_towards(state["exp_avg_sq"], row_ids, gradients.square(), beta2)
        step = state["step"]
        step_size = float(group["lr"]) * (1 - beta2**step) ** 0.5 / (1 - beta1**step)
        return mean.div_(square.sqrt_().add_(group["eps"])).mul_(-step_size)


def _decay_towards(averages: Tensor, row_ids: Tensor, values: Tensor, beta: float) -> Tensor:
    """Decay rows of `averages` (V, D) towards `values` (U, D), in place. Returns the new rows (U, D)."""
    decay = _decay_by_adding if averages.device.type == "cpu" else _decay_by_writing
    return decay(averages, row_ids, values, beta)


def _decay_by_adding(averages: Tensor, row_ids: Tensor, values: Tensor, beta: float) -> Tensor:
    """Decay on a CPU, on which adding to rows takes half the time of writing them."""
    rows = averages.index_select(0, row_ids)
    change = (values - rows).mul_(1 - beta)
    averages.index_add_(0, row_ids, change)
    return rows.add_(change)


def _decay_by_writing(averages: Tensor, row_ids: Tensor, values: Tensor, beta: float) -> Tensor:
    """Decay in three operations, for devices on which launching operations takes most of a step's time."""
    rows = averages.index_select(0, row_ids).lerp_(values, 1 - beta)
    averages.index_copy_(0, row_ids, rows)
    return rows
