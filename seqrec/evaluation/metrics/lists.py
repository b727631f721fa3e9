"""Metrics of all recommended lists together: coverage, Gini index, popularity, novelty. V = num_items + 1."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from seqrec.errors import InputError, check_at_least
from seqrec.types import Recommendations

# Metrics of lists without targets by their names in tables, in the order of tables.
LIST_METRICS = ("Coverage", "Gini", "Popularity", "Novelty", "Diversity", "Repeats", "Calibration")


class ListMetric(Metric, ABC):
    """A function of the number of lists with each item among their first k; exact on several processes.

    The state is one count for each item, (V,) int64, summed over processes. The count of item 0, places without an
    item, is never read. Every recommended item counts the same, so lists that end before k weigh less.

    Args:
        item_counts: (V,) training events of each item, from `SequenceDataModule.train_item_counts`; item 0 is padding.
        k: Number of items of each list that count, at least 1.

    Raises:
        InputError: if `k` is below 1, or the catalogue has no items.
    """

    full_state_update = False
    recommended: Tensor
    item_counts: Tensor

    def __init__(self, item_counts: Tensor, k: int) -> None:
        super().__init__()
        check_at_least(1, k=k)
        if len(item_counts) < 2:
            raise InputError(f"item_counts has {len(item_counts)} entries, expected one for padding and one an item")
        self.k = k
        self.register_buffer("item_counts", torch.as_tensor(item_counts), persistent=False)
        self.add_state("recommended", torch.zeros(len(item_counts), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, recommendations: Recommendations) -> None:
        """Add a batch of users.

        Raises:
            InputError: if lists are shorter than `k`, or an item is not in the catalogue.
        """
        counts = torch.bincount(first_items(recommendations, self.k).flatten(), minlength=len(self.recommended))
        if len(counts) > len(self.recommended):
            raise InputError(
                f"item {len(counts) - 1} was recommended, but item_counts ends at {len(self.recommended) - 1}"
            )
        self.recommended += counts

    @abstractmethod
    def compute(self) -> Tensor:
        """Return the metric, () float64."""

    def _mean(self, values: Tensor) -> Tensor:
        """Return the mean of the items' values (V,) over all recommendations; NaN before the first."""
        times = self.recommended[1:].double()
        return (times * values[1:].double()).sum() / times.sum()


class Coverage(ListMetric):
    """Coverage@k: share of the catalogue that is among the first k of at least one user."""

    def compute(self) -> Tensor:
        """Return the share."""
        return (self.recommended[1:] > 0).double().mean()


class Gini(ListMetric):
    """Gini@k: how unequally recommendations are spread over the catalogue; 0 is equally, 1 is always one item.

    Shani & Gunawardana 2011, Evaluating Recommendation Systems: `sum((2 j - n - 1) p(j)) / (n - 1)`
    over all n items of the catalogue, ascending by their share p of the recommendations. RecBole's `GiniIndex` divides
    by n instead, and Elliot's and RankSys' is 1 minus this one. A catalogue of one item has 0.
    """

    def compute(self) -> Tensor:
        """Return the index; NaN before the first item."""
        times = self.recommended[1:].sort().values.double()
        num_items = len(times)
        weights = 2 * torch.arange(1, num_items + 1, dtype=torch.float64, device=times.device) - num_items - 1
        return (weights * times).sum() / (max(num_items - 1, 1) * times.sum())


class MeanPopularity(ListMetric):
    """Popularity@k: mean number of training events of the recommended items."""

    def compute(self) -> Tensor:
        """Return the mean."""
        return self._mean(self.item_counts)


class Novelty(ListMetric):
    """Novelty@k: mean self-information `-log2 p(item)` of the recommended items, in bits.

    Zhou et al. 2010, Solving the apparent diversity-accuracy dilemma of recommender systems, with p(item) the
    item's share of training events, as in Vargas & Castells 2011, Rank and relevance in novelty and diversity
    metrics for recommender systems. An item without training events would be infinitely novel; it counts as
    having one event.
    """

    def compute(self) -> Tensor:
        """Return the mean, in bits."""
        return self._mean(self_information(self.item_counts))


def first_items(recommendations: Recommendations, k: int) -> Tensor:
    """Return the first k items (B, k) of lists; an `InputError` if these are shorter."""
    width = recommendations.item_ids.shape[1]
    if width < k:
        raise InputError(f"lists of {width} items cannot be judged at k={k}; recommend {k} or more")
    return recommendations.item_ids[:, :k]


def self_information(item_counts: Tensor) -> Tensor:
    """Return the self-information (V,) float64 of items in bits, by their training events; see `Novelty`."""
    counts = item_counts.double()
    return torch.log2(counts.sum().clamp_min(1) / counts.clamp_min(1))


def list_metrics(item_counts: Tensor, cutoffs: Sequence[int] = (10,)) -> MetricCollection:
    """Return Coverage@K, Popularity@K and Novelty@K, which share one vector of counts for each cutoff K.

    `item_counts` (V,) are the training events of each item.

    Raises:
        InputError: if a cutoff is below 1.
    """
    classes: dict[str, type[ListMetric]] = {"Coverage": Coverage, "Popularity": MeanPopularity, "Novelty": Novelty}
    metrics = {f"{title}@{k}": cls(item_counts, k) for k in cutoffs for title, cls in classes.items()}
    groups = [[f"{title}@{k}" for title in classes] for k in cutoffs]
    return MetricCollection(metrics, compute_groups=groups)  # type: ignore[arg-type]  # invariant dict
