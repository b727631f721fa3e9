"""Settings of the optimisers of tables with row-sparse gradients."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from seqrec.errors import InputError
from seqrec.training.optim.base import TableOptimizer
from seqrec.training.optim.checks import check_betas, check_eps, check_lr
from seqrec.training.optim.row_adagrad import RowwiseAdagradOptimizer
from seqrec.training.optim.row_adam import LazyAdamOptimizer


class LazyAdam(TableOptimizer):
    """Adam that moves only the rows of the batch; `LazyAdamOptimizer` says how it differs from dense Adam.

    Args:
        lr: Step size; None is the dense part's.
        betas: Decay of the running mean and of the running square; None is the dense part's.
        eps: Added to the root of the running square.
        stochastic_rounding: Whether bfloat16 tables round at random, so that small updates are not lost.

    Raises:
        InputError: a value out of range.
    """

    def __init__(
        self,
        lr: float | None = None,
        *,
        betas: tuple[float, float] | None = None,
        eps: float = 1e-8,
        stochastic_rounding: bool = True,
    ) -> None:
        if lr is not None:
            check_lr(lr)
        if betas is not None:
            check_betas(betas)
        check_eps(eps)
        self.lr = lr
        self.betas = betas
        self.eps = eps
        self.stochastic_rounding = stochastic_rounding

    def build(
        self, tables: Sequence[nn.Parameter], *, lr: float, betas: tuple[float, float]
    ) -> LazyAdamOptimizer:
        """See `TableOptimizer.build`."""
        return LazyAdamOptimizer(
            tables,
            lr=lr if self.lr is None else self.lr,
            betas=betas if self.betas is None else self.betas,
            eps=self.eps,
            stochastic_rounding=self.stochastic_rounding,
        )


class RowwiseAdagrad(TableOptimizer):
    """Adagrad with 4 bytes of state a row; `RowwiseAdagradOptimizer` has the formula.

    Args:
        lr: Step size, which is not the dense part's. A row's first update has this root mean square, its n-th about
            1 / sqrt(n) of it, so it must be far above Adam's: of 0.005, 0.02, 0.05 and 0.1, the last two were best
            on MovieLens-1M (SASRec, `SampledSoftmax`, 4 epochs), 0.05 with the lower training loss.
        eps: Added to the root of the sum of squares.
        initial_accumulator: What sums of squares start from; above 0 it shortens the first steps.
        stochastic_rounding: Whether bfloat16 tables round at random, so that small updates are not lost.

    Raises:
        InputError: a value out of range.
    """

    def __init__(
        self,
        lr: float = 0.05,
        *,
        eps: float = 1e-8,
        initial_accumulator: float = 0.0,
        stochastic_rounding: bool = True,
    ) -> None:
        check_lr(lr)
        check_eps(eps)
        if initial_accumulator < 0:
            raise InputError(f"initial_accumulator={initial_accumulator} must be at least 0")
        self.lr = lr
        self.eps = eps
        self.initial_accumulator = initial_accumulator
        self.stochastic_rounding = stochastic_rounding

    def build(
        self, tables: Sequence[nn.Parameter], *, lr: float, betas: tuple[float, float]
    ) -> RowwiseAdagradOptimizer:
        """See `TableOptimizer.build`; takes nothing from the dense part."""
        return RowwiseAdagradOptimizer(
            tables,
            lr=self.lr,
            eps=self.eps,
            initial_accumulator=self.initial_accumulator,
            stochastic_rounding=self.stochastic_rounding,
        )
