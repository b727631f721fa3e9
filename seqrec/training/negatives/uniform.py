"""Negatives that are uniform over the catalogue."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqrec.training.negatives.base import Negatives, NegativeSampler, check_num_negatives, seen_draws
from seqrec.training.negatives.unseen import draw_unseen
from seqrec.types import SeenItems


class UniformNegatives(NegativeSampler):
    """Uniform over the catalogue, with replacement, so that there may be more draws than items.

    With `exclude_seen`, draws of a position are uniform over what its user has not seen, exactly, and a user who has
    seen every item is refused. Shared draws are uniform over the whole catalogue, and do not count for users who
    have seen them; a user who has seen all of them gets no negative.

    Args:
        num_negatives: Draws N a position, or a batch with `shared`.
        exclude_seen: Whether items of the user's training history never count as negatives.
        shared: Whether all positions of a batch share their draws, which makes scoring them one matrix product.

    Raises:
        InputError: no draws.
    """

    def __init__(self, num_negatives: int = 1, *, exclude_seen: bool = True, shared: bool = False) -> None:
        self.num_negatives = check_num_negatives(num_negatives)
        self.exclude_seen = exclude_seen
        self.shared = shared

    def num_draws(self, num_positions: int) -> int:
        """See `NegativeSampler.num_draws`."""
        return self.num_negatives

    def sample(self, rows: Tensor, targets: Tensor, seen: SeenItems | None, num_items: int) -> Negatives:
        """See `NegativeSampler.sample`."""
        shape = (self.num_negatives,) if self.shared else (len(rows), self.num_negatives)
        excluded = None
        if self.exclude_seen and not self.shared:
            assert seen is not None, "exclude_seen needs what users have seen"
            # float64: the 24 bits of a float32 are too few for catalogues above 16 M items.
            uniforms = torch.rand(shape, dtype=torch.float64, device=rows.device)
            item_ids = draw_unseen(uniforms, rows, seen, num_items)
        else:
            item_ids = torch.randint(1, num_items + 1, shape, device=rows.device)
            excluded = seen_draws(item_ids, rows, seen) if self.exclude_seen else None
        return Negatives(item_ids, self.log_probabilities(item_ids, rows, seen, num_items), excluded)

    def log_probabilities(
        self, item_ids: Tensor, rows: Tensor, seen: SeenItems | None, num_items: int
    ) -> Tensor:
        """See `NegativeSampler.log_probabilities`."""
        if self.exclude_seen and not self.shared:
            assert seen is not None, "exclude_seen needs what users have seen"
            unseen = (num_items - seen.counts).double()
            return -unseen.log()[rows].unsqueeze(1).expand(item_ids.shape)
        return torch.full((), -math.log(num_items), dtype=torch.float64, device=rows.device).expand(
            item_ids.shape
        )
