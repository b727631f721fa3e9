"""The newest events that a stream of attention keeps.

Shapes: B batch, L new events, H heads, W kept events, S slots, P head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from seqrec.encoders.layers.streamed import Tensors

# Events that attend together in a stream, or if gaps are read: the mask then has at most this times W + this elements,
# or this times L.
CHUNK_EVENTS = 256


class Slots(NamedTuple):
    """Keys and values that new events attend to: the window, from its oldest event on, then the new events themselves.

    Attributes:
        keys: (B, H, S, P).
        values: (B, H, S, P).
        times: (B, S) int64; None if gaps are not read.
        seen: Broadcasts to (B, 1, L, S), bool, True if a new event sees a slot.
        distance: Broadcasts to (B, 1, L, S), int64, by how many events a slot is older than a new event.
    """

    keys: Tensor
    values: Tensor
    times: Tensor | None
    seen: Tensor
    distance: Tensor


def empty_window(shape: tuple[int, int, int, int], like: Tensor, *, times: bool) -> Tensors:
    """Return the state before the first event: keys and values of a shape (B, H, W, P), with `times` those too."""
    state = {
        "keys": like.new_zeros(shape),
        "values": like.new_zeros(shape),
        "num_events": like.new_zeros(shape[0], dtype=torch.int64),
    }
    if times:
        state["times"] = like.new_zeros(shape[0], shape[2], dtype=torch.int64)
    return state


def attend_further(
    attend: Callable[[Tensor, Tensor | None, Slots], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    valid: Tensor | None,
    times: Tensor | None,
    state: Tensors,
) -> tuple[Tensor, Tensors]:
    """Return what new events see, and the state after them.

    Args:
        attend: Maps queries (B, H, L, P), their times (B, L) or None, and what they attend to, to (B, H, L, P).
        query: (B, H, L, P) of the new events.
        key: (B, H, L, P).
        value: (B, H, L, P).
        valid: (B, L) bool, as in `Streamed.advance`.
        times: (B, L) int64; None if gaps are not read.
        state: State before them, of `empty_window`.
    """
    length, window = query.shape[2], state["keys"].shape[2]
    # Slots that are empty in every row are skipped. Python must wait for a GPU to find them, so a single event, which
    # should always cost the same, looks at all slots.
    seen = window if length == 1 else int(state["num_events"].max())
    out = []
    for begin in range(0, length, CHUNK_EVENTS):
        part = slice(begin, begin + CHUNK_EVENTS)
        flags, own = (None if x is None else x[:, part] for x in (valid, times))
        empty = max(0, window - seen - begin)
        slots, state = _further_window(key[:, :, part], value[:, :, part], flags, own, state, empty)
        out.append(attend(query[:, :, part], own, slots))
    return torch.cat(out, 2), state


def _further_window(
    key: Tensor, value: Tensor, valid: Tensor | None, times: Tensor | None, state: Tensors, empty: int
) -> tuple[Slots, Tensors]:
    """Return what a few new events attend to, without the first `empty` slots, and the state after them."""
    (window, length), num_events = (state["keys"].shape[2], key.shape[2]), state["num_events"]
    keys = torch.cat([state["keys"], key.to(state["keys"].dtype)], 2)
    values = torch.cat([state["values"], value.to(state["values"].dtype)], 2)
    slot = torch.arange(empty, window + length, device=key.device)
    # Slot W - i holds the event that is i older than the first new one.
    distance = window + torch.arange(length, device=key.device).unsqueeze(1) - slot
    holds = slot >= window - num_events[:, None, None]
    seen = (holds & (distance >= 0) & (distance < window)).unsqueeze(1)
    count = num_events.new_full((), length) if valid is None else valid.sum(1)
    kept = {"keys": _newest(keys, window, valid), "values": _newest(values, window, valid)}
    kept["num_events"] = num_events + count
    moments = None
    if times is not None:
        moments = torch.cat([state["times"], times], 1)
        kept["times"] = _newest(moments[:, None, :, None], window, valid)[:, 0, :, 0]
        moments = moments[:, empty:]
    return Slots(keys[:, :, empty:], values[:, :, empty:], moments, seen, distance), kept


def _newest(x: Tensor, window: int, valid: Tensor | None) -> Tensor:
    """Return the last W slots of x (B, H, W + L, P), which end at a row's newest event."""
    if valid is None:
        return x[:, :, x.shape[2] - window :]
    index = valid.sum(1, keepdim=True) + torch.arange(window, device=x.device)
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
