from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from seqrec.catalogue.scorer import Scorer
from seqrec.errors import InputError
from seqrec.evaluation.protocols import (
    FullRanking,
    PopularityCandidates,
    Protocol,
    SampledRanking,
    UniformCandidates,
    WholeCatalogue,
)
from seqrec.models import GRU4Rec, evaluate
from seqrec.types import JudgedTargets, SequenceBatch

PROTOCOLS = [
    FullRanking(),
    FullRanking(filter_seen=False),
    SampledRanking(4),
    Protocol(candidates=UniformCandidates(3, replacement=False), ties="pessimistic", normaliser="cutoff"),
]


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


def test_the_protocols_normaliser_divides_the_ndcg(batches: Sequence[SequenceBatch]):
    gru = model()
    achievable = evaluate(gru, batches)
    gru.protocol = Protocol(normaliser="cutoff")
    cutoff = evaluate(gru, batches)
    ideal = sum(1 / math.log2(1 + rank) for rank in range(1, 11))
    assert cutoff["NDCG@10"] == pytest.approx(achievable["NDCG@10"] / ideal)
    assert cutoff["HR@10"] == achievable["HR@10"]


def test_counts_of_training_are_given_or_refused(batches: Sequence[SequenceBatch]):
    gru = model()
    gru.protocol = Protocol(candidates=PopularityCandidates(2))
    with pytest.raises(InputError, match=r"PopularityCandidates .* needs the items' counts in training"):
        evaluate(gru, batches)
    assert evaluate(gru, batches, item_counts=np.array([0] + [3] * 12))["HR@5"] == 1
    gru.protocol = Protocol(candidates=WholeCatalogue(trained_only=True))
    # One other candidate at most.
    counts = np.zeros(13, dtype=np.int64)
    counts[12] = 1
    assert evaluate(gru, batches, item_counts=counts)["HR@5"] == 1


def test_steps_return_the_ranks_and_callbacks_get_them(batches: Sequence[SequenceBatch], make_trainer: Callable):
    got = []

    class Record(pl.Callback):
        def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            got.append((outputs, batch))

        on_validation_batch_end = on_test_batch_end

    gru, trainer = model(), make_trainer(callbacks=[Record()])
    trainer.test(gru, batches, verbose=False)
    trainer.validate(gru, batches, verbose=False)
    assert len(got) == 2 * len(batches)
    for outputs, batch in got:
        assert isinstance(outputs, JudgedTargets)
        assert outputs.item_ids.tolist() == batch.last_targets.tolist()


def test_a_scorer_is_made_once_for_an_epoch_of_judging(
    batches: Sequence[SequenceBatch], make_trainer: Callable, monkeypatch: pytest.MonkeyPatch
):
    made = []

    def scorer(self: GRU4Rec) -> Scorer:
        made.append(Scorer(self.items.weight))
        return made[-1]

    monkeypatch.setattr(GRU4Rec, "scorer", scorer)
    gru = model()
    evaluate(gru, batches)
    make_trainer().test(gru, batches, verbose=False)
    assert len(made) == 2


def test_metrics_leave_the_models_own_sums_alone(batches: Sequence[SequenceBatch]):
    gru = model()
    evaluate(gru, batches)
    assert gru.metrics["test"]["HR@10"].count == 0
