"""Row-wise Adagrad: Adagrad with one number of state a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seqrec.errors import check_at_least
from seqrec.training.optim.optimizer_factory import TableOptimizer, check_positive
from seqrec.training.optim.row_optimizer import RowOptimizer


class RowwiseAdagrad(TableOptimizer):
    """Adagrad with 4 bytes of state a row; see `RowwiseAdagradOptimizer` for the formula.

    Args:
        lr: Step size, independent of the dense part's. A row's first update has this root mean square, its n-th about
            1 / sqrt(n) of it, so it must be far above Adam's: of 0.005, 0.02, 0.05 and 0.1, the last two were best
            on MovieLens-1M (SASRec, `SampledSoftmax`, 4 epochs), 0.05 with the lower training loss.
        eps: Added to the root of the sum of squares.
        initial_accumulator: Start value of the sums of squares; above 0 it shortens the first steps.
        stochastic_rounding: Whether bfloat16 tables round at random, which keeps small updates.

    Raises:
        InputError: if a value is out of range.

    Example:
        >>> from torch import nn
        >>> from seqrec import Adam, RowwiseAdagrad
        >>> type(Adam(table=RowwiseAdagrad()).build(nn.Embedding(10, 2, sparse=True))).__name__
        'RowwiseAdagradOptimizer'
    """

    def __init__(
        self, lr: float = 0.05, *, eps: float = 1e-8, initial_accumulator: float = 0.0, stochastic_rounding: bool = True
    ) -> None:
        check_positive(lr=lr, eps=eps)
        check_at_least(0, initial_accumulator=initial_accumulator)
        self.lr = lr
        self.eps = eps
        self.initial_accumulator = initial_accumulator
        self.stochastic_rounding = stochastic_rounding

    def build(
        self, tables: Sequence[nn.Parameter], *, lr: float, betas: tuple[float, float]
    ) -> RowwiseAdagradOptimizer:
        """Return an optimiser of the tables, which uses nothing of the dense part; see `TableOptimizer.build`."""
        return RowwiseAdagradOptimizer(
            tables,
            lr=self.lr,
            eps=self.eps,
            initial_accumulator=self.initial_accumulator,
            stochastic_rounding=self.stochastic_rounding,
        )


class RowwiseAdagradOptimizer(RowOptimizer):
    """Row-wise Adagrad: a row's step size falls with the squared gradients that the row has had.

    For row r with gradient g: `sum[r] += mean_d g[d]^2`, then `w[r] -= lr * g / (sqrt(sum[r]) + eps)`. This is
    Adagrad (Duchi et al. 2011) with its sums averaged over the row, as large recommenders train their tables
    (Mudigere et al. 2022, Software-Hardware Co-design for Fast and Scalable Training of Deep Learning
    Recommendation Models) and as FBGEMM's `EXACT_ROWWISE_ADAGRAD` and PyTorch-BigGraph compute it. State is 4 bytes
    a row; Adam's is 8 bytes a weight. See `RowwiseAdagrad` and `RowOptimizer` for the arguments.
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

    def _changes(self, row_ids: Tensor, gradients: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        sums = state["sum"].index_select(0, row_ids).add_(gradients.square().mean(1))
        state["sum"].index_copy_(0, row_ids, sums)
        step_sizes = sums.sqrt_().add_(group["eps"]).reciprocal_().mul_(-float(group["lr"]))
        changes: Tensor = gradients * step_sizes.unsqueeze(1)
        return changes
