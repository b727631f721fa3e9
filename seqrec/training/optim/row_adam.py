"""Adam over the rows that have a gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from seqrec.training.optim.row_optimizer import RowOptimizer


class LazyAdamOptimizer(RowOptimizer):
    """Lazy Adam, with the semantics of `torch.optim.SparseAdam`.

    It is Adam (Kingma & Ba 2015, algorithm 1) for rows that have a gradient. The moments of the others do not decay,
    and they do not move; dense Adam would go on moving them by their old mean. Bias is corrected by the table's
    number of steps, not by the row's. Gradients whose rows lie in any order, repeated or not, are summed first.

    Args:
        tables: (V, D) parameters.
        lr: Step size.
        betas: Decay of the running mean and of the running square.
        eps: Added to the root of the running square.
        stochastic_rounding: See `RowOptimizer`.
        seed: See `RowOptimizer`.

    Raises:
        InputError: a table of a type that is not supported.
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

    def _changes(
        self, row_ids: Tensor, gradients: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> Tensor:
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
    """`_decay_towards` for a CPU, where adding to rows takes half the time of writing them."""
    rows = averages.index_select(0, row_ids)
    change = (values - rows).mul_(1 - beta)
    averages.index_add_(0, row_ids, change)
    return rows.add_(change)


def _decay_by_writing(averages: Tensor, row_ids: Tensor, values: Tensor, beta: float) -> Tensor:
    """`_decay_towards` in three operations, where the time of a step is that of launching them."""
    rows = averages.index_select(0, row_ids).lerp_(values, 1 - beta)
    averages.index_copy_(0, row_ids, rows)
    return rows
