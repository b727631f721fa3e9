"""Write recommendations as Parquet during prediction, and metrics of the lists."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torchmetrics import MetricCollection

from seqrec.catalogue.histories import read_block_list, read_candidates, read_options
from seqrec.catalogue.recommend import recommendation_frame
from seqrec.data.item_counts import item_counts
from seqrec.data.output import show
from seqrec.data.store import EventStore
from seqrec.errors import InputError
from seqrec.evaluation.metrics import list_metrics
from seqrec.evaluation.report import finite
from seqrec.files import move, write_parquet
from seqrec.models import Recommender
from seqrec.types import Recommendations


class RecommendationWriter(BasePredictionWriter):
    """Writes the output of `seqrec predict`: one Parquet part per batch, with the log's ids.

    Columns: `user_id`, `item_id`, `rank` (1 is best), `score`. `<folder>_metrics.json`, next to the folder, contains
    the recommendations' catalogue coverage, popularity and novelty; see `seqrec.evaluation.metrics.list_metrics`.

    Args:
        directory: Folder of the parts; None is `recommendations` in the run's folder.
        top_k: Items per user.
        filter_seen: Whether to leave out the items of the user's history.
        block: File with the log's ids of items that are never recommended: one per line, or the column item_id of a
            Parquet file.
        candidates: File with the log's ids of the only items that are recommended, all of them known.
        where: Condition on the columns of items in the event store that items must meet to be recommended.
        at: When the items are recommended, in the log's unit, for a model that reads it (`time.request`).
    """

    def __init__(
        self,
        directory: str | None = None,
        *,
        top_k: int = 10,
        filter_seen: bool = True,
        block: str | None = None,
        candidates: str | None = None,
        where: str | None = None,
        at: int | None = None,
    ) -> None:
        super().__init__(write_interval="batch")
        if top_k < 1:
            raise InputError(f"top_k={top_k} must be at least 1")
        self.directory = directory
        self.top_k = top_k
        self.filter_seen = filter_seen
        self.block = block
        self.candidates = candidates
        self.where = where
        self.at = at
        self._folder = Path()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Pass the settings to the model and make the folder.

        Raises:
            InputError: if the folder contains parts of an earlier run, or there is neither a folder nor a logger.
        """
        if isinstance(pl_module, Recommender):
            blocked = None if self.block is None else read_block_list(self.block)
            store: EventStore = trainer.datamodule.store  # type: ignore[attr-defined]
            chosen = read_candidates(pl_module, self.candidates, self.where, store)
            pl_module.options = read_options(pl_module, self.top_k, self.filter_seen, blocked, self.at, chosen)
        # `log_dir` is a collective call, so all processes make it here.
        root = trainer.log_dir if self.directory is None else None
        if self.directory is None and root is None:
            raise InputError("recommendations need a folder: give --recommendations.directory PATH")
        self._folder = Path(self.directory or f"{root}/recommendations")
        if any(self._folder.glob("part-*.parquet")):
            raise InputError(
                f"{self._folder} contains recommendations already; choose another --recommendations.directory"
            )
        trainer.strategy.barrier()
        self._folder.mkdir(parents=True, exist_ok=True)
        counts = torch.from_numpy(trainer.datamodule.train_item_counts())  # type: ignore[attr-defined]
        self._metrics = list_metrics(counts, cutoffs=(self.top_k,)).to(pl_module.device)

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Recommendations,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write one batch as one part."""
        self._metrics.update(prediction)
        store: EventStore = trainer.datamodule.store  # type: ignore[attr-defined]
        users = store.user_vocabulary.external_series(prediction.user_ids.cpu().numpy())
        frame = recommendation_frame(prediction.to("cpu"), users, store.item_vocabulary)
        write_parquet(frame, self._folder / f"part-{trainer.global_rank}-{batch_idx:06d}.parquet")

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the metrics of all processes' lists, and print where the lists are."""
        # Computing sums over processes, so all of them call it.
        values = _plain(self._metrics)
        if trainer.is_global_zero:
            _write(values, self._folder)
            parts = len(list(self._folder.glob("part-*.parquet")))
            shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if value is not None)
            line = f"{self._folder}: lists of up to {self.top_k} items in {parts:,} files"
            show(line, shown, folder=str(self._folder), parts=parts, metrics=values)


def list_report(folder: Path, store: EventStore, top_k: int) -> dict[str, float | None]:
    """Return the metrics of the lists in a folder, and write them to `<folder>_metrics.json`.

    Args:
        folder: Parquet parts, of which all are written.
        store: The log that the model was trained on; all its events count for popularity and novelty.
        top_k: Length of the lists.

    Returns:
        `Coverage@K`, `Popularity@K` and `Novelty@K`; see `seqrec.evaluation.metrics`. None if there are no lists.
    """
    import polars

    metrics = list_metrics(torch.from_numpy(item_counts(store)), cutoffs=(top_k,))
    for part in sorted(folder.glob("part-*.parquet")):
        items = polars.read_parquet(part, columns=["item_id"])["item_id"].value_counts()
        ids = np.repeat(store.item_vocabulary.lookup(items["item_id"].to_list()), items["count"].to_numpy())
        # The metrics only count items, so lists of any users may hold them; item 0 fills the last one.
        lists = torch.from_numpy(np.pad(ids, (0, -len(ids) % top_k))).view(-1, top_k)
        metrics.update(Recommendations(lists, torch.zeros(lists.shape), torch.zeros(len(lists), dtype=torch.int64)))
    values = _plain(metrics)
    _write(values, folder)
    return values


def _plain(metrics: MetricCollection) -> dict[str, float | None]:
    """Return the metrics as JSON has them: NaN is None."""
    return {name: finite(float(value)) for name, value in metrics.compute().items()}


def _write(values: dict[str, float | None], folder: Path) -> None:
    """Write metrics next to a folder; a file that has them already is unchanged, as of a job that was complete."""
    file = folder.with_name(f"{folder.stem}_metrics.json")
    text = json.dumps(values, indent=2) + "\n"
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        partial.write_text(text, encoding="utf-8")
        move(partial, file)
