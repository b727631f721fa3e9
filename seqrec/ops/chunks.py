"""Parts of scans that compute whole chunks by matrix products: which chunks at once, and where a NaN may go.

A matrix product would spread a NaN over its whole chunk, as 0 * NaN is NaN. So such scans replace non-finite inputs by
0, and the results that depend on them by NaN afterwards. B batch, L events, S events of a chunk, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from seqrec.ops.autograd import refuse_second_derivative

# Numbers in the (S, S) matrices of the chunks that are computed at once: as many as a CPU's caches hold, or enough to
# keep a GPU busy.
CPU_NUMBERS, OTHER_NUMBERS = 2**18, 2**24


def parts_of(x: Tensor, chunk_events: int) -> Iterator[tuple[slice, int]]:
    """Yield events and number of chunks of each part of x (B, L, H, ..); a shorter last chunk is a part of its own."""
    batch, length, heads = x.shape[:3]
    numbers = CPU_NUMBERS if x.device.type == "cpu" else OTHER_NUMBERS
    whole, rest = divmod(length, chunk_events)
    at_once = max(1, numbers // (batch * heads * chunk_events**2))
    for first in range(0, whole, at_once):
        last = min(first + at_once, whole)
        yield slice(first * chunk_events, last * chunk_events), last - first
    if rest:
        yield slice(length - rest, length), 1


def decays_within(decay: Tensor) -> Tensor:
    """Return (.., S, S) products of the decays (.., S, 1) of events j + 1 .. i at [j, i]; 0 if i < j."""
    later = torch.ones(decay.shape[-2], decay.shape[-2], dtype=torch.bool, device=decay.device).triu_(1)
    return torch.where(later, decay.mT, 1).cumprod(-1).triu_()


def of_first_history(flags: Tensor, start: Tensor | None) -> Tensor:
    """Return flags (B, H) where the first event continues the initial state; False where it begins a history."""
    return flags if start is None else flags & ~start[:, :1]


def save_for_chunks(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep for the backward pass the inputs but the initial state, and what was computed besides y and last state."""
    *real, _, start = inputs
    ctx.save_for_backward(*real, start, *output[2:])


def differentiate_once(
    refusal: str, ctx: Any, backward: Callable[..., list[Tensor]], dy: Tensor, dlast: Tensor, *kept: Any
) -> tuple[Tensor | None, ...]:
    """Return the gradients of all inputs; a second derivative is refused by `refusal`."""
    refuse_second_derivative(refusal)
    return (*backward(dy, dlast, *ctx.saved_tensors), None)


def finite_(value: Tensor) -> Tensor:
    """Replace NaN and infinities by 0, in place."""
    return torch.nan_to_num_(value, nan=0.0, posinf=0.0, neginf=0.0)


def is_spoilt(rows: Tensor) -> Tensor:
    """Return True where a number along the last axis is not finite."""
    # Faster than isfinite, which makes four tensors of this size.
    return (rows * 0).sum(-1) != 0


def carried(spoilt: Tensor, start: Tensor | None) -> Tensor:
    """Return (B, L, H) bool, True if `spoilt` is True at an event or earlier in the same history.

    Args:
        spoilt: (B, L, H) bool.
        start: (B, L) bool, True where a history begins; None is only at the first event.
    """
    count = spoilt.cumsum(1)
    if start is not None:
        earlier = (count - spoilt.long()).masked_fill(~start.unsqueeze(-1), 0)
        count = count - earlier.cummax(1).values
    return count > 0


def in_history(spoilt: Tensor, start: Tensor | None) -> Tensor:
    """Return (B, L, H) bool, True if `spoilt` is True anywhere in an event's history; arguments as in `carried`."""
    # Read backwards, a history begins after the event that was its first.
    ends = None if start is None else start.roll(-1, 1).flip(1)
    return carried(spoilt, start) | carried(spoilt.flip(1), ends).flip(1)
