"""Metrics of a model without a trainer. V = num_items + 1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from seqrec.evaluation.metrics import ranking_metrics
from seqrec.evaluation.protocols import TrainingCounts
from seqrec.models.prequential import judge_batch
from seqrec.models.recommender import Recommender
from seqrec.types import JudgedTargets, SequenceBatch


def evaluate(
    model: Recommender,
    batches: Iterable[SequenceBatch],
    *,
    item_counts: NDArray[np.int64] | None = None,
    first_times: NDArray[np.int64] | None = None,
    several_targets: bool = False,
    separate_lists: bool = False,
    cold_items: NDArray[np.bool_] | None = None,
) -> dict[str, float]:
    """Return the metrics of a model without a trainer, by the model's protocol.

    Runs on the model's device with dropout off. In a distributed job all processes must call it, each with its share.

    Args:
        model: A trained recommender.
        batches: Validation or test batches.
        item_counts: (V,) how often each item occurs in training, as `SequenceDataModule.train_item_counts` returns
            it. Needed if the protocol draws candidates from trained items or by popularity.
        first_times: (V,) when each item first occurs in the log (`SequenceDataModule.first_event_times`). Needed if
            candidates are those that were alive (`alive_only`).
        several_targets: Whether users may have more than one target; adds recall and precision.
        separate_lists: Whether each target is in a list of its own (`GlobalTime.prequential`).
        cold_items: (V,) True for items that were hidden from training (`SequenceDataModule.hidden_items`); adds the
            metrics of cold and warm targets, such as `cold_HR@10`.

    Raises:
        InputError: if the protocol needs `item_counts` or `first_times`.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from seqrec import Filters, Popularity, SequenceDataModule, Synthetic, evaluate, prepare
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = Synthetic(num_users=20, num_items=30, mean_events=10, seed=1)
        ...     store = prepare(log, Filters(), Path(folder) / "store")
        ...     data = SequenceDataModule(log, store=str(store.directory), num_workers=0)
        ...     data.setup("test")
        ...     model = Popularity.from_counts(data.train_item_counts())
        ...     metrics = evaluate(model, data.test_dataloader())
        >>> 0 <= metrics["NDCG@10"] <= metrics["HR@10"] <= 1
        True
    """
    metrics = ranking_metrics(
        model.protocol.normaliser,
        several_targets=several_targets,
        separate_lists=separate_lists,
        cold_items=None if cold_items is None else torch.from_numpy(cold_items),
    ).to(model.device)
    for judged in judge(model, batches, item_counts=item_counts, first_times=first_times):
        metrics.update(judged)
    return {name: float(value) for name, value in metrics.compute().items()}


@torch.no_grad()
def judge(
    model: Recommender,
    batches: Iterable[SequenceBatch],
    *,
    item_counts: NDArray[np.int64] | None = None,
    first_times: NDArray[np.int64] | None = None,
) -> Iterator[JudgedTargets]:
    """Yield the ranks of each batch's targets, on the model's device; see `evaluate` for the arguments and errors."""
    was_training = model.training
    model.eval()
    known = (None if values is None else torch.from_numpy(values) for values in (item_counts, first_times))
    counts = TrainingCounts(*known).to(model.device)
    scorer = model.scorer()
    try:
        for batch in batches:
            yield judge_batch(model, batch.to(model.device), scorer, counts)
    finally:
        model.train(was_training)
