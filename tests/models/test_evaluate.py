from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from seqrec.models import GRU4Rec, evaluate
from seqrec.protocols import FullRanking, Protocol, SampledRanking
from seqrec.types import SequenceBatch

PROTOCOLS = [FullRanking(), FullRanking(filter_seen=False), SampledRanking(4)]


def model(**arguments: object) -> GRU4Rec:
    torch.manual_seed(0)
    return GRU4Rec(12, d_model=8, **arguments)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.id)
def test_metrics_equal_those_of_the_trainer(
    protocol: Protocol, batches: Sequence[SequenceBatch], make_trainer: Callable
):
    gru = model()
    gru.protocol = protocol
    (tested,) = make_trainer().test(gru, batches, verbose=False)
    (validated,) = make_trainer().validate(gru, batches, verbose=False)
    metrics = evaluate(gru, batches)
    assert set(metrics) == {f"{name}@{k}" for name in ("HR", "NDCG") for k in (5, 10, 20)}
    assert tested == pytest.approx({f"test_{name}": value for name, value in metrics.items()})
    assert validated == pytest.approx({f"val_{name}": value for name, value in metrics.items()})


def test_metrics_do_not_depend_on_the_batches(batches: Sequence[SequenceBatch], make_batch: Callable):
    gru = model()
    split = [
        make_batch([history[:length].tolist()], [int(target)], [int(user)])
        for batch in batches
        for history, length, target, user in zip(
            batch.history.item_ids, batch.history.lengths, batch.last_targets, batch.user_ids, strict=True
        )
    ]
    assert evaluate(gru, split) == pytest.approx(evaluate(gru, batches))


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_mode_comes_back(training: bool, batches: Sequence[SequenceBatch]):
    gru = model(dropout=0.9).train(training)
    assert evaluate(gru, batches) == evaluate(gru, batches)
    assert gru.training is training


def test_metrics_leave_the_models_own_sums_alone(batches: Sequence[SequenceBatch]):
    gru = model()
    evaluate(gru, batches)
    assert gru.metrics["test"]["HR@10"].count == 0
