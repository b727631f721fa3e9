"""A callback that writes the rank of each held-out item while a model is tested."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import polars
from numpy.typing import NDArray

from seqrec.data.store import EventStore
from seqrec.errors import InputError
from seqrec.evaluation.protocols import Protocol
from seqrec.evaluation.results.file import FILE_NAME, Header, is_results, popularity_bounds
from seqrec.files import move, write_parquet
from seqrec.runs.trainer_checks import caveats, data_of
from seqrec.types import JudgedTargets

# Targets that a process holds before it writes them: 2^18 take some 20 MiB.
HELD_TARGETS = 1 << 18


class ResultsWriter(pl.Callback):
    """Writes a results file of each test: one row for each held-out item, in Parquet, with the log's own ids.

    See `seqrec.evaluation.results.Results` for the columns; the file's metadata contains the protocol's id and
    settings. Each process writes parts into a folder next to the file, which all processes must share. The first
    process joins the parts when all are done, so an existing file is always complete.

    Args:
        path: The file. None is `test_results.parquet` in the run's folder, next to `test_metrics.json`; neither is
            written by a `fast_dev_run`, which has no folder.
        write: Whether the file is written.
    """

    def __init__(self, path: str | None = None, *, write: bool = True) -> None:
        self.path = path
        self.write = write
        self._file: Path | None = None
        self._item_counts: NDArray[np.int64] = np.zeros(0, np.int64)
        self._waiting: list[JudgedTargets] = []
        self._parts = 0

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the training events of the items and create the folder of parts.

        Raises:
            InputError: if the trainer has no data module with the log's ids, or `path` is a file of another kind.
        """
        self._file, self._waiting, self._parts = None, [], 0
        if not self.write:
            return
        # `log_dir` waits for all processes, so it is read only once.
        root = trainer.log_dir if self.path is None else None
        if self.path is None and root is None:
            return
        self._item_counts = data_of(trainer, self).train_item_counts()
        self._file = Path(self.path or f"{root}/{FILE_NAME}")
        if self._file.exists() and not is_results(self._file):
            raise InputError(f"results.path={str(self._file)!r} exists and is no results file; choose another path")
        if trainer.is_global_zero:
            # Remove the parts of a test that was killed.
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
        trainer.strategy.barrier()

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect a batch's targets.

        Raises:
            TypeError: if the model's test step returns something else.
        """
        if self._file is None:
            return
        self._waiting.append(judged_targets(pl_module, "test_step", outputs).to("cpu"))
        if sum(len(judged.rows) for judged in self._waiting) >= HELD_TARGETS:
            self._write_part(trainer)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Join the parts of all processes."""
        if self._file is None:
            return
        if self._waiting:
            self._write_part(trainer)
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            joined = self._folder / "joined"
            parts = polars.scan_parquet(sorted(self._folder.glob("part-*.parquet")))
            write_parquet(parts, joined, metadata=self._header(trainer, pl_module).as_metadata())
            move(joined, self._file)
            shutil.rmtree(self._folder)
        trainer.strategy.barrier()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove the parts of a test that failed."""
        if self._file is not None and trainer.testing:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _folder(self) -> Path:
        assert self._file is not None
        return self._file.with_name(self._file.name + ".parts")

    def _header(self, trainer: pl.Trainer, model: Any) -> Header:
        found = caveats(trainer, model, "test")
        title = f"{model.title} ({', '.join(found)})" if found else model.title
        return header_of(title, model.protocol, self._item_counts)

    def _write_part(self, trainer: pl.Trainer) -> None:
        store = data_of(trainer, self).store
        frame = polars.concat([results_frame(judged, store, self._item_counts) for judged in self._waiting])
        write_parquet(frame, self._folder / f"part-{trainer.global_rank:05d}-{self._parts:06d}.parquet")
        self._waiting, self._parts = [], self._parts + 1


def judged_targets(module: pl.LightningModule, step: str, outputs: Any) -> JudgedTargets:
    """Return what a step of a module returned.

    Raises:
        TypeError: if these are no judged targets.
    """
    if not isinstance(outputs, JudgedTargets):
        raise TypeError(f"{type(module).__name__}.{step} returned {type(outputs).__name__}, expected JudgedTargets")
    return outputs


def header_of(model: str, protocol: Protocol, item_counts: NDArray[np.int64]) -> Header:
    """Return the header of a model's results, from the (V,) training events of each item."""
    head_from, torso_from = popularity_bounds(item_counts)
    return Header(
        model=model,
        protocol=protocol.id,
        settings=protocol.describe(),
        normaliser=protocol.normaliser,
        num_items=len(item_counts) - 1,
        head_from=head_from,
        torso_from=torso_from,
    )


def results_frame(judged: JudgedTargets, store: EventStore, item_counts: NDArray[np.int64] | None) -> polars.DataFrame:
    """Return one row for each target on the CPU, with the columns of `seqrec.evaluation.results.Results`.

    Without the items' training events, `item_counts` (V,), their column is null.
    """
    rows, item_ids = judged.rows, judged.item_ids.numpy()
    times = [None] * len(rows) if judged.timestamps is None else judged.timestamps.numpy()
    events = [None] * len(rows) if item_counts is None else item_counts[item_ids]
    return polars.DataFrame(
        {
            "user_id": store.user_vocabulary.external_ids(judged.user_ids[rows].numpy()),
            "item_id": store.item_vocabulary.external_ids(item_ids),
            "better": judged.ranks.better.numpy(),
            "tied": judged.ranks.tied.numpy(),
            "history_length": judged.history_lengths[rows].numpy(),
            "item_train_events": polars.Series(events, dtype=polars.Int64),
            "repeated": judged.repeated.numpy(),
            "timestamp": polars.Series(times, dtype=polars.Int64),
        }
    )
