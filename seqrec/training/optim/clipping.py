"""Clipping of dense and row-sparse gradients together."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm

from seqrec.errors import InputError
from seqrec.ops.row_gradients import row_gradient, sum_rows


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[Tensor], *, max_norm: float | None = None, max_value: float | None = None
) -> Tensor | None:
    """Clip gradients in place, as `torch.nn.utils` would if all were dense.

    Rows of a sparse gradient are summed first: a row that occurs twice counts as its sum. `max_norm` is the largest L2
    norm of all gradients together, `max_value` the largest absolute value of a gradient's number; None does not clip.

    Returns:
        Norm of all gradients before clipping, a scalar; None if there is no `max_norm`.

    Raises:
        InputError: if both limits are given, or one is not positive.
    """
    limit = max_norm if max_value is None else max_value
    if limit is None:
        return None
    if max_norm is not None and max_value is not None:
        raise InputError(f"max_norm={max_norm} and max_value={max_value} exclude each other: give one")
    if not limit > 0:
        raise InputError(f"{'max_norm' if max_value is None else 'max_value'}={limit} must be above 0")
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    dense = [parameter for parameter in with_gradient if not _gradient(parameter).is_sparse]
    sparse = [parameter for parameter in with_gradient if _gradient(parameter).is_sparse]
    rows = [sum_rows(_gradient(parameter)) for parameter in sparse]
    if max_value is not None:
        clip_grad_value_(dense, max_value)
        for _, values in rows:
            values.clamp_(-max_value, max_value)
        norm = None
    else:
        assert max_norm is not None
        norm = get_total_norm([*(_gradient(p) for p in dense), *(values for _, values in rows)])
        clip_grads_with_norm_(dense, max_norm, norm)
        for _, values in rows:
            # The factor that torch's function uses, with its guard against a norm of 0.
            values.mul_((max_norm / (norm.to(values.device) + 1e-6)).clamp(max=1.0))
    for parameter, (row_ids, values) in zip(sparse, rows, strict=True):
        parameter.grad = row_gradient(row_ids, values.to(parameter.dtype), parameter.shape)
    return norm


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
