"""Item neighbourhoods by co-occurrence."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec.errors import InputError, check_at_least
from seqrec.models.baselines.baseline import Baseline, check_catalogue
from seqrec.models.baselines.neighbors import NeighborScorer, fill_best, newest_first
from seqrec.models.baselines.pair_counts import pair_counts, user_counts
from seqrec.models.baselines.training_events import TrainingEvents
from seqrec.models.similar_items import ItemSimilarity
from seqrec.types import SequenceBatch


class ItemKNN(Baseline):
    """Ranks items by their similarity to the items of the history, newer ones weighing more.

    Cosine similarity of items as sets of users (Sarwar et al. 2001, Item-Based Collaborative Filtering
    Recommendation Algorithms, section 3.1.1, on implicit feedback). Each item keeps its `num_neighbors` most similar
    items (their model size, section 3.3):

        similarity(i, j) = users(i, j) / sqrt((users(i) + shrinkage) * (users(j) + shrinkage))

    `users(i, j)` counts the users with i and j at most `window` events apart in their training part, each user once.
    With a window as long as the longest history this is their cosine. With a short one it is that of sessions, the
    strong baseline of Jannach & Ludewig 2017 (When Recurrent Neural Networks Meet the Neighborhood for Session-Based
    Recommendation). The window also bounds the work: 2 `window` pairs per event, for any length of history.
    `score(j) = sum of 0.5^(a / half_life) * similarity(i_a, j)` over the events of the history, a events before the
    newest; a repeated item counts each time. Items near none of them tie at 0.

    With a target filter, i is an item of any event and j of a target; users(j) counts those with j as a target.

    Args:
        num_items: Items of the catalogue V - 1.
        num_neighbors: Neighbours K of each item; the table takes 8 V K bytes.
        window: Most events between two items that count as co-occurring, at least 1.
        shrinkage: Number added to each item's users, which lowers similarities of rare items (Hidasi et al. 2016,
            Session-based Recommendations with Recurrent Neural Networks, section 4). 0 is the plain cosine.
        half_life: Events after which an event weighs half; None gives all the same weight, as in 2001.

    Raises:
        InputError: if a value is out of range.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from seqrec import History, ItemKNN, TrainingEvents
        >>> users = [[1, 2, 3], [1, 2], [2, 3]]
        >>> starts = np.array([0, 3, 5])
        >>> log = TrainingEvents(np.concatenate(users), None, starts, np.array([3, 5, 7]), num_items=3)
        >>> model = ItemKNN(num_items=3, num_neighbors=2, shrinkage=0.0)
        >>> model.count(log)
        >>> model.recommend(History(torch.tensor([[1]]), torch.tensor([1])), top_k=1).item_ids.tolist()
        [[2]]
    """

    neighbors: Tensor
    similarities: Tensor

    def __init__(
        self,
        num_items: int,
        *,
        num_neighbors: int = 200,
        window: int = 10,
        shrinkage: float = 20.0,
        half_life: float | None = 2.0,
    ) -> None:
        super().__init__()
        check_at_least(1, num_neighbors=num_neighbors, window=window)
        if not 0 <= shrinkage < float("inf"):
            raise InputError(f"shrinkage={shrinkage} must be a number of at least 0; 0 is the plain cosine")
        if half_life is not None and not half_life > 0:
            raise InputError(f"half_life={half_life} must be above 0, or null to weigh all events the same")
        self.num_neighbors = num_neighbors
        self.window = window
        self.shrinkage = shrinkage
        self.half_life = half_life
        names = ("num_neighbors", "window", "shrinkage", "half_life")
        self.save_hyperparameters({"num_items": num_items, **{name: getattr(self, name) for name in names}})
        table = num_items + 1, num_neighbors
        self.register_buffer("neighbors", torch.zeros(table, dtype=torch.int32))
        self.register_buffer("similarities", torch.zeros(table, dtype=torch.float32))

    def count(self, events: TrainingEvents) -> None:
        """See `Baseline.count`."""
        check_catalogue(self.title, len(self.neighbors) - 1, events)
        fill_best(self.neighbors, self.similarities, self._similarities(events))

    def _similarities(
        self, events: TrainingEvents
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]]:
        """Yield similar pairs of items, all pairs of an item together, for `fill_best`."""
        norms = np.sqrt(user_counts(events) + self.shrinkage)
        # Of any event; equal unless targets are filtered.
        own = norms if events.targets is None else np.sqrt(user_counts(events.with_context) + self.shrinkage)
        after = np.arange(1, self.window + 1)
        for pairs in pair_counts(events, np.concatenate([-after, after]), once_a_user=True):
            others = pairs.anchors != pairs.others
            i, j, users = pairs.anchors[others], pairs.others[others], pairs.counts[others]
            similarities = users / (own[i] * norms[j])
            yield i, j, similarities, similarities

    def last_states(self, batch: SequenceBatch) -> Tensor:
        """Return (B, L) the window's items, newest first."""
        return newest_first(batch.history)

    def scorer(self) -> NeighborScorer:
        """See `Recommender.scorer`."""
        decay = 1.0 if self.half_life is None else 0.5 ** (1 / self.half_life)
        bias = self.similarities.new_zeros(len(self.similarities))
        return NeighborScorer(self.neighbors, self.similarities, bias, decay=decay)

    def item_similarity(self) -> ItemSimilarity:
        """Return the similarities that the model counted; items that are not among an item's neighbours have 0."""
        return ItemSimilarity(self.scorer(), lambda item_ids: item_ids.unsqueeze(1))
