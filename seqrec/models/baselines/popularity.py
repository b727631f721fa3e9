"""Popularity: the baseline that every encoder must beat, over all training events or the newest."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.data.pieces import nth_smallest
from seqrec.errors import InputError
from seqrec.models.baselines.baseline import Baseline, check_catalogue
from seqrec.models.baselines.training_events import TrainingEvents
from seqrec.types import SequenceBatch


class _ItemCounts(Baseline):
    """Ranks items by a count, the same list for every user."""

    item_counts: Tensor

    def __init__(self, num_items: int) -> None:
        super().__init__()
        # float64 counts 2^53 events exactly.
        self.register_buffer("item_counts", torch.zeros(num_items + 1, dtype=torch.float64))

    def last_states(self, batch: SequenceBatch) -> Tensor:
        """Return (B, 1) ones, so the count is the score."""
        return self.item_counts.new_ones(len(batch), 1)

    def scorer(self) -> Scorer:
        """See `Recommender.scorer`."""
        return Scorer(self.item_counts.unsqueeze(1))


class Popularity(_ItemCounts):
    """Ranks items by how often they occur in the training part of the log; the same list for every user.

    With a target filter, by how often they are targets there.

    Args:
        num_items: Items of the catalogue.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from seqrec import History, Popularity
        >>> model = Popularity.from_counts(np.array([0, 5, 9, 1]))
        >>> model.recommend(History(torch.tensor([[2]]), torch.tensor([1])), top_k=2).item_ids.tolist()
        [[1, 3]]
    """

    def __init__(self, num_items: int) -> None:
        super().__init__(num_items)
        self.save_hyperparameters({"num_items": num_items})

    @classmethod
    def from_counts(cls, item_counts: NDArray[np.int64]) -> Popularity:
        """Return a fitted model from (V,) counts, as `SequenceDataModule.train_item_counts` returns them."""
        model = cls(len(item_counts) - 1)
        model.item_counts.copy_(torch.from_numpy(item_counts))
        return model

    def count(self, events: TrainingEvents) -> None:
        """See `Baseline.count`."""
        check_catalogue(self.title, len(self.item_counts) - 1, events)
        self.item_counts.copy_(torch.from_numpy(events.item_counts()))


class RecentPopularity(_ItemCounts):
    """Ranks items by how often they occur in the newest share of the training events; the same list for every user.

    Ji et al. 2020 (A Re-visit of the Popularity Baseline in Recommender Systems) count the events of a period before
    each target's time. Here it is the last period of the training part for all targets. Under a global time split that
    is their period; under leave-one-out it is after many targets, as all training is there.

    Args:
        num_items: Items of the catalogue.
        share: Share of all training events that is counted (with a target filter, of the targets), 0 < share <= 1, plus
            events with the same time as the oldest of them.

    Raises:
        InputError: if `share` is out of range.

    Example:
        >>> import numpy as np
        >>> from seqrec import RecentPopularity, TrainingEvents
        >>> times = np.array([10, 20, 30, 40])
        >>> log = TrainingEvents(np.array([1, 1, 2, 2]), times, np.array([0]), np.array([4]), num_items=2)
        >>> model = RecentPopularity(num_items=2, share=0.5)
        >>> model.count(log)
        >>> model.item_counts.tolist()
        [0.0, 0.0, 2.0]
    """

    def __init__(self, num_items: int, *, share: float = 0.1) -> None:
        super().__init__(num_items)
        if not 0 < share <= 1:
            raise InputError(f"share={share} must be above 0 and at most 1; 1 is Popularity")
        self.save_hyperparameters({"num_items": num_items, "share": share})
        self.share = share

    def count(self, events: TrainingEvents) -> None:
        """See `Baseline.count`; the log must have timestamps."""
        check_catalogue(self.title, len(self.item_counts) - 1, events)
        if events.timestamps is None:
            raise InputError(
                "RecentPopularity needs timestamps and the log has none: use a source with times, or Popularity"
            )
        total, times = int(events.item_counts().sum()), events.timestamps
        older = total - math.ceil(self.share * total)
        since = nth_smallest(lambda: (times[some.places] for some in events.pieces()), older + 1)
        counts = np.zeros(events.num_items + 1, dtype=np.int64)
        for some in events.pieces():
            new = times[some.places] >= since
            counts += np.bincount(some.item_ids[new], minlength=len(counts))
        self.item_counts.copy_(torch.from_numpy(counts))
