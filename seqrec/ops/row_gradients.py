"""Gradients of tables as rows, each once. N rows of a gradient, U distinct ones, V rows of the table, D width."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_rows(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct rows of a sparse gradient, and for each the sum of what the gradient has for it.

    On CPU the sums are made by `torch.unique` and `index_add_`, which takes half the time of torch's own `coalesce`.
    Elsewhere `index_add_` would add in an order that changes from run to run, so `coalesce` is taken.

    Args:
        gradient: (V, D) sparse COO tensor of N rows, in any order and possibly repeated.

    Returns:
        Row numbers (U,) in ascending order and sums (U, D), float32 where the gradient has less. Both are the
        gradient's own memory where nothing had to be summed or converted.
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


def sums_at_lookup(device: torch.device) -> bool:
    """Whether each distinct row is read once, so that a gradient has as many rows, instead of one for each lookup.

    On CPU that saves time and memory. A GPU reads and writes all rows in a third of the time that it takes to find the
    distinct ones, for which it must also be waited; `sum_rows` finds them once for all lookups of a step.
    """
    return device.type == "cpu"


def row_gradient(row_ids: Tensor, values: Tensor, shape: torch.Size, *, each_once: bool = True) -> Tensor:
    """Sparse COO tensor of a table's shape (V, D) with the rows `values` (N, D).

    Args:
        row_ids: (N,) numbers of the rows.
        values: The rows.
        shape: Shape of the table.
        each_once: Whether the numbers are ascending, each once; otherwise any order and repeats will do.
    """
    return torch.sparse_coo_tensor(
        row_ids.unsqueeze(0), values, shape, check_invariants=False, is_coalesced=each_once
    )
