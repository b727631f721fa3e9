"""Where a recurrence carries what is not finite, for backends that compute by matrix products.

A matrix product would spread a NaN over its whole chunk, as 0 * NaN is NaN: to events before it, and to other
histories of a packed row. Such a backend computes with `finite` inputs and puts NaN back afterwards.

Shapes: B batch, L events, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor


def finite(value: Tensor) -> Tensor:
    """The same with 0 in place of NaN and infinities."""
    return torch.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0)


def finite_(value: Tensor) -> Tensor:
    """`finite` in place."""
    return torch.nan_to_num_(value, nan=0.0, posinf=0.0, neginf=0.0)


def is_spoilt(rows: Tensor) -> Tensor:
    """Whether anything along the last axis is not finite."""
    # Faster than isfinite, which makes four tensors of this size.
    return (rows * 0).sum(-1) != 0


def carried(spoilt: Tensor, start: Tensor | None) -> Tensor:
    """(B, L, H) bool, whether something spoilt stands at an event or before it in the same history.

    Args:
        spoilt: (B, L, H) bool.
        start: (B, L) bool, True where a history begins; None is nowhere but at the first event.
    """
    count = spoilt.cumsum(1)
    if start is not None:
        earlier = (count - spoilt.long()).masked_fill(~start.unsqueeze(-1), 0)
        count = count - earlier.cummax(1).values
    return count > 0


def in_history(spoilt: Tensor, start: Tensor | None) -> Tensor:
    """(B, L, H) bool, whether something spoilt stands anywhere in an event's history; arguments as `carried`."""
    # Read backwards, a history begins behind the event that was its first.
    ends = None if start is None else start.roll(-1, 1).flip(1)
    return carried(spoilt, start) | carried(spoilt.flip(1), ends).flip(1)
