"""Negatives drawn uniformly from the catalogue, or from the items that a user has not seen."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqrec.errors import NothingToDrawError, check_at_least
from seqrec.training.negatives.negative_sampler import Negatives, NegativeSampler, seen_draws
from seqrec.types import SeenItems


class UniformNegatives(NegativeSampler):
    """Items drawn uniformly, with replacement; more draws than items are allowed.

    With `exclude_seen`, draws of a position are exactly uniform over the items that its user has not seen, and a user
    who has seen every item is refused. Shared draws are uniform over the whole catalogue. They do not count for users
    who have seen them, and a user who has seen all of them gets no negative.

    Args:
        num_negatives: Draws N for each position, or for the whole batch with `shared`.
        exclude_seen: Whether items of the user's training history never count as negatives.
        shared: Whether all positions of a batch share their draws, which makes scoring them one matrix product.

    Raises:
        InputError: if there are no draws.

    Example:
        >>> import torch
        >>> from seqrec import UniformNegatives
        >>> sampler = UniformNegatives(256, exclude_seen=False, shared=True)
        >>> rows, targets = torch.tensor([0, 0, 1]), torch.tensor([5, 8, 2])
        >>> sampler.sample(rows, targets, seen=None, num_items=1000).item_ids.shape
        torch.Size([256])
    """

    takes_padding = True

    def __init__(self, num_negatives: int = 1, *, exclude_seen: bool = True, shared: bool = False) -> None:
        check_at_least(1, num_negatives=num_negatives)
        self.num_negatives = num_negatives
        self.exclude_seen = exclude_seen
        self.shared = shared

    def num_draws(self, num_positions: int) -> int:
        """Return the draws N for M positions."""
        return self.num_negatives

    def sample(self, rows: Tensor, targets: Tensor, seen: SeenItems | None, num_items: int) -> Negatives:
        """Draw negatives for the batch's positions; see `NegativeSampler.sample`."""
        shape = (self.num_negatives,) if self.shared else (len(rows), self.num_negatives)
        excluded = None
        if self.exclude_seen and not self.shared:
            assert seen is not None, "exclude_seen needs what users have seen"
            # float64, because the 24 bits of a float32 are too few for catalogues above 16 M items.
            uniforms = torch.rand(shape, dtype=torch.float64, device=rows.device)
            item_ids = draw_unseen(uniforms, rows, seen, num_items)
        else:
            item_ids = torch.randint(1, num_items + 1, shape, device=rows.device)
            excluded = seen_draws(item_ids, rows, seen) if self.exclude_seen else None
        return Negatives(item_ids, self.log_probabilities(item_ids, rows, seen, num_items), excluded)

    def log_probabilities(self, item_ids: Tensor, rows: Tensor, seen: SeenItems | None, num_items: int) -> Tensor:
        """Return the log-probabilities of items; see `NegativeSampler.log_probabilities`."""
        if self.exclude_seen and not self.shared:
            assert seen is not None, "exclude_seen needs what users have seen"
            unseen = (num_items - seen.counts).double()
            return -unseen.log()[rows].unsqueeze(1).expand(item_ids.shape)
        return torch.full((), -math.log(num_items), dtype=torch.float64, device=rows.device).expand(item_ids.shape)


def draw_unseen(uniforms: Tensor, rows: Tensor, seen: SeenItems, num_items: int) -> Tensor:
    """Map uniform numbers (M, N), float64 in [0, 1), to draws (M, N) with replacement from the items 1..num_items.

    Row m has uniform draws of the items that row `rows[m]` of `seen` lacks, exactly and without rejection. The r-th
    unseen item (from 0) is item r + 1 + j, with j the number of seen items s_0 < s_1 < .. that have s_j - 1 - j <= r.
    One binary search in a sorted array of all rows finds it, on the device and without a loop.

    Raises:
        InputError: if a user has seen every item; a GPU raises its own assertion error instead.
    """
    free = num_items - seen.counts
    reason = (
        f"a user has seen all {num_items} items, so no unseen item can be drawn; "
        "leave such users out, or allow seen items (exclude_seen: false)"
    )
    if free.device.type != "cpu":
        torch._assert_async((free > 0).all(), reason)  # no wait for the device
    elif bool((free <= 0).any()):
        raise NothingToDrawError(reason, (free <= 0).nonzero().flatten().tolist())
    rank = (uniforms * free[rows].unsqueeze(1)).long()
    within = torch.arange(len(seen.item_ids), device=rows.device) - seen.offsets[seen.rows]
    keys = seen.rows * (num_items + 1) + seen.item_ids - 1 - within
    queries = rows.unsqueeze(1) * (num_items + 1) + rank
    passed = torch.searchsorted(keys, queries, right=True) - seen.offsets[rows].unsqueeze(1)
    return rank + passed + 1
