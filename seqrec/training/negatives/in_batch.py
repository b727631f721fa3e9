"""The batch's own targets as negatives."""

from __future__ import annotations

from torch import Tensor

from seqrec.errors import InputError
from seqrec.training.negatives.base import Negatives, NegativeSampler, seen_draws
from seqrec.training.negatives.popularity import check_catalogue, check_item_counts, missing_item_counts
from seqrec.types import SeenItems


class InBatchNegatives(NegativeSampler):
    """All targets of the batch, shared by all its positions: N = M draws by popularity, for nothing.

    Their probability is taken as count / events of training, as if targets came independently; an item without a
    count counts as one event. A position's own target never counts, however often the batch holds it.

    Args:
        exclude_seen: Whether items of the user's training history never count as negatives.
    """

    needs_item_counts = True
    shared = True

    def __init__(self, *, exclude_seen: bool = True) -> None:
        self.exclude_seen = exclude_seen
        self._log_probabilities: Tensor | None = None

    def use_item_counts(self, counts: Tensor) -> None:
        """See `NegativeSampler.use_item_counts`."""
        check_item_counts(counts)
        self._log_probabilities = counts.clamp(min=1).double().div_(counts.sum()).log_()

    def num_draws(self, num_positions: int) -> int:
        """See `NegativeSampler.num_draws`."""
        return num_positions

    def sample(self, rows: Tensor, targets: Tensor, seen: SeenItems | None, num_items: int) -> Negatives:
        """See `NegativeSampler.sample`."""
        excluded = seen_draws(targets, rows, seen) if self.exclude_seen else None
        return Negatives(targets, self.log_probabilities(targets, rows, seen, num_items), excluded)

    def log_probabilities(
        self, item_ids: Tensor, rows: Tensor, seen: SeenItems | None, num_items: int
    ) -> Tensor:
        """See `NegativeSampler.log_probabilities`."""
        if self._log_probabilities is None:
            raise InputError(missing_item_counts(self))
        check_catalogue(self, len(self._log_probabilities), num_items)
        self._log_probabilities = self._log_probabilities.to(item_ids.device)
        return self._log_probabilities[item_ids]
