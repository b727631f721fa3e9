from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from seqrec.errors import InputError
from seqrec.scoring import Scorer
from seqrec.types import SeenItems, TargetRanks

SEEDS = st.integers(0, 10_000)
# One chunk of the catalogue is at least 16 items.
BUDGETS = st.sampled_from([1, 80, 160, 10**6])


def small_integers(generator: torch.Generator, *shape: int) -> Tensor:
    """Floats whose products and sums are exact, so that ties are, too."""
    return torch.randint(-2, 3, shape, generator=generator).float()


def seen_items(sets: list[set[int]]) -> SeenItems:
    rows = torch.tensor([row for row, items in enumerate(sets) for _ in items], dtype=torch.int64)
    items = torch.tensor([item for items in sets for item in items], dtype=torch.int64)
    return SeenItems.from_events(rows, items, len(sets))


def random_sets(generator: torch.Generator, rows: int, num_items: int, share: float) -> list[set[int]]:
    chosen = torch.rand((rows, num_items), generator=generator) < share
    return [{item + 1 for item in row.nonzero().flatten().tolist()} for row in chosen]


def ranks_slowly(
    states: Tensor, item_vectors: Tensor, targets: Tensor, candidates: list[list[int]]
) -> tuple[list[int], list[int]]:
    """Better and tied candidates of each target, one comparison at a time."""
    better, tied = [], []
    for state, target, items in zip(states, targets.tolist(), candidates, strict=True):
        scores = {item: float(item_vectors[item] @ state) for item in [*items, target]}
        better.append(sum(not scores[item] <= scores[target] for item in items))
        tied.append(sum(scores[item] == scores[target] for item in items))
    return better, tied


def as_lists(ranks: TargetRanks) -> tuple[list[int], list[int]]:
    assert ranks.better.dtype == ranks.tied.dtype == torch.int64
    return ranks.better.tolist(), ranks.tied.tolist()


class TestTargetRanks:
    @settings(deadline=None)
    @given(SEEDS, st.integers(1, 5), st.integers(1, 70), BUDGETS, st.booleans(), st.booleans())
    def test_ranks_equal_a_loop_over_candidates(
        self, seed: int, rows: int, num_items: int, budget: int, with_nan: bool, filtered: bool
    ):
        generator = torch.Generator().manual_seed(seed)
        states = small_integers(generator, rows, 3)
        vectors = small_integers(generator, num_items + 1, 3)
        if with_nan:
            vectors[1 + seed % num_items] = math.nan
        targets = torch.randint(1, num_items + 1, (rows,), generator=generator)
        # Some of the targets are among the seen.
        sets = random_sets(generator, rows, num_items, 0.4)
        candidates = [
            [i for i in range(1, num_items + 1) if i != target and not (filtered and i in items)]
            for items, target in zip(sets, targets.tolist(), strict=True)
        ]
        seen = seen_items(sets) if filtered else None
        ranks = Scorer(vectors, score_budget=budget).target_ranks(states, targets, seen)
        assert as_lists(ranks) == ranks_slowly(states, vectors, targets, candidates)

    def test_a_target_that_was_seen_stays_a_candidate(self):
        vectors = torch.tensor([[0.0], [3.0], [2.0], [1.0]])
        ranks = Scorer(vectors).target_ranks(torch.ones(1, 1), torch.tensor([2]), seen_items([{1, 2}]))
        assert as_lists(ranks) == ([0], [0])

    def test_padding_is_no_candidate(self):
        vectors = torch.tensor([[9.0], [1.0], [0.0]])
        ranks = Scorer(vectors).target_ranks(torch.ones(1, 1), torch.tensor([1]))
        assert as_lists(ranks) == ([0], [0])

    def test_constant_scores_are_all_tied(self):
        ranks = Scorer(torch.zeros(101, 8), score_budget=50).target_ranks(
            torch.randn(3, 8), torch.tensor([1, 50, 100])
        )
        assert as_lists(ranks) == ([0, 0, 0], [99, 99, 99])

    @pytest.mark.parametrize("budget", [3 * 40, 10**6])
    @pytest.mark.parametrize("num_items", [100, 1003, 2047])
    def test_items_with_the_same_vector_are_tied_whatever_their_place(self, num_items: int, budget: int):
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(3, 50, generator=generator)
        vectors = torch.randn(1, 50, generator=generator).expand(num_items + 1, -1).contiguous()
        ranks = Scorer(vectors, score_budget=budget).target_ranks(states, torch.tensor([1, 50, num_items]))
        assert as_lists(ranks) == ([0, 0, 0], [num_items - 1] * 3)

    def test_not_a_number_never_makes_a_target_look_good(self):
        vectors = torch.tensor([[0.0], [math.nan], [2.0], [1.0]])
        ranks = Scorer(vectors).target_ranks(torch.ones(2, 1), torch.tensor([1, 2]))
        assert as_lists(ranks) == ([2, 1], [0, 0])

    def test_chunks_change_nothing_for_real_valued_scores(self):
        generator = torch.Generator().manual_seed(0)
        states, vectors = torch.randn(9, 16, generator=generator), torch.randn(301, 16, generator=generator)
        targets = torch.randint(1, 301, (9,), generator=generator)
        whole = Scorer(vectors).target_ranks(states, targets)
        chunked = Scorer(vectors, score_budget=9 * 37).target_ranks(states, targets)
        assert as_lists(chunked) == as_lists(whole)


