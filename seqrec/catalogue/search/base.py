"""The contract of searches, and the exact one. B users, D width, K top-k."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.types import Recommendations, SeenItems


class ItemSearch(ABC):
    """Finds the items of a catalogue with the best scores. Constructor arguments are kept as attributes."""

    def prepare(self, scorer: Scorer) -> None:  # noqa: B027  # most have nothing to do
        """Get ready for a scorer's item vectors; needed before `top_k`, and again when they have changed."""

    @abstractmethod
    def top_k(
        self,
        scorer: Scorer,
        states: Tensor,
        k: int,
        user_ids: Tensor,
        *,
        exclude: SeenItems | None = None,
        blocked: Tensor | None = None,
    ) -> Recommendations:
        """The K best items for each user, or what the search takes for them.

        Args:
            scorer: Of the item vectors that were prepared.
            states: (B, D).
            k: Items a user, 1..num_items.
            user_ids: (B,) passed through to the result.
            exclude: Items that may not be recommended to each user.
            blocked: (N,) int64, ascending: items that may not be recommended to anybody.

        Returns:
            As `Scorer.top_k`; scores are exact. A user gets fewer than K only where no more are allowed.

        Raises:
            InputError: `k` is out of range.
        """

    def counts(self) -> dict[str, int]:
        """What a summary adds up of the search so far, by name."""
        return {}


class ExactSearch(ItemSearch):
    """Scores the whole catalogue, in chunks."""

    def top_k(
        self,
        scorer: Scorer,
        states: Tensor,
        k: int,
        user_ids: Tensor,
        *,
        exclude: SeenItems | None = None,
        blocked: Tensor | None = None,
    ) -> Recommendations:
        """See `Scorer.top_k`."""
        return scorer.top_k(states, k, user_ids, exclude=exclude, blocked=blocked)
