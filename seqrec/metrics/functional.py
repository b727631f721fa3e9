"""Ranking metrics of one relevant item a user, as pure functions of ranks; ties by the mean over their orders."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.types import TargetRanks


def hit_rate(ranks: TargetRanks, k: int) -> Tensor:
    """(B,) float64, probability that the target is among the first `k` when ties are ordered at random."""
    places = ranks.tied.double() + 1
    return (k - ranks.better.double()).clamp_min(0).minimum(places) / places


def ndcg(ranks: TargetRanks, k: int) -> Tensor:
    """(B,) float64, `1 / log2(1 + rank)` if rank <= k, else 0; mean over the orders of ties.

    With one relevant item the ideal gain is 1, so this is DCG@k and NDCG@k at once (Järvelin & Kekäläinen 2002).
    """
    positions = torch.arange(1, k + 1, dtype=torch.float64, device=ranks.better.device)
    gains = torch.cat([positions.new_zeros(1), (1 / torch.log2(1 + positions)).cumsum(0)])
    first, last = ranks.better.clamp_max(k), (ranks.better + ranks.tied + 1).clamp_max(k)
    return (gains[last] - gains[first]) / (ranks.tied.double() + 1)
