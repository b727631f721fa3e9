from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec.errors import InputError
from seqrec.metrics import NDCG, HitRate, RankMetric, hit_rate, ndcg
from seqrec.types import TargetRanks

METRICS = [(HitRate, hit_rate), (NDCG, ndcg)]
USERS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), min_size=1, max_size=20)


def target_ranks(users: list[tuple[int, int]]) -> TargetRanks:
    return TargetRanks(torch.tensor([b for b, _ in users]), torch.tensor([t for _, t in users]))


@pytest.mark.parametrize(("metric_class", "function"), METRICS)
@settings(deadline=None, max_examples=30)
@given(users=USERS, batch_size=st.integers(1, 7), k=st.integers(1, 20))
def test_batches_added_up_give_the_mean_over_all_users(metric_class, function, users, batch_size, k):
    metric: RankMetric = metric_class(k)
    for first in range(0, len(users), batch_size):
        metric.update(target_ranks(users[first : first + batch_size]))
    assert metric.compute().item() == pytest.approx(function(target_ranks(users), k).mean().item(), abs=1e-12)


@pytest.mark.parametrize(("metric_class", "function"), METRICS)
def test_ranks_with_unlike_numbers_of_users_merge_to_the_mean_over_all(metric_class, function):
    users = [(0, 0), (4, 2), (9, 3), (30, 0), (2, 1)]
    first, second = metric_class(10), metric_class(10)
    first.update(target_ranks(users[:1]))
    second.update(target_ranks(users[1:3]))
    second.update(target_ranks(users[3:]))
    first.merge_state(second)
    assert first.compute().item() == pytest.approx(function(target_ranks(users), 10).mean().item(), abs=1e-12)


@pytest.mark.parametrize(("metric_class", "_"), METRICS)
def test_state_is_two_sums_whatever_the_number_of_users(metric_class, _):
    metric = metric_class(10)
    for _batch in range(3):
        metric.update(target_ranks([(1, 0)] * 1000))
    assert {name: state.shape for name, state in metric.metric_state.items()} == {"total": (), "count": ()}
    assert set(metric._reductions.values()) == {torch.sum} or all(
        reduction.__name__ == "dim_zero_sum" for reduction in metric._reductions.values()
    )


@pytest.mark.parametrize(("metric_class", "_"), METRICS)
def test_reset_forgets_and_pickling_keeps(metric_class, _):
    metric = metric_class(10)
    metric.update(target_ranks([(0, 0), (50, 0)]))
    copy = pickle.loads(pickle.dumps(metric))
    metric.reset()
    metric.update(target_ranks([(50, 0)]))
    assert copy.compute() == 0.5
    assert metric.compute() == 0


def test_sums_stay_exact_beyond_float32s_integers():
    metric = HitRate(10)
    metric.update(target_ranks([(0, 0)]))
    metric.total += 2**24
    metric.count += 2**24
    metric.update(target_ranks([(0, 0)]))
    assert metric.total == metric.count == 2**24 + 2


@pytest.mark.parametrize(("metric_class", "_"), METRICS)
@pytest.mark.parametrize("k", [0, -1])
def test_a_list_length_below_one_is_refused(metric_class, _, k: int):
    with pytest.raises(InputError, match=f"k={k} must be at least 1"):
        metric_class(k)
