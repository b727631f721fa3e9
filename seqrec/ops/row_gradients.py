"""Gradients of tables as distinct rows. N rows of a gradient, U distinct ones, V rows of the table, D width."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def sum_rows(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the repeated rows of a sparse gradient.

    On CPU, `torch.unique` and `index_add_` take half the time of torch's own `coalesce`. On other devices `index_add_`
    would add in an order that changes from run to run, so `coalesce` is used.

    Args:
        gradient: (V, D) sparse COO tensor of N rows, in any order and possibly repeated.

    Returns:
        Distinct row numbers (U,) in ascending order and the sums (U, D), at least in float32. Both share memory with
        the gradient if nothing had to be summed or converted.
    """
    row_ids, values = gradient._indices()[0], gradient._values()
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    if gradient.is_coalesced():
        return row_ids, values
    if gradient.device.type == "cpu":
        distinct, places = torch.unique(row_ids, return_inverse=True)
        return distinct, values.new_zeros(len(distinct), values.shape[1]).index_add_(0, places, values)
    summed = gradient.to(values.dtype).coalesce()
    return summed.indices()[0], summed.values()


def sums_at_each_row(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Give each row of a sparse gradient the sum of all rows with its number.

    No size depends on numbers, so Python does not wait for a GPU, as it does in `sum_rows` for the number of distinct
    rows. A sum is the difference of two running sums in float64: its error is at most N / 2^53 of the absolute sum of
    its column. A row with a number that is not finite becomes NaN. torch lists `cumsum` on a GPU among operations whose
    last bit may change from run to run.

    Args:
        gradient: (V, D) sparse COO tensor of N rows, in any order and possibly repeated; float32 or narrower.

    Returns:
        Row numbers (N,), ascending and as often as in the gradient, and the sums (N, D) in float32. Repeated rows are
        equal to the bit.
    """
    row_ids, places = gradient._indices()[0].sort(stable=True)
    values = gradient._values().index_select(0, places)
    # Left out of the running sums, which they would spoil for all rows that follow.
    bad = ~values.isfinite().all(1)
    values.masked_fill_(bad.unsqueeze(1), 0)
    first, after = (torch.searchsorted(row_ids, row_ids, right=right) for right in (False, True))
    sums = _between(values.t().contiguous().cumsum(1, dtype=torch.float64), first, after).float()
    return row_ids, sums.masked_fill_(_between(bad.cumsum(0).unsqueeze(0), first, after) > 0, torch.nan).t()


def _between(running: Tensor, first: Tensor, after: Tensor) -> Tensor:
    """Return what running sums (D, N) grew by from places `first` (N,) up to the places before `after` (N,)."""
    before = running.index_select(1, (first - 1).clamp_min_(0)).masked_fill_(first == 0, 0)
    return running.index_select(1, after - 1).sub_(before)


def sums_at_lookup(device: torch.device) -> bool:
    """Return True if a lookup should read each distinct row once, so that the gradient has no repeated rows.

    On CPU that saves time and memory. A GPU reads and writes all rows in a third of the time that it takes to find the
    distinct ones, which the process must also wait for; `sum_rows` finds them once for all lookups of a step.
    """
    return device.type == "cpu"


def row_gradient(row_ids: Tensor, values: Tensor, shape: torch.Size, *, each_once: bool = True) -> Tensor:
    """Return a sparse COO tensor of a table's shape (V, D) from its rows.

    Args:
        row_ids: (N,) row numbers.
        values: (N, D) rows.
        shape: Shape of the table.
        each_once: True if the numbers are ascending and distinct; False allows any order and repeats.
    """
    return torch.sparse_coo_tensor(row_ids.unsqueeze(0), values, shape, check_invariants=False, is_coalesced=each_once)


class Lookup(NamedTuple):
    """Rows (..., D) that were read from a table (V, D), and their numbers (...)."""

    table: Tensor
    row_ids: Tensor
    rows: Tensor

    def gradient_parts(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return row numbers (N,) and values (N, D) of the table's gradient, for that of the rows; 0 for row 0."""
        row_ids = self.row_ids.flatten()
        return row_ids, gradient.reshape(len(row_ids), -1).masked_fill((row_ids == 0).unsqueeze(1), 0)


_collected: ContextVar[list[Lookup] | None] = ContextVar("collected", default=None)


@contextmanager
def collected_lookups() -> Iterator[list[Lookup]]:
    """Collect all calls of `look_up`, whose rows are then leaves with gradients of their own; the table gets none."""
    found: list[Lookup] = []
    before = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(before)


def look_up(table: Tensor, row_ids: Tensor) -> Tensor:
    """Return rows (..., D) of a table (V, D) for row numbers (...); its gradient is sparse, with repeated rows.

    Row 0 is padding: its gradient is listed, and 0. `torch.nn.functional.embedding` leaves it out, for which Python
    waits for a GPU to count the other rows.
    """
    collected = _collected.get()
    if collected is not None:
        collected.append(Lookup(table, row_ids, F.embedding(row_ids, table.detach()).requires_grad_()))
        return collected[-1].rows
    rows: Tensor = _Lookup.apply(table, row_ids)  # type: ignore[no-untyped-call]
    return rows


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, row_ids: Tensor) -> Tensor:
        ctx.save_for_backward(row_ids)
        ctx.shape = table.shape
        return F.embedding(row_ids, table)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        parts = Lookup(gradient, ctx.saved_tensors[0], gradient).gradient_parts(gradient)
        return row_gradient(*parts, ctx.shape, each_once=False), None
