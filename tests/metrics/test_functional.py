from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqrec.metrics import hit_rate, ndcg
from seqrec.types import TargetRanks

COUNTS = st.integers(0, 30)


def target_ranks(better: list[int], tied: list[int]) -> TargetRanks:
    return TargetRanks(torch.tensor(better), torch.tensor(tied))


def possible_ranks(better: int, tied: int) -> range:
    """The target's rank, from 1, in each of the equally likely orders of the tied: once for each place."""
    return range(better + 1, better + tied + 2)


@given(st.lists(st.tuples(COUNTS, COUNTS), min_size=1, max_size=5), st.integers(1, 40))
def test_hit_rate_is_the_share_of_tie_orders_that_hit(users: list[tuple[int, int]], k: int):
    found = hit_rate(target_ranks([b for b, _ in users], [t for _, t in users]), k)
    expected = [float(Fraction(sum(rank <= k for rank in possible_ranks(b, t)), t + 1)) for b, t in users]
    assert found.dtype == torch.float64
    assert found.tolist() == expected


@given(st.lists(st.tuples(COUNTS, COUNTS), min_size=1, max_size=5), st.integers(1, 40))
def test_ndcg_is_the_mean_gain_over_tie_orders(users: list[tuple[int, int]], k: int):
    found = ndcg(target_ranks([b for b, _ in users], [t for _, t in users]), k)
    expected = [
        sum(1 / math.log2(1 + rank) for rank in possible_ranks(b, t) if rank <= k) / (t + 1) for b, t in users
    ]
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_worked_example():
    # Ranks 1, 3, 10, 11 and one that shares the places 10 and 11 with one tied candidate.
    ranks = target_ranks([0, 2, 9, 10, 9], [0, 0, 0, 0, 1])
    assert hit_rate(ranks, 10).tolist() == [1, 1, 1, 0, 0.5]
    assert ndcg(ranks, 10).tolist() == pytest.approx(
        [1, 0.5, 1 / math.log2(11), 0, 0.5 / math.log2(11)], abs=1e-12
    )


def test_constant_scores_give_what_chance_gives():
    # 101 candidates, all tied.
    ranks = target_ranks([0], [100])
    for k in (1, 5, 10, 101):
        assert hit_rate(ranks, k).item() == pytest.approx(k / 101, abs=1e-15)
    expected = sum(1 / math.log2(1 + rank) for rank in range(1, 11)) / 101
    assert ndcg(ranks, 10).item() == pytest.approx(expected, abs=1e-12)


def test_a_list_longer_than_the_candidates_always_hits():
    assert hit_rate(target_ranks([3, 0], [1, 4]), 50).tolist() == [1, 1]
