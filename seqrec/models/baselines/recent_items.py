"""The user's own items again, the newest first."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.models.baselines.baseline import Baseline, check_catalogue
from seqrec.models.baselines.markov import popularity_levels
from seqrec.models.baselines.neighbors import HistoryScorer, newest_first
from seqrec.models.baselines.training_events import TrainingEvents
from seqrec.types import SequenceBatch


class RecentItems(Baseline):
    """Ranks the items of the user's history by their newest event, the last item first, and all others by popularity.

    Anderson et al. 2014 (The Dynamics of Repeat Consumption, section 4) find that recency predicts best which item a
    user repeats. It is a baseline for protocols that keep seen items (`filter_seen=False`); without them only
    popularity is left. Other items have `level(j)` of `Markov`, and those of equal popularity are tied. With a target
    filter, only targets are counted, and the items of all events are repeated.

    Args:
        num_items: Items of the catalogue V - 1.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from seqrec import History, RecentItems, TrainingEvents
        >>> log = TrainingEvents(np.array([1, 3, 3]), None, np.array([0]), np.array([3]), num_items=4)
        >>> model = RecentItems(num_items=4)
        >>> model.count(log)
        >>> history = History(torch.tensor([[1, 2, 1, 4]]), torch.tensor([4]))
        >>> model.recommend(history, top_k=4, filter_seen=False).item_ids.tolist()
        [[4, 1, 2, 3]]
    """

    levels: Tensor

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.save_hyperparameters({"num_items": num_items})
        self.register_buffer("levels", torch.zeros(num_items + 1, dtype=torch.float64))

    def count(self, events: TrainingEvents) -> None:
        """See `Baseline.count`."""
        check_catalogue(self.title, len(self.levels) - 1, events)
        self.levels.copy_(torch.from_numpy(popularity_levels(events.item_counts())))

    def last_states(self, batch: SequenceBatch) -> Tensor:
        """Return (B, L) the window's items, newest first."""
        return newest_first(batch.history)

    def scorer(self) -> RecencyScorer:
        """See `Recommender.scorer`."""
        return RecencyScorer(self.levels)


class RecencyScorer(HistoryScorer):
    """Scores the items of a history of H events by the age a of their newest event: H - a, at least 1.

    All other items have `item_bias`, which must be below 1.
    """

    def score_chunk(self, states: Tensor, first: int, size: int) -> Tensor:
        """See `Scorer.score_chunk`; states (B, H) hold integers of any dtype."""
        history = states.long()
        scores = self.item_vectors[first : first + size, 0].repeat(len(states), 1)
        newness = torch.arange(history.shape[1], 0, -1, device=history.device, dtype=scores.dtype).expand(history.shape)
        places = history - first
        # Item 0, padding, is outside too.
        outside = (history == 0) | (places < 0) | (places >= size)
        return scores.scatter_reduce_(1, places.masked_fill(outside, 0), newness.masked_fill(outside, 0), "amax")
