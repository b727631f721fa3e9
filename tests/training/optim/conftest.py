from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


class Mixed(nn.Module):
    """A sparse table of items, a dense one of positions and a layer."""

    def __init__(self, rows: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.items = nn.Embedding(rows, width, padding_idx=0, sparse=True, dtype=dtype)
        self.positions = nn.Embedding(4, width)
        self.layer = nn.Linear(width, 2)

    def forward(self, item_ids: Tensor) -> Tensor:
        x = self.items(item_ids).float() + self.positions.weight[: item_ids.shape[1]]
        return self.layer(x).square().mean()


@pytest.fixture
def make_mixed() -> Callable[..., Mixed]:
    def make(*, seed: int = 0, rows: int = 30, width: int = 5, dtype: torch.dtype = torch.float32) -> Mixed:
        torch.manual_seed(seed)
        return Mixed(rows, width, dtype)

    return make


@pytest.fixture
def item_batches() -> Callable[[int], list[Tensor]]:
    """Batches (3, 4) of item ids below 30, with repeated items and padding."""

    def draw(count: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(5)
        return [torch.randint(0, 12, (3, 4), generator=generator) for _ in range(count)]

    return draw
