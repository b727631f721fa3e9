"""Adagrad with one number of state a row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from seqrec.training.optim.row_optimizer import RowOptimizer


class RowwiseAdagradOptimizer(RowOptimizer):
    """Row-wise Adagrad: a row's step size falls with the squared gradients that the row has had.

    For row r with gradient g: `sum[r] += mean_d g[d]^2`, then `w[r] -= lr * g / (sqrt(sum[r]) + eps)`. This is
    Adagrad (Duchi et al. 2011) with its sums averaged over the row, as large recommenders train their tables
    (Mudigere et al. 2022, Software-Hardware Co-design for Fast and Scalable Training of Deep Learning
    Recommendation Models) and as FBGEMM's `EXACT_ROWWISE_ADAGRAD` and PyTorch-BigGraph compute it. State is 4 bytes
    a row, where Adam's is 8 bytes a weight.

    Args:
        tables: (V, D) parameters.
        lr: Step size.
        eps: Added to the root of the sum.
        initial_accumulator: What the sums start from.
        stochastic_rounding: See `RowOptimizer`.
        seed: See `RowOptimizer`.

    Raises:
        InputError: a table of a type that is not supported.
    """

    state_names = ("sum",)

    def __init__(
        self,
        tables: Iterable[Tensor],
        *,
        lr: float,
        eps: float = 1e-8,
        initial_accumulator: float = 0.0,
        stochastic_rounding: bool = True,
        seed: int = 0,
    ) -> None:
        options = {"lr": lr, "eps": eps, "initial_accumulator": initial_accumulator}
        super().__init__(tables, options, stochastic_rounding=stochastic_rounding, seed=seed)

    def _new_state(self, table: Tensor, dtype: torch.dtype, group: dict[str, Any]) -> dict[str, Tensor]:
        start = torch.full((len(table),), group["initial_accumulator"], dtype=dtype, device=table.device)
        return {"sum": start}

    def _changes(
        self, row_ids: Tensor, gradients: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> Tensor:
        sums = state["sum"].index_select(0, row_ids).add_(gradients.square().mean(1))
        state["sum"].index_copy_(0, row_ids, sums)
        step_sizes = sums.sqrt_().add_(group["eps"]).reciprocal_().mul_(-float(group["lr"]))
        changes: Tensor = gradients * step_sizes.unsqueeze(1)
        return changes
