from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from seqrec.catalogue.recommend import RecommendOptions
from seqrec.evaluation.protocols import FullRanking
from seqrec.models import Popularity, evaluate
from seqrec.types import SequenceBatch

COUNTS = np.array([0, 3, 9, 1, 7, 5])
MakeBatch = Callable[..., SequenceBatch]


def test_items_are_ranked_by_their_counts(make_batch: MakeBatch):
    model = Popularity.from_counts(COUNTS)
    model.options = RecommendOptions(5, filter_seen=False)
    best = model.predict_step(make_batch([[1], [2, 3]], [4, 5]), 0)
    assert best.item_ids.tolist() == [[2, 4, 5, 1, 3]] * 2
    assert best.scores.tolist() == [[9, 7, 5, 3, 1]] * 2


def test_seen_items_are_left_out(make_batch: MakeBatch):
    model = Popularity.from_counts(COUNTS)
    model.options = RecommendOptions(3)
    assert model.predict_step(make_batch([[1], [2, 4]], [4, 5]), 0).item_ids.tolist() == [
        [2, 4, 5],
        [5, 1, 3],
    ]


def test_padding_is_never_recommended(make_batch: MakeBatch):
    model = Popularity.from_counts(np.array([100, 1, 2]))
    model.options = RecommendOptions(2, filter_seen=False)
    assert model.predict_step(make_batch([[1]], [2]), 0).item_ids.tolist() == [[2, 1]]


def test_metrics_follow_from_the_counts_by_hand(make_batch: MakeBatch):
    model = Popularity.from_counts(np.arange(30))
    model.protocol = FullRanking(filter_seen=False)
    # Item 29 is first, 23 is seventh, 5 is out of the first twenty.
    metrics = evaluate(model, [make_batch([[1], [1], [1]], [29, 23, 5])])
    assert metrics["HR@5"] == pytest.approx(1 / 3)
    assert metrics["HR@10"] == metrics["HR@20"] == pytest.approx(2 / 3)
    assert metrics["NDCG@5"] == pytest.approx(1 / 3)
    assert metrics["NDCG@10"] == pytest.approx((1 + 1 / 3) / 3)


def test_large_counts_one_apart_are_not_tied(make_batch: MakeBatch):
    model = Popularity.from_counts(np.array([0, 2**40, 2**40 + 1]))
    batch = make_batch([[2]], [1])
    ranks = FullRanking(filter_seen=False).judge(model.last_states(batch), batch, model.scorer()).ranks
    assert (ranks.better.item(), ranks.tied.item()) == (1, 0)
