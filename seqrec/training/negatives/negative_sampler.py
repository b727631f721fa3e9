"""Base class of negative samplers, and the draws that they return.

Shapes: M positions, N draws, B users of the batch, V = num_items + 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from seqrec.types import ROW_STRIDE, SeenItems, TensorRecord


@dataclass(frozen=True)
class Negatives(TensorRecord):
    """Items drawn with replacement, and the probability of drawing them.

    A draw that equals its position's target is no negative; objectives leave it out themselves (`counted`).

    Attributes:
        item_ids: (M, N) int64, draws of each position; or (N,), draws that all positions share.
        log_probabilities: float64 of the same shape: log of the probability that one draw of this position is this
            item and counts. It is the probability among the unseen items if seen ones are never drawn, and among all
            items if seen ones are drawn and marked in `excluded`. Either way the sum of `f(item) / probability` over
            the draws that count, divided by N, has the mean `sum of f over the items that can count`.
        excluded: bool, True at draws that do not count because the user has seen the item: (M, N), or (B, N) with one
            row a user if positions share their draws. None excludes none.
    """

    item_ids: Tensor
    log_probabilities: Tensor
    excluded: Tensor | None = None

    @property
    def shared(self) -> bool:
        """Whether all positions share the draws."""
        return self.item_ids.dim() == 1

    def counted(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Return (M, N) bool, True at draws that count: neither excluded nor the own target of the position (M,)."""
        counted = self.item_ids != targets.unsqueeze(1)
        if self.excluded is None:
            return counted
        return counted & ~(self.excluded[rows] if self.shared else self.excluded)


class NegativeSampler(ABC):
    """Draws items that represent those the user did not choose. Constructor arguments are kept as attributes.

    Attributes:
        exclude_seen: Whether items of the user's training history, targets included, never count as negatives.
        shared: Whether all positions of a batch share their draws.
        needs_item_counts: Whether `use_item_counts` must be called before the first draw.
        takes_padding: Whether positions without a target, whose draws do not count, may be among the positions, and no
            size of a tensor depends on values, as `GraphedStep` needs.

    Example:
        >>> from seqrec import NegativeSampler, UniformNegatives
        >>> sampler: NegativeSampler = UniformNegatives(16, exclude_seen=False, shared=True)
        >>> sampler.num_draws(num_positions=500), sampler.needs_item_counts
        (16, False)
    """

    exclude_seen: bool
    shared: bool
    needs_item_counts: bool = False
    takes_padding: bool = False

    def use_item_counts(self, counts: Tensor) -> None:  # noqa: B027  # most samplers need none
        """Set the number (V,) int64 of training events of each item, 0 for item 0; the model calls this when fitting
        starts.

        Raises:
            InputError: if a count is negative, all are 0, or item 0 has one.
        """

    @abstractmethod
    def num_draws(self, num_positions: int) -> int:
        """Return the draws N for a batch of `num_positions` positions M."""

    @abstractmethod
    def sample(self, rows: Tensor, targets: Tensor, seen: SeenItems | None, num_items: int) -> Negatives:
        """Draw negatives for the batch's positions.

        Args:
            rows: (M,) user row of each position.
            targets: (M,) item ids.
            seen: Items of each user's training history; read only with `exclude_seen`.
            num_items: Items 1..num_items.

        Raises:
            InputError: if nothing can be drawn, or item counts are missing.
        """

    @abstractmethod
    def log_probabilities(self, item_ids: Tensor, rows: Tensor, seen: SeenItems | None, num_items: int) -> Tensor:
        """Return `Negatives.log_probabilities` of items that count, whichever sampler drew them.

        Args:
            item_ids: (M, N), or (N,) with `shared`.
            rows: (M,) user row of each position.
            seen: As in `sample`.
            num_items: As in `sample`.

        Returns:
            float64 of the shape of `item_ids`; -inf for items that this sampler never draws.
        """


def seen_draws(item_ids: Tensor, rows: Tensor, seen: SeenItems | None) -> Tensor:
    """Return `Negatives.excluded` of draws that may contain seen items of the users in `rows` (M,) of `seen`."""
    assert seen is not None, "exclude_seen needs what users have seen"
    if item_ids.dim() == 1:
        rows = torch.arange(len(seen.offsets) - 1, device=item_ids.device)
        item_ids = item_ids.expand(len(rows), -1)
    keys = seen.rows * ROW_STRIDE + seen.item_ids
    if len(keys) == 0:
        return torch.zeros_like(item_ids, dtype=torch.bool)
    queries = rows.unsqueeze(1) * ROW_STRIDE + item_ids
    places = torch.searchsorted(keys, queries).clamp_(max=len(keys) - 1)
    return keys[places] == queries
