"""Write recommendations as Parquet during prediction, and metrics of the lists."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BasePredictionWriter

from seqrec.catalogue.histories import read_block_list, read_options
from seqrec.catalogue.recommend import recommendation_frame
from seqrec.data.store import EventStore
from seqrec.errors import InputError
from seqrec.evaluation.metrics import list_metrics
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
    """

    def __init__(
        self,
        directory: str | None = None,
        *,
        top_k: int = 10,
        filter_seen: bool = True,
        block: str | None = None,
    ) -> None:
        super().__init__(write_interval="batch")
        if top_k < 1:
            raise InputError(f"top_k={top_k} must be at least 1")
        self.directory = directory
        self.top_k = top_k
        self.filter_seen = filter_seen
        self.block = block
        self._folder = Path()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Pass the settings to the model and make the folder.

        Raises:
            InputError: if the folder contains parts of an earlier run, or there is neither a folder nor a logger.
        """
        if isinstance(pl_module, Recommender):
            blocked = None if self.block is None else read_block_list(self.block)
            pl_module.options = read_options(pl_module, self.top_k, self.filter_seen, blocked)
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
        frame.write_parquet(self._folder / f"part-{trainer.global_rank}-{batch_idx:06d}.parquet")

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the metrics of all processes' lists."""
        # compute() sums over processes, so all of them call it.
        values = {name: float(value) for name, value in self._metrics.compute().items()}
        if trainer.is_global_zero:
            plain = {name: None if math.isnan(value) else value for name, value in values.items()}
            path = self._folder.with_name(f"{self._folder.stem}_metrics.json")
            path.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
