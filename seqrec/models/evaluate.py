"""Metrics of a model outside a trainer."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from seqrec.models.base import Recommender, ranking_metrics
from seqrec.types import SequenceBatch


@torch.no_grad()
def evaluate(model: Recommender, batches: Iterable[SequenceBatch]) -> dict[str, float]:
    """HR@K and NDCG@K of the batches' last targets by the model's protocol.

    Runs on the model's device, with dropout off; in a distributed job all ranks must call it with their share.
    """
    was_training = model.training
    model.eval()
    metrics = ranking_metrics().to(model.device)
    for batch in batches:
        model.target_metrics(batch.to(model.device), metrics)
    model.train(was_training)
    return {name: float(value) for name, value in metrics.compute().items()}
