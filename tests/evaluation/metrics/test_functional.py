from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from target_problems import NAIVE, User, judged, judged_of, mean_over_orders, users
from torch import Tensor

from seqrec.errors import InputError
from seqrec.evaluation.metrics import hit_rate, mrr, ndcg, precision, recall
from seqrec.types import JudgedTargets

METRICS: dict[str, Callable[[JudgedTargets, int], Tensor]] = {
    "HR": hit_rate,
    "MRR": mrr,
    "Recall": recall,
    "Precision": precision,
    "achievable": ndcg,
    "cutoff": lambda judged, k: ndcg(judged, k, "cutoff"),
    "none": lambda judged, k: ndcg(judged, k, "none"),
}


@pytest.mark.parametrize("name", METRICS)
@settings(deadline=None, max_examples=60)
@given(users=users(), k=st.integers(1, 8))
def test_metrics_are_means_over_all_orders_of_the_tied(name: str, users: list[User], k: int):
    found = METRICS[name](judged_of(users), k)
    assert found.dtype == torch.float64
    expected = [mean_over_orders(user, lambda ranks: NAIVE[name](ranks, k)) for user in users]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


COUNTS = st.integers(0, 30)


@given(st.lists(st.tuples(COUNTS, COUNTS), min_size=1, max_size=5), st.integers(1, 40))
def test_with_one_target_each_the_hit_rate_is_exact_and_ndcg_divides_by_nothing(ranks: list[tuple[int, int]], k: int):
    targets = judged([b for b, _ in ranks], [t for _, t in ranks])
    # The target's rank is each of better + 1 .. better + tied + 1 with the same probability.
    hits = [Fraction(sum(b + 1 + step <= k for step in range(t + 1)), t + 1) for b, t in ranks]
    assert hit_rate(targets, k).tolist() == [float(share) for share in hits]
    assert recall(targets, k).tolist() == [float(share) for share in hits]
    assert torch.equal(ndcg(targets, k), ndcg(targets, k, "none"))


def test_worked_example_of_one_target_each():
    # Ranks 1, 3, 10, 11 and one that shares the places 10 and 11 with one tied candidate.
    targets = judged([0, 2, 9, 10, 9], [0, 0, 0, 0, 1])
    assert hit_rate(targets, 10).tolist() == [1, 1, 1, 0, 0.5]
    assert mrr(targets, 10).tolist() == pytest.approx([1, 1 / 3, 0.1, 0, 0.05], abs=1e-15)
    tenth = 1 / math.log2(11)
    assert ndcg(targets, 10).tolist() == pytest.approx([1, 0.5, tenth, 0, tenth / 2], abs=1e-12)
    assert ndcg(targets, 10, "cutoff")[0].item() == pytest.approx(1 / 4.5436, abs=1e-5)


def test_worked_example_of_several_targets():
    # One user whose targets stand on 1, 2 and 5; one with two targets among four tied, of which two are inside.
    targets = judged([0, 1, 4, 1, 1], [0, 0, 0, 3, 3], rows=[0, 0, 0, 1, 1])
    assert hit_rate(targets, 3).tolist() == pytest.approx([1, 1 - 1 / 6], abs=1e-12)
    assert recall(targets, 3).tolist() == pytest.approx([2 / 3, 0.5], abs=1e-12)
    assert precision(targets, 3).tolist() == pytest.approx([2 / 3, 1 / 3], abs=1e-12)
    # The first of the two stands on place 2 with probability 1/2, on 3 with 1/3.
    assert mrr(targets, 3).tolist() == pytest.approx([1, 1 / 4 + 1 / 9], abs=1e-12)
    best = 1 + 1 / math.log2(3) + 0.5
    assert ndcg(targets, 3)[0].item() == pytest.approx((1 + 1 / math.log2(3)) / best, abs=1e-12)


def test_constant_scores_give_what_chance_gives():
    # 101 candidates, all tied: one target, and five of them.
    one, five = judged([0], [100]), judged([0] * 5, [100] * 5, rows=[0] * 5)
    for k in (1, 5, 10, 101):
        assert hit_rate(one, k).item() == pytest.approx(k / 101, abs=1e-15)
        assert hit_rate(five, k).item() == pytest.approx(1 - math.comb(96, k) / math.comb(101, k), abs=1e-12)
        assert recall(five, k).item() == pytest.approx(k / 101, abs=1e-12)
        assert precision(five, k).item() == pytest.approx(5 / 101, abs=1e-12)
    gains = [1 / math.log2(1 + rank) for rank in range(1, 11)]
    assert ndcg(one, 10).item() == pytest.approx(sum(gains) / 101, abs=1e-12)
    assert ndcg(five, 10).item() == pytest.approx(5 * sum(gains) / 101 / sum(gains[:5]), abs=1e-12)


def test_a_list_longer_than_the_candidates_always_hits():
    assert hit_rate(judged([3, 0], [1, 4]), 50).tolist() == [1, 1]
    assert recall(judged([3, 0, 1], [1, 1, 0], rows=[0, 1, 1]), 50).tolist() == [1, 1]


def test_an_unknown_normaliser_is_refused():
    with pytest.raises(InputError, match="normaliser='ideal' must be one of achievable, cutoff, none"):
        ndcg(judged([0]), 10, "ideal")
