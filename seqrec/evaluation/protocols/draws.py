"""Draws that depend on a seed and a user alone. Shapes: B users, N draws a user, V = num_items + 1, S avoided items."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from seqrec.errors import InputError
from seqrec.types import SeenItems

# Draws of a user, at most, among which so many different items as wanted must be.
MAX_DRAWS = 1 << 14


def hashed_uniforms(keys: Tensor, count: int, seed: int) -> Tensor:
    """(B, count) float64 in [0, 1) that depend on (seed, key, column) alone, whatever the device.

    SplitMix64's finaliser (Steele, Lea & Flood 2014) over a counter; int64 arithmetic wraps as uint64's does.

    Args:
        keys: (B,) int64.
        count: Numbers a key.
        seed: Chooses the stream.
    """
    columns = torch.arange(count, device=keys.device)
    # The golden-ratio increment 0x9E3779B97F4A7C15 and the finaliser's two constants, as signed numbers.
    x = (_mix(keys * -7046029254386353131 + seed).unsqueeze(1) + columns) * -7046029254386353131
    return _logical_shift(_mix(x), 11).double() * 2.0**-53


def draw_by_weight(uniforms: Tensor, avoid: SeenItems, weights: Tensor) -> Tensor:
    """Map uniform numbers to items in proportion to their weights, among what a user does not avoid; no rejection.

    Item i owns `weights[i]` slots in a row of all slots. A user's free slots are those of the items that it does not
    avoid; the avoided ones that lie before the x-th free slot are found by one binary search.

    Args:
        uniforms: (B, N) float64 in [0, 1).
        avoid: Items that each user must not get.
        weights: (V,) int64, at least 0, and 0 for padding.

    Returns:
        (B, N) int64 item ids; with replacement.

    Raises:
        InputError: a user avoids all items that have a weight.
    """
    ends = weights.cumsum(0)
    taken = torch.cat([weights.new_zeros(1), weights[avoid.item_ids].cumsum(0)])
    base, total = taken[avoid.offsets[:-1]], ends[-1]
    free = total - (taken[avoid.offsets[1:]] - base)
    if bool((free <= 0).any()):
        raise InputError(
            "a user has seen all items that could be drawn as candidates; leave such users out, or keep seen items "
            "(filter_seen: false)"
        )
    place = (uniforms * free.unsqueeze(1)).long()
    rows = avoid.rows
    before = (ends - weights)[avoid.item_ids] - (taken[:-1] - base[rows])
    users = torch.arange(len(uniforms), device=uniforms.device).unsqueeze(1)
    passed = torch.searchsorted(rows * (total + 1) + before, users * (total + 1) + place, right=True)
    slots = place + taken[passed] - base.unsqueeze(1)
    return torch.searchsorted(ends, slots, right=True)


def first_distinct(draw: Callable[[int], Tensor], count: int) -> Tensor:
    """(B, count) first `count` different items of each user's draws, in their order.

    Without replacement, in proportion to the weights of what is left, as each draw of an item that is there
    already is passed over.

    Args:
        draw: Gives (B, n) draws for a number n; those for a smaller n are the first of them.
        count: Items a user.

    Raises:
        InputError: so many draws bring too few different items, as some are hardly ever drawn.
    """
    num_draws = 2 * count
    while num_draws <= max(MAX_DRAWS, 2 * count):
        drawn = draw(num_draws)
        ordered, order = drawn.sort(dim=1, stable=True)
        new_in_order = torch.ones_like(drawn, dtype=torch.bool)
        new_in_order[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        is_new = torch.zeros_like(new_in_order).scatter_(1, order, new_in_order)
        place = is_new.cumsum(1) - 1
        if bool((place[:, -1] + 1 >= count).all()):
            rows, columns = (is_new & (place < count)).nonzero(as_tuple=True)
            result = drawn.new_empty(len(drawn), count)
            result[rows, place[rows, columns]] = drawn[rows, columns]
            return result
        num_draws *= 2
    raise InputError(
        f"{num_draws // 2:,} draws bring fewer than {count} different candidates for a user: lower count, or set "
        "replacement: true"
    )


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _logical_shift(x, 30)) * -4658895280553007687
    x = (x ^ _logical_shift(x, 27)) * -7723592293110705685
    return x ^ _logical_shift(x, 31)


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros; torch's own shift of int64 copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
