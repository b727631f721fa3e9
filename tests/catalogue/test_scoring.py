from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from seqrec.catalogue.scorer import Scorer
from seqrec.errors import InputError
from seqrec.types import SeenItems

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
        best = Scorer(vectors, score_budget=4).top_k(states, 3, torch.tensor([5, 6]), exclude=seen_items([{2}, {1, 3}]))
        assert best.item_ids.tolist() == [[4, 3, 1], [4, 2, 0]]
        assert best.scores.tolist() == [[3.0, 2.0, 1.0], [-3.0, -4.0, -math.inf]]

    @pytest.mark.parametrize("budget", [1, 12, 1000])
    def test_blocking_items_excludes_them_for_everybody(self, budget: int):
        states, vectors = torch.randn(3, 4), torch.randn(11, 4)
        scorer, seen = Scorer(vectors, score_budget=budget), [{1, 3}, {5}, set()]
        blocked = scorer.top_k(states, 9, torch.arange(3), exclude=seen_items(seen), blocked=torch.tensor([2, 3, 10]))
        excluded = scorer.top_k(states, 9, torch.arange(3), exclude=seen_items([s | {2, 3, 10} for s in seen]))
        assert blocked.item_ids.equal(excluded.item_ids)
        assert blocked.scores.equal(excluded.scores)

    def test_what_is_no_number_is_left_out(self):
        vectors = torch.tensor([[0.0], [1.0], [math.nan], [3.0]])
        best = Scorer(vectors).top_k(torch.tensor([[1.0], [math.nan]]), 3, torch.arange(2))
        assert best.item_ids.tolist() == [[3, 1, 0], [0, 0, 0]]

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
def test_autocast_does_not_change_recommendations(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(4, 8, generator=generator).to(dtype)
    scorer, users = Scorer(torch.randn(400, 8, generator=generator)), torch.arange(4)
    best = scorer.top_k(states, 20, users)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        best_under = scorer.top_k(states, 20, users)
    assert best_under.item_ids.tolist() == best.item_ids.tolist()
    assert best_under.scores.dtype == torch.float32


class TestRounding:
    @pytest.mark.parametrize("width", [2, 64, 300])
    def test_no_score_lies_further_from_the_precise_one_than_the_bound(self, width: int):
        generator = torch.Generator().manual_seed(width)
        # RecommendOptions of very different size cancel out, so that the order of summation shows.
        vectors = torch.randn(500, width, generator=generator) * 10.0 ** torch.arange(width).remainder(7)
        states = torch.randn(40, width, generator=generator)
        scorer = Scorer(vectors)
        bound = scorer.rounding(states)
        assert bound.shape == (40,)
        rows, items = torch.meshgrid(torch.arange(40), torch.arange(1, 500), indexing="ij")
        precise = scorer.precise_scores(states[rows.flatten()], items.flatten()).view(40, 499)
        for scores in (scorer.score_chunk(states, 1, 499), scorer.score(states, items)):
            assert ((scores - precise).abs() <= bound.unsqueeze(1)).all()
        assert (scores != precise).any()

    def test_scores_of_one_product_are_exact(self):
        assert Scorer(torch.randn(5, 1)).rounding(torch.randn(2, 1)) is None

    def test_what_is_not_finite_leaves_the_bound_of_others_alone(self):
        vectors, states = torch.randn(9, 4), torch.randn(3, 4)
        expected = Scorer(vectors).rounding(states)
        states[1, 0] = math.inf
        found = Scorer(torch.cat([vectors, vectors.new_full((1, 4), math.nan)])).rounding(states)
        assert found[[0, 2]].equal(expected[[0, 2]])
        assert found[1] == 0

    def test_coarser_products_have_a_larger_bound(self):
        states, scorer = torch.randn(3, 4), Scorer(torch.randn(9, 4))
        exact = scorer.rounding(states)
        before = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("high")
            # Ten bits remain of each of two factors.
            assert (scorer.rounding(states) > exact + 2.0**-10 * states.norm(dim=1)).all()
        finally:
            torch.set_float32_matmul_precision(before)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_scores_of_half_precision_tables_have_single_precision(self, dtype: torch.dtype):
        vectors, states = torch.randn(9, 4).to(dtype), torch.randn(3, 4).to(dtype)
        scores = Scorer(vectors).score_chunk(states, 1, 8)
        assert scores.equal(states.float() @ vectors[1:].float().T)


@pytest.mark.parametrize(
    "settings", [{"sparse": True}, {"unit_columns": 3}, {"sparse": True, "unit_columns": 3}], ids=str
)
@pytest.mark.parametrize("budget", [0, 1 << 25])
def test_gathered_vectors_are_those_of_a_device_that_does_not_look_for_repeats(
    settings: dict[str, Any], budget: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("seqrec.catalogue.scorer.REPEATED_NUMBERS", budget)
    item_ids, states, found = torch.tensor([[3, 1], [3, 0], [5, 3]]), torch.randn(3, 4), []
    table = torch.randn(6, 4).index_fill_(0, torch.tensor(0), 0)
    for looks in (True, False):
        monkeypatch.setattr("seqrec.catalogue.scorer.sums_at_lookup", lambda device, looks=looks: looks)
        leaf = table.clone().requires_grad_()
        scores = Scorer(leaf, **settings).score(states, item_ids)
        scores.square().sum().backward()
        assert leaf.grad is not None
        found.append((scores.detach(), leaf.grad.to_dense()[1:]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