class TestCandidateRanks:
    @settings(deadline=None)
    @given(SEEDS, st.integers(1, 5), st.integers(1, 9), st.booleans())
    def test_ranks_equal_a_loop_over_candidates(self, seed: int, rows: int, count: int, with_nan: bool):
        generator = torch.Generator().manual_seed(seed)
        states, vectors = small_integers(generator, rows, 3), small_integers(generator, 11, 3)
        if with_nan:
            vectors[1 + seed % 10] = math.nan
        targets = torch.randint(1, 6, (rows,), generator=generator)
        # A candidate drawn twice counts twice.
        candidates = torch.randint(6, 11, (rows, count), generator=generator)
        ranks = Scorer(vectors).candidate_ranks(states, targets, candidates)
        assert as_lists(ranks) == ranks_slowly(states, vectors, targets, candidates.tolist())

    def test_items_with_the_same_vector_are_tied(self):
        generator = torch.Generator().manual_seed(0)
        vectors = torch.randn(1, 50, generator=generator).expand(200, -1).contiguous()
        states = torch.randn(3, 50, generator=generator)
        candidates = torch.randint(2, 200, (3, 101), generator=generator)
        ranks = Scorer(vectors).candidate_ranks(states, torch.ones(3, dtype=torch.int64), candidates)
        assert as_lists(ranks) == ([0, 0, 0], [101, 101, 101])


class TestTopK:
    @settings(deadline=None)
    @given(SEEDS, st.integers(1, 5), st.integers(1, 70), BUDGETS, st.booleans(), st.data())
    def test_best_items_equal_a_sorted_list(
        self, seed: int, rows: int, num_items: int, budget: int, excluding: bool, data: st.DataObject
    ):
        k = data.draw(st.integers(1, num_items))
        generator = torch.Generator().manual_seed(seed)
        states, vectors = small_integers(generator, rows, 3), small_integers(generator, num_items + 1, 3)
        sets = random_sets(generator, rows, num_items, 0.6 if excluding else 0.0)
        user_ids = torch.arange(rows) + 7
        best = Scorer(vectors, score_budget=budget).top_k(
            states, k, user_ids, exclude=seen_items(sets) if excluding else None
        )
        assert best.user_ids.tolist() == user_ids.tolist()
        for row in range(rows):
            allowed = [item for item in range(1, num_items + 1) if item not in sets[row]]
            scores = {item: float(vectors[item] @ states[row]) for item in allowed}
            padding = max(k - len(allowed), 0)
            expected = sorted(scores.values(), reverse=True)[:k] + [-math.inf] * padding
            assert best.scores[row].tolist() == expected
            # Among equal scores any order will do, so the items are judged by their scores.
            items = best.item_ids[row].tolist()
            assert [scores[item] for item in items[: k - padding]] == expected[: k - padding]
            assert len(set(items[: k - padding])) == k - padding
            assert items[k - padding :] == [0] * padding

    def test_best_items_by_hand(self):
        vectors = torch.tensor([[99.0], [1.0], [4.0], [2.0], [3.0]])
        states = torch.tensor([[1.0], [-1.0]])
        best = Scorer(vectors, score_budget=4).top_k(
            states, 3, torch.tensor([5, 6]), exclude=seen_items([{2}, {1, 3}])
        )
        assert best.item_ids.tolist() == [[4, 3, 1], [4, 2, 0]]
        assert best.scores.tolist() == [[3.0, 2.0, 1.0], [-3.0, -4.0, -math.inf]]

    def test_excluding_items_leaves_the_item_vectors_alone(self):
        vectors = torch.eye(4)
        Scorer(vectors).top_k(torch.eye(4), 1, torch.arange(4), exclude=seen_items([{1}, {2}, {3}, {1}]))
        assert vectors.equal(torch.eye(4))

    @pytest.mark.parametrize("k", [-1, 0, 5])
    def test_a_length_out_of_range_is_refused(self, k: int):
        with pytest.raises(InputError, match=f"top_k={k} must be between 1 and num_items=4"):
            Scorer(torch.zeros(5, 2)).top_k(torch.zeros(1, 2), k, torch.tensor([1]))


class LargestResult(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_scores_of_all_users_for_the_whole_catalogue_are_never_held():
    rows, num_items, budget = 64, 1000, 64 * 20
    states, vectors = torch.randn(rows, 2), torch.randn(num_items + 1, 2)
    seen = seen_items([{row + 1, row + 2} for row in range(rows)])
    scorer = Scorer(vectors, score_budget=budget)
    with LargestResult() as largest:
        scorer.target_ranks(states, torch.arange(rows) + 1, seen)
        scorer.top_k(states, 5, torch.arange(rows), exclude=seen)
    assert 0 < largest.elements <= budget + rows * 5


@settings(deadline=None, max_examples=20)
@given(SEEDS)
def test_scores_are_dot_products(seed: int):
    generator = torch.Generator().manual_seed(seed)
    states, vectors = torch.randn(4, 3, generator=generator), torch.randn(9, 3, generator=generator)
    item_ids = torch.randint(1, 9, (4, 2), generator=generator)
    scores = Scorer(vectors).score(states, item_ids)
    for row in range(4):
        for column in range(2):
            expected = states[row] @ vectors[item_ids[row, column]]
            assert scores[row, column].item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_neither_ranks_nor_recommendations(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(4, 8, generator=generator).to(dtype)
    scorer = Scorer(torch.randn(400, 8, generator=generator))
    targets, users = torch.tensor([1, 50, 200, 399]), torch.arange(4)
    ranks, best = scorer.target_ranks(states, targets), scorer.top_k(states, 20, users)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ranks_under, best_under = scorer.target_ranks(states, targets), scorer.top_k(states, 20, users)
    assert as_lists(ranks_under) == as_lists(ranks)
    assert best_under.item_ids.tolist() == best.item_ids.tolist()
    assert best_under.scores.dtype == torch.float32
