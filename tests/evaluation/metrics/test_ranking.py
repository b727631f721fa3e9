from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from target_problems import User, judged, judged_of, users

from seqrec.errors import InputError
from seqrec.evaluation.metrics import (
    MRR,
    NDCG,
    HitRate,
    Precision,
    RankMetric,
    Recall,
    hit_rate,
    metric_named,
    mrr,
    ndcg,
    precision,
    ranking_metrics,
    recall,
)

METRICS = {HitRate: hit_rate, MRR: mrr, NDCG: ndcg, Recall: recall, Precision: precision}


@pytest.mark.parametrize("metric_class", METRICS)
@settings(deadline=None, max_examples=20)
@given(population=st.lists(users(), min_size=1, max_size=5), k=st.integers(1, 8))
def test_batches_added_up_give_the_mean_over_all_users(
    metric_class: type[RankMetric], population: list[list[User]], k: int
):
    metric = metric_class(k)
    for batch in population:
        metric.update(judged_of(batch))
    everyone = METRICS[metric_class](judged_of([user for batch in population for user in batch]), k)
    assert metric.compute().item() == pytest.approx(everyone.mean().item(), abs=1e-12)


@pytest.mark.parametrize("metric_class", METRICS)
def test_neither_batches_nor_ranks_nor_order_change_the_last_digit(metric_class: type[RankMetric]):
    generator = torch.Generator().manual_seed(0)
    better, tied = torch.randint(0, 50, (2, 3000), generator=generator)

    def of(users: torch.Tensor) -> RankMetric:
        metric = metric_class(40)
        rows = torch.arange(len(users)).repeat_interleave(2)
        # Two targets each; the second stands behind all that may share the first one's place.
        pairs = torch.stack([better[users], better[users] + 20 + tied[users]], 1).flatten()
        ties = torch.stack([tied[users], tied[users]], 1).flatten()
        metric.update(judged(pairs.tolist(), ties.tolist(), rows.tolist()))
        return metric

    whole = of(torch.arange(3000))
    assert 0 < whole.compute() < 1
    for parts in (7, 100):
        first, *others = torch.randperm(3000, generator=generator).chunk(parts)
        merged = of(first)
        for part in others:
            merged.merge_state(of(part))
        assert torch.equal(merged.compute(), whole.compute())


@pytest.mark.parametrize("metric_class", METRICS)
def test_state_is_three_integers_whatever_the_number_of_users(metric_class: type[RankMetric]):
    metric = metric_class(10)
    for _batch in range(3):
        metric.update(judged([1] * 1000))
    assert {name: state.numel() for name, state in metric.metric_state.items()} == {"total": 2, "count": 1}
    assert {state.dtype for state in metric.metric_state.values()} == {torch.int64}
    assert {reduction.__name__ for reduction in metric._reductions.values()} == {"dim_zero_sum"}


@pytest.mark.parametrize("metric_class", METRICS)
def test_reset_forgets_and_pickling_keeps(metric_class: type[RankMetric]):
    metric = metric_class(1)
    metric.update(judged([0, 50]))
    copy = pickle.loads(pickle.dumps(metric))
    metric.reset()
    metric.update(judged([50]))
    assert copy.compute() == 0.5
    assert metric.compute() == 0


def test_sums_stay_exact_beyond_float64s_integers():
    metric = HitRate(10)
    metric.update(judged([0]))
    unit = metric.total.clone()
    metric.total += 2**30 * unit
    metric.count += 2**30
    metric.update(judged([0, 9], [0, 9]))
    # The whole part of the sum and its half are both there, though 2^61 + 2^30 units exceed 2^53.
    assert (metric.total - (2**30 + 2) * unit).tolist() == [2**30 // 5, metric.total[1].item()]


@pytest.mark.parametrize("metric_class", METRICS)
@pytest.mark.parametrize("k", [0, -1])
def test_a_list_length_below_one_is_refused(metric_class: type[RankMetric], k: int):
    with pytest.raises(InputError, match=f"k={k} must be at least 1"):
        metric_class(k)


def test_an_unknown_normaliser_is_refused_when_the_metric_is_built():
    with pytest.raises(InputError, match="normaliser='ideal' must be one of achievable, cutoff, none"):
        NDCG(10, "ideal")


def test_the_table_shows_recall_and_precision_where_they_say_more_than_the_hit_rate():
    shown = {f"{title}@{k}" for title in ("HR", "NDCG") for k in (5, 10, 20)}
    assert set(ranking_metrics()) == shown
    more = {f"{title}@{k}" for title in ("Recall", "Precision") for k in (5, 10, 20)}
    assert set(ranking_metrics(several_targets=True)) == shown | more


def test_the_tables_ndcg_has_the_normaliser_that_was_asked_for():
    metrics = ranking_metrics("cutoff")
    metrics.update(judged([0]))
    found = {name: value.item() for name, value in metrics.compute().items()}
    assert found["NDCG@10"] == pytest.approx(1 / 4.5436, abs=1e-5)
    assert found["HR@5"] == 1


@pytest.mark.parametrize("name", ["HR@3", "MRR@4", "NDCG@5", "Recall@6", "Precision@7"])
def test_a_metric_is_found_by_its_name(name: str):
    metric = metric_named(name, "cutoff")
    assert metric.k == int(name[-1])
    assert {HitRate: "HR"}.get(type(metric), type(metric).__name__) == name[:-2]
    if isinstance(metric, NDCG):
        assert metric.normaliser == "cutoff"


@pytest.mark.parametrize("name", ["HR", "HR@", "hr@10", "MAP@10", "NDCG@ten", "NDCG@-1", ""])
def test_an_unknown_name_is_refused_with_those_that_are_known(name: str):
    with pytest.raises(InputError, match=f"unknown metric {name!r}; known: HR@K, MRR@K, NDCG@K, Precision@K, Recall@K"):
        metric_named(name)
