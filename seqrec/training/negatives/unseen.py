"""Items that a user has not met, drawn on the device without loops. Shapes: M draws' rows, N draws a row."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.errors import InputError
from seqrec.types import SeenItems


def draw_unseen(uniforms: Tensor, rows: Tensor, seen: SeenItems, num_items: int) -> Tensor:
    """Map uniform numbers to items uniform over what each row's user has not seen: exact, no rejection.

    The r-th unseen item (from 0) is item r + 1 + j, where j seen items s_0 < s_1 < .. have s_j - 1 - j <= r: one
    binary search in a sorted array of all rows.

    Args:
        uniforms: (M, N) float64 in [0, 1).
        rows: (M,) row of `seen` for each row of draws.
        seen: Items to avoid.
        num_items: Items 1..num_items.

    Returns:
        (M, N) int64 item ids; with replacement.

    Raises:
        InputError: a user has seen every item; on a device that runs ahead of Python, its own assertion error.
    """
    free = num_items - seen.counts
    reason = (
        f"a user has seen all {num_items} items, so no unseen item can be drawn; "
        "leave such users out, or allow seen items (exclude_seen: false)"
    )
    if free.device.type != "cpu":
        torch._assert_async((free > 0).all(), reason)  # no wait for the device
    elif bool((free <= 0).any()):
        raise InputError(reason)
    rank = (uniforms * free[rows].unsqueeze(1)).long()
    within = torch.arange(len(seen.item_ids), device=rows.device) - seen.offsets[seen.rows]
    keys = seen.rows * (num_items + 1) + seen.item_ids - 1 - within
    queries = rows.unsqueeze(1) * (num_items + 1) + rank
    passed = torch.searchsorted(keys, queries, right=True) - seen.offsets[rows].unsqueeze(1)
    return rank + passed + 1
