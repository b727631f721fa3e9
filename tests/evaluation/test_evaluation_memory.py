"""Evaluation of the batches that a data module makes takes no more memory than a training step of its batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tape import use_operations_of_torch
from tensor_memory import tensor_peak

from seqrec import models
from seqrec.benchmark.catalogue import full_batch
from seqrec.data.datamodule import EVAL_EVENTS
from seqrec.encoders import ENCODERS
from seqrec.models.prequential import judge_batch
from seqrec.training.losses import BCE
from seqrec.training.negatives import UniformNegatives

NUM_ITEMS, LENGTH = 300, 100
# Events of a batch of evaluation for each event of a training batch of 16 x 1,000, the smallest that the rule is for.
MORE_EVENTS = EVAL_EVENTS / 16_000


def test_bytes_are_counted_until_they_are_free():
    kept = []

    def work() -> None:
        x = torch.ones(1000)
        kept.append(torch.cat([x, x]).view(2, -1)[0])
        del x
        kept.append(torch.ones(500) + 1)

    # 12,000 bytes until the first is free, 8,000 and twice 2,000 afterwards.
    assert tensor_peak(work) == 12_000
    assert tensor_peak(lambda: torch.ones(10).add_(1)) == 40


@pytest.mark.parametrize("encoder", [name for name in ENCODERS if not ENCODERS[name].bidirectional])
def test_a_batch_of_evaluation_takes_no_more_than_a_training_step(encoder: str, monkeypatch: pytest.MonkeyPatch):
    """With one layer, of which training keeps the least, and plain operations, which take the most for a scan."""
    use_operations_of_torch(monkeypatch)
    preset: Any = getattr(models, encoder)
    loss = BCE(UniformNegatives(1, exclude_seen=False))
    model = preset(NUM_ITEMS, d_model=32, num_layers=1, max_length=LENGTH, loss=loss)
    training, judged = (full_batch(NUM_ITEMS, rows, LENGTH) for rows in (5, round(5 * MORE_EVENTS)))

    def step() -> None:
        torch.autograd.grad(model.train().loss_of_batch(training), list(model.parameters()))

    @torch.no_grad()
    def evaluate() -> None:
        judge_batch(model.eval(), judged, model.scorer(), None)

    # What is made only once.
    evaluate()
    assert tensor_peak(evaluate) <= tensor_peak(step)
