"""Metrics of a model outside a trainer."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from seqrec.evaluation.metrics import ranking_metrics
from seqrec.evaluation.protocols import TrainingCounts
from seqrec.models.base import Recommender
from seqrec.types import SequenceBatch


@torch.no_grad()
def evaluate(
    model: Recommender,
    batches: Iterable[SequenceBatch],
    *,
    item_counts: NDArray[np.int64] | None = None,
    several_targets: bool = False,
) -> dict[str, float]:
    """Metrics of what the batches hold out by the model's protocol.

    Runs on the model's device, with dropout off; in a distributed job all ranks must call it with their share.

    Args:
        model: A trained recommender.
        batches: Of validation or test.
        item_counts: (V,) how often items occur in training, as `SequenceDataModule.train_item_counts` gives it;
            needed where the protocol draws from trained items or by popularity.
        several_targets: Whether users may have more than one target; recall and precision are then given too.

    Raises:
        InputError: the protocol needs `item_counts`.
    """
    was_training = model.training
    model.eval()
    metrics = ranking_metrics(model.protocol.normaliser, several_targets=several_targets).to(model.device)
    counts = None if item_counts is None else TrainingCounts(torch.from_numpy(item_counts)).to(model.device)
    # Once, as it stays the same while nothing is trained.
    scorer = model.scorer()
    try:
        for batch in batches:
            here = batch.to(model.device)
            metrics.update(model.protocol.judge(model.last_states(here), here, scorer, counts))
    finally:
        model.train(was_training)
    return {name: float(value) for name, value in metrics.compute().items()}
