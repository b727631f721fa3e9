"""First-order Markov chain over items."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec.errors import check_at_least
from seqrec.models.baselines.baseline import Baseline, check_catalogue
from seqrec.models.baselines.neighbors import NeighborScorer, fill_best
from seqrec.models.baselines.pair_counts import pair_counts
from seqrec.models.baselines.training_events import TrainingEvents
from seqrec.types import SequenceBatch


class Markov(Baseline):
    """Ranks items by how often they directly follow the user's newest item in training sequences.

    The maximum-likelihood chain that Rendle et al. 2010 (Factorizing Personalized Markov Chains for Next-Basket
    Recommendation, section 4) start from, one for all users. `score(j) = count(last item -> j) + level(j)`, with
    `level` the place of j's popularity among all popularities that occur, scaled to 0 <= level < 1. Transitions
    come first; popularity orders equal counts and all items that never followed. Items that are equal in both are
    tied. An item may follow itself. With a target filter, only targets are counted, as successors of any event.

    Args:
        num_items: Items of the catalogue V - 1.
        num_successors: Most frequent successors K of each item, the more popular of equally frequent ones; the table
            takes 8 V K bytes. Keep more than are recommended if seen items are filtered, as many of them are seen.

    Raises:
        InputError: if `num_successors` is below 1.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from seqrec import History, Markov, TrainingEvents
        >>> log = TrainingEvents(np.array([1, 2, 3, 1, 2]), None, np.array([0, 3]), np.array([3, 5]), num_items=3)
        >>> model = Markov(num_items=3)
        >>> model.count(log)
        >>> model.recommend(History(torch.tensor([[1]]), torch.tensor([1])), top_k=1).item_ids.tolist()
        [[2]]
    """

    successors: Tensor
    transition_counts: Tensor
    levels: Tensor

    def __init__(self, num_items: int, *, num_successors: int = 200) -> None:
        super().__init__()
        check_at_least(1, num_successors=num_successors)
        self.save_hyperparameters({"num_items": num_items, "num_successors": num_successors})
        self.num_successors = num_successors
        table = num_items + 1, num_successors
        self.register_buffer("successors", torch.zeros(table, dtype=torch.int32))
        self.register_buffer("transition_counts", torch.zeros(table, dtype=torch.int32))
        self.register_buffer("levels", torch.zeros(num_items + 1, dtype=torch.float64))

    def count(self, events: TrainingEvents) -> None:
        """See `Baseline.count`."""
        check_catalogue(self.title, len(self.levels) - 1, events)
        levels = popularity_levels(events.item_counts())
        next_event = np.ones(1, dtype=np.int64)
        found = (
            (pairs.anchors, pairs.others, pairs.counts, pairs.counts + levels[pairs.others])
            for pairs in pair_counts(events, next_event, once_a_user=False)
        )
        fill_best(self.successors, self.transition_counts, found)
        self.levels.copy_(torch.from_numpy(levels))

    def last_states(self, batch: SequenceBatch) -> Tensor:
        """Return (B, 1) the newest item."""
        return batch.history.item_ids.gather(1, (batch.history.lengths - 1).unsqueeze(1))

    def scorer(self) -> NeighborScorer:
        """See `Recommender.scorer`."""
        return NeighborScorer(self.successors, self.transition_counts, self.levels)


def popularity_levels(item_counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (V,) the place of each item's count among the distinct counts, 0 for the rarest, scaled to below 1.

    Counts with the sum E take at most sqrt(2 E) distinct values. Whole numbers up to E plus a level therefore keep
    every order in float64 for any E up to 2^34.
    """
    _, places = np.unique(item_counts[1:], return_inverse=True)
    levels = np.zeros(len(item_counts))
    levels[1:] = places / (places.max() + 1)
    return levels
