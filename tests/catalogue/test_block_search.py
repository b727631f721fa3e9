"""Searches by blocks: the items of a full sort, the memory of a block, and no wait for a GPU in each of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tape import waits_for_gpu
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from seqrec.benchmark.measurement import peak_bytes
from seqrec.catalogue import block_search
from seqrec.catalogue.block_search import best_of_blocks, disallowed_items
from seqrec.catalogue.scorer import Scorer
from seqrec.ops.best_items import best_items
from seqrec.types import SeenItems


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search of a GPU."""
    monkeypatch.setenv("SEQREC_BEST_ITEMS_BACKEND", "reference")


def seen_items(draws: torch.Generator, users: int, num_items: int, share: float) -> SeenItems:
    rows, items = (torch.rand((users, num_items), generator=draws) < share).nonzero(as_tuple=True)
    return SeenItems.from_events(rows, items + 1, users)


def scores_of(vectors: Tensor) -> Any:
    return lambda states, first, size: states @ vectors[first : first + size].T


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10_000), users=st.integers(1, 7), num_items=st.integers(1, 60), at_a_time=st.integers(1, 8),
    budget=st.sampled_from([1, 30, 100, 10**6]), excluding=st.booleans(), blocking=st.booleans(),
    choosing=st.booleans(), strange=st.booleans(), data=st.data(),
)  # fmt: skip
def test_the_best_are_those_of_a_full_sort(
    seed: int, users: int, num_items: int, at_a_time: int, budget: int, excluding: bool, blocking: bool,
    choosing: bool, strange: bool, data: st.DataObject,
):  # fmt: skip
    k, draws = data.draw(st.integers(1, num_items)), torch.Generator().manual_seed(seed)
    # Sums are exact, so there are ties.
    states = torch.randint(-2, 3, (users, 3), generator=draws).float()
    vectors = torch.randint(-2, 3, (num_items + 1, 3), generator=draws).float()
    if strange:
        vectors[int(torch.randint(1, num_items + 1, (1,), generator=draws))] = torch.tensor([math.nan, 1, 1])
    some = torch.rand(2, num_items, generator=draws) < 0.4
    blocked, allowed = (
        each.nonzero().flatten() + 1 if on else None for each, on in zip(some, (blocking, choosing), strict=True)
    )
    exclude = seen_items(draws, users, num_items, 0.5) if excluding else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_search, "USERS", at_a_time)
        item_ids, scores = best_of_blocks(
            scores_of(vectors), num_items, states, k, budget=budget, exclude=exclude,
            disallowed=disallowed_items(num_items, blocked, allowed),
        )  # fmt: skip
    expected, _ = best_items(
        states, vectors, k, excluded=exclude, blocked=blocked, allowed=allowed, backend="reference"
    )
    assert torch.equal(scores, expected)
    # Of equal scores any item will do, so they are judged by their scores.
    every = states @ vectors.T
    for row in range(users):
        found = item_ids[row][item_ids[row] > 0]
        assert torch.equal(every[row, found], scores[row, : len(found)])
        assert len(found.unique()) == len(found) == int((expected[row] > -math.inf).sum())
        own = (
            set()
            if exclude is None
            else set(exclude.item_ids[exclude.offsets[row] : exclude.offsets[row + 1]].tolist())
        )
        assert not own.intersection(found.tolist())
        assert blocked is None or not set(blocked.tolist()).intersection(found.tolist())
        assert allowed is None or set(allowed.tolist()).issuperset(found.tolist())


class Watch(TorchDispatchMode):
    """Counts operations for which Python waits for a GPU, and remembers the most elements that one returns."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.waits += waits_for_gpu(func, args, kwargs)
        result = func(*args, **kwargs)
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("num_items", [1000, 20_000])
def test_a_block_is_the_most_that_is_held_and_a_gpu_is_waited_for_once(num_items: int, without_library: None):
    users, budget, k = 64, 64 * 50, 5
    draws = torch.Generator().manual_seed(0)
    states, vectors = torch.randn(users, 2, generator=draws), torch.randn(num_items + 1, 2, generator=draws)
    exclude = seen_items(draws, users, 1000, 0.01)
    blocked = torch.arange(1, 20)
    with Watch() as watch:
        Scorer(vectors, score_budget=budget).top_k(states, k, torch.arange(users), exclude=exclude, blocked=blocked)
    # The table itself is larger, but only read.
    assert 0 < watch.elements <= max(budget, num_items + 1)
    assert watch.waits == 1


def test_memory_does_not_grow_with_the_catalogue(without_library: None):
    users, budget = 256, 1 << 19
    states, peaks = torch.randn(users, 8), []
    for num_items in (20_000, 200_000):
        scorer = Scorer(torch.randn(num_items + 1, 8), score_budget=budget)

        def search(scorer: Scorer = scorer) -> None:
            scorer.top_k(states, 10, torch.arange(users))

        search()
        peaks.append(peak_bytes(search, torch.device("cpu")))
    # All scores are 195 MiB for the large catalogue, a block is 2 MiB.
    assert max(peaks) < 16 << 20
