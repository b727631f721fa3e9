"""The items with the best scores, for some users and a part of the catalogue at a time.

B users, S excluded items of all of them, V = num_items + 1, K top-k.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from seqrec.types import SeenItems

# Users of a block. With more of them, a block of as many scores would have few items, and the best of many blocks would
# have to be compared.
USERS = 1 << 10


def best_of_blocks(
    score: Callable[[Tensor, int, int], Tensor],
    num_items: int,
    states: Tensor,
    k: int,
    *,
    budget: int,
    exclude: SeenItems | None = None,
    disallowed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the K best items of each user, best first, from blocks of at most `budget` scores.

    The scores of the catalogue are never in memory together: a block, the K best so far, and what `topk` needs for a
    block. A GPU is waited for once for all blocks of `USERS` users, whose scores are then searched for NaN.

    Args:
        score: Returns new scores (B, C) of the C items from a first one on, for states (B, D): `Scorer.score_chunk`.
        num_items: Items 1..num_items are scored.
        states: (B, D).
        k: Items per user, at most `num_items`.
        budget: Most scores of a block; a block has one item at least.
        exclude: Items that each user does not get.
        disallowed: (V,) bool, True for items that no user gets; None is none of them.

    Returns:
        Item ids and scores (B, K), 0 and -inf if fewer items are left. Items with a score of NaN are left out. Of equal
        scores the order is torch's.
    """
    if len(states) <= USERS:
        return _best_of_users(score, num_items, states, k, budget, exclude, disallowed)
    parts = []
    bounds = None if exclude is None else exclude.offsets[::USERS].tolist()
    for number, own in enumerate(torch.split(states, USERS)):
        seen = None
        if exclude is not None and bounds is not None:
            begin = bounds[number]
            end = bounds[number + 1] if number + 1 < len(bounds) else len(exclude.item_ids)
            rows = slice(number * USERS, number * USERS + len(own) + 1)
            seen = SeenItems(exclude.item_ids[begin:end], exclude.offsets[rows] - begin)
        parts.append(_best_of_users(score, num_items, own, k, budget, seen, disallowed))
    item_ids, scores = zip(*parts, strict=True)
    return torch.cat(item_ids), torch.cat(scores)


def disallowed_items(num_items: int, blocked: Tensor | None, allowed: Tensor | None) -> Tensor | None:
    """Return (V,) bool, True for blocked items and those that are not allowed; None if neither is given."""
    if blocked is None and allowed is None:
        return None
    device = (blocked if allowed is None else allowed).device  # type: ignore[union-attr]  # one is given
    disallowed = torch.full((num_items + 1,), allowed is not None, device=device)
    if allowed is not None:
        disallowed.index_fill_(0, allowed, False)
    return disallowed if blocked is None else disallowed.index_fill_(0, blocked, True)


def _best_of_users(
    score: Callable[[Tensor, int, int], Tensor],
    num_items: int,
    states: Tensor,
    k: int,
    budget: int,
    exclude: SeenItems | None,
    disallowed: Tensor | None,
    *,
    may_be_nan: bool = False,
) -> tuple[Tensor, Tensor]:
    scores = states.new_empty((len(states), 0))
    item_ids = torch.empty((len(states), 0), dtype=torch.int64, device=states.device)
    seen = None if exclude is None else (exclude.rows, exclude.item_ids.long())
    size = max(1, budget // max(len(states), 1))
    for first in range(1, num_items + 1, size):
        width = min(size, num_items + 1 - first)
        block = score(states, first, width)
        if seen is not None:
            block = _without(block, first, *seen)
        if disallowed is not None:
            block.masked_fill_(disallowed[first : first + width], -torch.inf)
        if may_be_nan:
            block.masked_fill_(block.isnan(), -torch.inf)
        values, columns = block.topk(min(k, width), dim=1)
        item_ids, scores = torch.cat([item_ids, columns + first], 1), torch.cat([scores, values], 1)
        if scores.shape[1] > values.shape[1]:
            scores, order = scores.sort(dim=1, descending=True, stable=True)
            scores, item_ids = scores[:, :k], item_ids.gather(1, order[:, :k])
    # NaN comes first in each order.
    if not may_be_nan and scores[:, 0].isnan().any():
        return _best_of_users(score, num_items, states, k, budget, exclude, disallowed, may_be_nan=True)
    return item_ids.masked_fill(scores == -torch.inf, 0), scores


def _without(block: Tensor, first: int, rows: Tensor, item_ids: Tensor) -> Tensor:
    """Set the scores (B, C) of items from `first` on to -inf for the pairs (S,) of rows and items that are among them.

    Pairs are not selected, because a GPU would be waited for: the others take the minimum of some score and +inf.
    """
    block = block.contiguous()
    width = block.shape[1]
    inside = (item_ids >= first) & (item_ids < first + width)
    places = rows * width + torch.where(inside, item_ids - first, item_ids % width)
    limits = torch.full_like(places, torch.inf, dtype=block.dtype).masked_fill_(inside, -torch.inf)
    block.view(-1).scatter_reduce_(0, places, limits, "amin")
    return block
