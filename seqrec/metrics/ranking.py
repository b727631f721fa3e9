"""Ranking metrics as torchmetrics classes that keep two numbers, whatever the number of users."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torchmetrics import Metric

from seqrec.errors import InputError
from seqrec.metrics.functional import hit_rate, ndcg
from seqrec.types import TargetRanks


class RankMetric(Metric, ABC):
    """Mean over users of a function of their target's rank; exact under distribution.

    Args:
        k: Length of the list that is judged, at least 1.

    Raises:
        InputError: `k` below 1.
    """

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self, k: int) -> None:
        super().__init__()
        if k < 1:
            raise InputError(f"k={k} must be at least 1")
        self.k = k
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def per_user(self, ranks: TargetRanks) -> Tensor:
        """(B,) float64, the metric of each user."""

    def update(self, ranks: TargetRanks) -> None:
        """Add a batch of users."""
        self.total += self.per_user(ranks).sum()
        self.count += len(ranks.better)

    def compute(self) -> Tensor:
        """Mean over all users so far, float64; NaN before the first."""
        return self.total / self.count


class HitRate(RankMetric):
    """HR@k: share of users whose target is among the first k."""

    def per_user(self, ranks: TargetRanks) -> Tensor:
        """See `seqrec.metrics.hit_rate`."""
        return hit_rate(ranks, self.k)


class NDCG(RankMetric):
    """NDCG@k with one relevant item a user."""

    def per_user(self, ranks: TargetRanks) -> Tensor:
        """See `seqrec.metrics.ndcg`."""
        return ndcg(ranks, self.k)
