"""Gradient clipping when some parameters are sharded over processes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from seqrec.errors import InputError


@torch.no_grad()
def clip_norm(parameters: Iterable[Tensor], spread: Collection[Tensor], max_norm: float) -> Tensor:
    """Scale gradients in place to an L2 norm, over all of them and all processes, of at most `max_norm`.

    Each shard, of the parameters in `spread`, counts once, and a gradient that all processes have counts once. All
    processes must call. Gradients were averaged over processes before; sparse ones have each row once.

    Returns:
        The norm before clipping, a scalar, equal in all processes.

    Raises:
        InputError: if `max_norm` is not positive.
    """
    if not max_norm > 0:
        raise InputError(f"max_norm={max_norm} must be above 0")
    own = {id(parameter) for parameter in spread}
    shared_values: list[Tensor] = []
    own_values: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is not None:
            (own_values if id(parameter) in own else shared_values).append(_values(parameter.grad))
    assert own_values, "a process without rows in the batch has an empty gradient"
    norm = total_norm(shared_values, own_values)
    # The factor of torch.nn.utils.clip_grad_norm_, with its guard against a norm of 0.
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for values in (*shared_values, *own_values):
        values.mul_(factor)
    return norm


@torch.no_grad()
def total_norm(shared: Sequence[Tensor], own: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm, equal in all processes, of gradients that all have and of this process's shards.

    If one process has shards, all must call. Values are dense; the norm of no gradient is 0.
    """
    squares = torch.zeros(())
    if own:
        squares = _sum_of_squares(own)
        dist.all_reduce(squares)
    if shared:
        squares = squares.to(shared[0].device) + _sum_of_squares(shared)
    return squares.sqrt()


def _values(gradient: Tensor) -> Tensor:
    if not gradient.is_sparse:
        return gradient
    assert gradient.is_coalesced(), "a row that occurs twice would count as two"
    return gradient._values()


def _sum_of_squares(gradients: Sequence[Tensor]) -> Tensor:
    norms = [
        torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))
        for gradient in gradients
    ]
    return torch.stack(norms).square().sum()
