from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from seqrec.data.columns import Column
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError
from seqrec.evaluation.metrics import (
    Calibration,
    Diversity,
    Gini,
    RepeatShare,
    UserListMetric,
    UserNovelty,
    column_distance,
    item_codes,
)
from seqrec.types import RaggedItems, Recommendations

COUNTS = torch.tensor([0, 8, 4, 2, 1, 1, 0])
WORDS = Vocabulary(["a", "b", "c"])
# Items 1 to 6: {a, b}, {b}, none, {a, b, c}, {c}, {a}; item 1 names b twice.
GENRES = Column(
    "categories", np.array([1, 2, 2, 2, 1, 2, 3, 3, 1]), 1, WORDS, np.array([0, 0, 3, 4, 4, 7, 8, 9], np.int64)
)


def lists(rows: list[list[int]]) -> Recommendations:
    item_ids = torch.tensor(rows)
    return Recommendations(item_ids, -item_ids.double(), torch.arange(1, len(rows) + 1))


def histories(rows: list[list[int]]) -> RaggedItems:
    return RaggedItems.from_rows([torch.tensor(row, dtype=torch.int32) for row in rows])


def value(metric: UserListMetric, rows: list[list[int]], seen: list[list[int]]) -> float:
    metric.update(lists(rows), histories(seen))
    return float(metric.compute())


def metrics(k: int) -> list[UserListMetric]:
    distance = column_distance(GENRES, "column='genres'")
    codes = item_codes(GENRES, "column='genres'")
    return [UserNovelty(COUNTS, k), RepeatShare(k), Diversity(distance, k), Calibration(codes, k)]


def test_worked_examples():
    rows, seen = [[1, 2, 3], [4, 6, 0]], [[2, 2, 5], [6]]
    # 1 + 2 and 4 + 4 bits, as item 6 counts as having one event.
    assert value(UserNovelty(COUNTS, 2), rows, seen) == (1.5 + 4) / 2
    assert value(RepeatShare(3), rows, seen) == pytest.approx((1 / 3 + 1 / 2) / 2)
    # 1 - 1/2, 1, 1; and 1 - 1/3.
    assert value(Diversity(column_distance(GENRES, ""), 3), rows, seen) == pytest.approx((2.5 / 3 + 2 / 3) / 2)
    # p is b 2/3, c 1/3 and q is a 1/4, b 3/4; then p is a and q is a 2/3.
    first = 2 / 3 * math.log(2 / 3 / (0.99 * 3 / 4 + 0.01 * 2 / 3)) + 1 / 3 * math.log(100)
    second = -math.log(0.99 * 2 / 3 + 0.01)
    assert value(Calibration(item_codes(GENRES, ""), 2), rows, seen) == pytest.approx((first + second) / 2)


def test_users_without_a_value_are_left_out():
    assert value(Diversity(column_distance(GENRES, ""), 2), [[1, 0], [0, 0], [1, 1]], [[2]] * 3) == 0
    calibration = Calibration(item_codes(GENRES, ""), 1)
    # No value in the history; no list; no value in the list.
    assert value(calibration, [[1], [0], [3]], [[3], [1], [1]]) == pytest.approx(-math.log(0.01))
    assert all(math.isnan(value(metric, [[0, 0]], [[1]])) for metric in metrics(2))


def test_the_extremes_of_gini_are_one_item_and_all_items():
    for rows, expected in (([[3]] * 5, 1.0), ([[item] for item in range(1, 7)], 0.0)):
        metric = Gini(COUNTS, 1)
        metric.update(lists(rows))
        assert metric.compute() == expected


def test_a_list_with_the_shares_of_the_history_is_calibrated_and_one_without_any_is_not():
    codes = item_codes(Column("categorical", np.array([0, 1, 1, 2, 3, 3, 2]), vocabulary=WORDS), "")
    assert value(Calibration(codes, 3), [[2, 3, 4]], [[1, 6, 5]]) == pytest.approx(0, abs=1e-15)
    assert value(Calibration(codes, 2), [[4, 5]], [[1, 6]]) == pytest.approx(-math.log(0.01))


def test_means_depend_on_neither_batches_nor_processes_and_intervals_are_those_of_the_mean():
    torch.manual_seed(0)
    rows = torch.stack([torch.randperm(6)[:4] + 1 for _ in range(50)]).tolist()
    seen = [torch.randint(1, 7, (int(torch.randint(1, 5, ())),)).tolist() for _ in range(50)]
    for number, (whole, first, second) in enumerate(zip(metrics(4), metrics(4), metrics(4), strict=True)):
        expected = value(whole, rows, seen)
        first.update(lists(rows[:7]), histories(seen[:7]))
        second.update(lists(rows[7:]), histories(seen[7:]))
        first.merge_state(second)
        assert float(first.compute()) == expected, number
        users = [value(metrics(4)[number], [row], [own]) for row, own in zip(rows, seen, strict=True)]
        defined = np.array([each for each in users if not math.isnan(each)])
        half = 1.959964 * defined.std(ddof=1) / math.sqrt(len(defined))
        assert expected == pytest.approx(defined.mean(), abs=1e-12)
        assert whole.interval == pytest.approx((expected - half, expected + half), abs=1e-6)


def test_one_user_has_no_interval():
    metric = RepeatShare(1)
    assert value(metric, [[1]], [[1]]) == 1
    assert all(math.isnan(end) for end in metric.interval)


def test_cosine_distance_of_vectors():
    vectors = Column("vector", np.array([[0, 0], [3, 4], [4, 3], [-3, -4], [0, 0]], np.float16))
    distance = column_distance(vectors, "")
    found = distance(torch.tensor([[1, 2, 3, 4]]))[0, 0]
    assert found.tolist() == pytest.approx([0, 1 - 24 / 25, 2, 1])


def test_bad_columns_and_lengths_are_refused():
    year = Column("numeric", np.zeros(4, np.float32))
    text = Column("vector", np.zeros((4, 2), np.float32))
    with pytest.raises(InputError, match="column='year' is a column of numbers; name one of kind"):
        column_distance(year, "column='year'")
    with pytest.raises(InputError, match="column='text' is of kind vector; name a column of kind categorical"):
        item_codes(text, "column='text'")
    with pytest.raises(InputError, match="k=1 must be at least 2"):
        Diversity(column_distance(text, ""), 1)
    with pytest.raises(InputError, match="k=0 must be at least 1"):
        RepeatShare(0)
    with pytest.raises(InputError, match="lists of 1 items cannot be judged at k=2"):
        value(RepeatShare(2), [[1]], [[1]])
