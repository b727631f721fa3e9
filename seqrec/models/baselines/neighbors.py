"""Scores from histories, by a table of each item's neighbours. B users, H events, K neighbours, V = num_items + 1,
M positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.types import History

# Neighbours that are looked up at a time.
LOOKUPS = 1 << 20


class HistoryScorer(Scorer):
    """Scores items from histories: a state is a history as item ids, newest first, and a subclass scores chunks.

    Args:
        item_bias: (V,) floating, the scores of items for an empty history; scores have its dtype.
    """

    def __init__(self, item_bias: Tensor) -> None:
        super().__init__(item_bias.unsqueeze(1))

    def score(self, states: Tensor, item_ids: Tensor) -> Tensor:
        """Return scores (M, C) of items (M, C) for states (M, H); those of item 0 mean nothing."""
        rows = max(1, self.score_budget // self.num_items)
        scores = []
        for begin in range(0, len(states), rows):
            columns = (item_ids[begin : begin + rows] - 1).clamp_min(0)
            scores.append(self.score_chunk(states[begin : begin + rows], 1, self.num_items).gather(1, columns))
        return torch.cat(scores)

    def cast(self, states: Tensor) -> Tensor:
        """Return states as float64, which represents every item id."""
        return states.double()

    def rounding(self, states: Tensor) -> None:
        """Return None: equal terms are summed in one order, so equal scores are equal numbers."""


class NeighborScorer(HistoryScorer):
    """Sums the weights of the neighbours of a history's items.

    `score(u, j) = bias_j + sum_a decay^a weight(item_a, j)`, over the ages a = 0, 1, .. in events. `weight` is 0 for
    items that are not neighbours.

    Args:
        neighbor_ids: (V, K) integers, neighbours of each item; 0 is none. Row 0 is all 0.
        neighbor_weights: (V, K).
        item_bias: (V,) floating; scores have its dtype.
        decay: Weight of an event relative to the next one, above 0 and at most 1.
    """

    def __init__(
        self, neighbor_ids: Tensor, neighbor_weights: Tensor, item_bias: Tensor, *, decay: float = 1.0
    ) -> None:
        super().__init__(item_bias)
        self.neighbor_ids = neighbor_ids
        self.neighbor_weights = neighbor_weights
        self.decay = decay

    def score_chunk(self, states: Tensor, first: int, size: int) -> Tensor:
        """See `Scorer.score_chunk`; states (B, H) hold integers of any dtype."""
        history = states.long()
        scores = self.item_vectors[first : first + size, 0].repeat(len(states), 1)
        columns = max(1, LOOKUPS // max(1, len(states) * self.neighbor_ids.shape[1]))
        for begin in range(0, history.shape[1], columns):
            items = history[:, begin : begin + columns]
            ages = torch.arange(begin, begin + items.shape[1], device=items.device)
            decays = (self.decay ** ages.to(scores.dtype)).unsqueeze(1)
            weights = (self.neighbor_weights[items].to(scores.dtype) * decays).flatten(1)
            places = self.neighbor_ids[items].flatten(1).long() - first
            outside = (places < 0) | (places >= size)
            # Items outside add 0 to the chunk's first item.
            scores.scatter_add_(1, places.masked_fill_(outside, 0), weights.masked_fill_(outside, 0))
        return scores


def newest_first(history: History) -> Tensor:
    """Return (B, L) item ids of a history from the newest event back, 0 after the oldest."""
    ages = torch.arange(history.item_ids.shape[1], device=history.item_ids.device)
    places = history.lengths.unsqueeze(1) - 1 - ages
    return history.item_ids.gather(1, places.clamp_min(0)).masked_fill(places < 0, 0)


def fill_best(
    neighbor_ids: Tensor,
    neighbor_weights: Tensor,
    found: Iterable[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.generic], NDArray[np.float64]]],
) -> None:
    """Replace tables by the K best neighbours of each item, best first, and zeros.

    Args:
        neighbor_ids: (V, K), on any device.
        neighbor_weights: (V, K).
        found: Columns anchor, neighbour, weight and the value that orders an anchor's neighbours. Anchors ascend, each
            is whole in one part, and its neighbours ascend. Among equal values the smaller item id comes first.
    """
    k = neighbor_ids.shape[1]
    best_ids, best_weights = (torch.zeros_like(x, device="cpu").numpy() for x in (neighbor_ids, neighbor_weights))
    for anchors, others, weights, values in found:
        bounds = [*np.flatnonzero(np.diff(anchors, prepend=-1)).tolist(), len(anchors)]
        for begin, end in itertools.pairwise(bounds):
            own = values[begin:end]
            # Only the K best items of a long list are sorted.
            kept = np.arange(len(own)) if len(own) <= k else np.flatnonzero(own >= np.partition(own, -k)[-k])
            best = begin + kept[np.argsort(-own[kept], kind="stable")[:k]]
            anchor = anchors[begin]
            best_ids[anchor, : len(best)] = others[best]
            best_weights[anchor, : len(best)] = weights[best]
    neighbor_ids.copy_(torch.from_numpy(best_ids))
    neighbor_weights.copy_(torch.from_numpy(best_weights))
