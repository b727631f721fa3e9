"""Users, counts and counting for tests of samplers."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.types import SeenItems


def seen_items(sets: list[set[int]]) -> SeenItems:
    """What users have seen, one set a user."""
    rows = torch.tensor([row for row, items in enumerate(sets) for _ in items], dtype=torch.int64)
    items = torch.tensor([item for items in sets for item in items], dtype=torch.int64)
    return SeenItems.from_events(rows, items, len(sets))


def grid(points: int) -> Tensor:
    """Numbers (1, points) in the middle of equal parts of [0, 1)."""
    return ((torch.arange(points, dtype=torch.float64) + 0.5) / points).unsqueeze(0)


def surprise(item_ids: Tensor, probabilities: Tensor) -> float:
    """Standard errors by which the chi-square statistic of draws (any shape) exceeds its mean.

    Args:
        item_ids: Draws, or bins of draws.
        probabilities: (V,) those of items or bins; the impossible must not have been drawn.
    """
    found = item_ids.flatten().bincount(minlength=len(probabilities)).double()
    possible = probabilities > 0
    assert found[~possible].sum() == 0
    expected = probabilities[possible] * item_ids.numel()
    assert expected.min() > 5, "too few draws for a chi-square test"
    freedom = int(possible.sum()) - 1
    statistic = ((found[possible] - expected) ** 2 / expected).sum()
    return float((statistic - freedom) / (2 * freedom) ** 0.5)
