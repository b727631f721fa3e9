from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec.errors import InputError
from seqrec.evaluation.metrics import Coverage, ListMetric, MeanPopularity, Novelty, list_metrics
from seqrec.types import Recommendations

METRICS = [Coverage, MeanPopularity, Novelty]
COUNTS = torch.tensor([0, 8, 4, 2, 1, 1, 0])


def lists(rows: list[list[int]]) -> Recommendations:
    item_ids = torch.tensor(rows)
    return Recommendations(item_ids, -item_ids.double(), torch.arange(1, len(rows) + 1))


def naive(rows: list[list[int]], k: int) -> dict[str, float]:
    shown = [item for row in rows for item in row[:k] if item > 0]
    counts = COUNTS.tolist()
    return {
        "Coverage": len(set(shown)) / 6,
        "Popularity": float(np.mean([counts[item] for item in shown])) if shown else math.nan,
        "Novelty": float(np.mean([-math.log2(max(counts[i], 1) / 16) for i in shown])) if shown else math.nan,
    }


ROWS = st.lists(st.permutations(range(1, 7)).map(lambda row: list(row[:4])), min_size=1, max_size=8)


@settings(deadline=None, max_examples=40)
@given(rows=ROWS, short=st.integers(0, 3), batch_size=st.integers(1, 4))
def test_metrics_equal_a_naive_computation_whatever_the_batches(rows: list[list[int]], short: int, batch_size: int):
    rows[0] = rows[0][:short] + [0] * (4 - short)
    metrics = list_metrics(COUNTS, cutoffs=(2, 4))
    for begin in range(0, len(rows), batch_size):
        metrics.update(lists(rows[begin : begin + batch_size]))
    expected = {f"{name}@{k}": value for k in (2, 4) for name, value in naive(rows, k).items()}
    found = {name: value.item() for name, value in metrics.compute().items()}
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("metric_class", METRICS)
def test_merging_ranks_gives_the_number_of_one_to_the_last_digit(metric_class: type[ListMetric]):
    rows = torch.stack([torch.randperm(6)[:4] + 1 for _ in range(50)]).tolist()
    whole, first, second = (metric_class(COUNTS, 3) for _ in range(3))
    whole.update(lists(rows))
    first.update(lists(rows[:7]))
    second.update(lists(rows[7:]))
    first.merge_state(second)
    assert torch.equal(first.compute(), whole.compute())


def test_worked_example():
    metrics = list_metrics(COUNTS, cutoffs=(2,))
    metrics.update(lists([[1, 2, 3], [1, 6, 5]]))
    found = {name: value.item() for name, value in metrics.compute().items()}
    # 8 + 4 + 8 + 0 events; 1 + 2 + 1 bits, and 4 for the item that training does not know.
    assert found == {"Coverage@2": 0.5, "Popularity@2": 5, "Novelty@2": 2}


def test_lists_that_are_too_short_are_refused():
    with pytest.raises(InputError, match="lists of 3 items cannot be judged at k=4; recommend 4 or more"):
        Coverage(COUNTS, 4).update(lists([[1, 2, 3]]))


def test_an_item_beyond_the_catalogue_is_refused():
    with pytest.raises(InputError, match="item 7 was recommended, but item_counts ends at 6"):
        Coverage(COUNTS, 1).update(lists([[7]]))


@pytest.mark.parametrize("metric_class", METRICS)
def test_arguments_out_of_range_are_refused(metric_class: type[ListMetric]):
    with pytest.raises(InputError, match="k=0 must be at least 1"):
        metric_class(COUNTS, 0)
    with pytest.raises(InputError, match="item_counts has 1 entries"):
        metric_class(COUNTS[:1], 5)
