"""From a raw log to batches: the one room of `data` that knows Lightning."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from seqrec.data.batching import BatchSampler
from seqrec.data.collate import WindowDataset
from seqrec.data.prepare import Filters, ensure_store, fingerprint, prepare
from seqrec.data.ragged import ranges
from seqrec.data.sources import Source
from seqrec.data.splits import LeaveOneOut, Split
from seqrec.data.store import EventStore
from seqrec.data.windows import NewestWindow, TrainWindows, newest_windows
from seqrec.errors import InputError
from seqrec.types import SequenceBatch

# Events counted at a time, so that counting a billion events takes little memory.
COUNT_EVENTS = 1 << 24


class SequenceDataModule(pl.LightningDataModule):
    """Per-user windows of a log, for training, evaluation and prediction.

    The store is prepared from the source when it is first needed and opened ever after; of several processes
    one prepares and the others wait.

    Args:
        source: Where the log comes from.
        store: Folder of the prepared store; None is `stores/<source>-<fingerprint of source and filters>`.
        filters: Which users, items and events are kept.
        split: What is held out.
        train_windows: How training histories are cut; the default is the newest window of each user.
        max_length: Events a window, at most.
        batch_size: Windows a batch and rank, in training.
        eval_batch_size: Windows a batch and rank, in evaluation and prediction.
        bucket_by_length: Whether training batches hold rows of like length (less padding).
        num_workers: Loader processes; 0 reads in the main process, which the memory-mapped store makes cheap.
        seed: Seed of the training order.
    """

    def __init__(
        self,
        source: Source,
        *,
        store: str | None = None,
        filters: Filters = Filters(),  # noqa: B008  # frozen
        split: Split | None = None,
        train_windows: TrainWindows | None = None,
        max_length: int = 200,
        batch_size: int = 16,
        eval_batch_size: int = 128,
        bucket_by_length: bool = True,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (
            ("max_length", max_length),
            ("batch_size", batch_size),
            ("eval_batch_size", eval_batch_size),
        ):
            if value < 1:
                raise InputError(f"{name}={value} must be at least 1")
        self.source = source
        self.filters = filters
        self.split = split or LeaveOneOut()
        self.train_windows = train_windows or NewestWindow()
        self.max_length = max_length
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.bucket_by_length = bucket_by_length
        self.num_workers = num_workers
        self.seed = seed
        self.store_directory = Path(store or f"stores/{source.name}-{fingerprint(source, filters)}")

    @cached_property
    def store(self) -> EventStore:
        """The prepared events; prepares them when they are not there yet."""
        return ensure_store(self.source, self.filters, self.store_directory, progress=print_progress)

    @property
    def num_items(self) -> int:
        """Items of the catalogue; ids are 1..num_items."""
        return self.store.num_items

    @property
    def num_users(self) -> int:
        """Users of the log; ids are 1..num_users."""
        return self.store.num_users

    def train_item_counts(self) -> NDArray[np.int64]:
        """(num_items + 1,) how often each item occurs in the training part; item 0 never does."""
        stops = self.split.history_stops(self.store, "train")
        counts = np.zeros(self.num_items + 1, dtype=np.int64)
        for begin in range(0, self.store.num_events, COUNT_EVENTS):
            part = self.store.item_ids[begin : begin + COUNT_EVENTS]
            counts += np.bincount(part, minlength=len(counts))
        held_out = self.store.item_ids[ranges(stops, self._ends - stops)]
        return counts - np.bincount(held_out, minlength=len(counts))

    def prepare_again(self) -> None:
        """Prepare the store even where one is there; for one process alone."""
        self.__dict__.pop("store", None)
        prepare(self.source, self.filters, self.store_directory, progress=print_progress, overwrite=True)

    def prepare_data(self) -> None:
        """Prepare the store on one process of each host."""
        self.store  # noqa: B018  # opens or prepares

    def train_dataloader(self) -> DataLoader[SequenceBatch]:
        """Shuffled windows of the training part; every window has at least one target."""
        stops = self.split.history_stops(self.store, "train")
        windows = self.train_windows.index(self._offsets, stops - 1, self.max_length)
        if not len(windows):
            raise InputError(
                f"{self.store_directory}: no user has two training events, there is nothing to learn"
            )
        return self._loader(WindowDataset(self.store, windows, stops), self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[SequenceBatch]:
        """Each user once, with its validation target."""
        return self._eval_loader("validate")

    def test_dataloader(self) -> DataLoader[SequenceBatch]:
        """Each user once, with its test target."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader[SequenceBatch]:
        """Each user once, with the whole log as history and no target."""
        return self._eval_loader("predict")

    @property
    def _offsets(self) -> NDArray[np.int64]:
        return np.asarray(self.store.offsets)[:-1]

    @property
    def _ends(self) -> NDArray[np.int64]:
        return np.asarray(self.store.offsets)[1:]

    def _eval_loader(self, stage: str) -> DataLoader[SequenceBatch]:
        stops = self.split.history_stops(self.store, stage)
        windows = newest_windows(self._offsets, stops, self.max_length)
        dataset = WindowDataset(self.store, windows, stops, with_targets=stage != "predict")
        return self._loader(dataset, self.eval_batch_size, shuffle=False)

    def _loader(self, dataset: WindowDataset, batch_size: int, *, shuffle: bool) -> DataLoader[SequenceBatch]:
        sampler = BatchSampler(
            dataset.windows.lengths,
            batch_size=batch_size,
            shuffle=shuffle,
            bucket=self.bucket_by_length,
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )
        # The sampler yields whole batches, so the loader itself must not batch.
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )


def print_progress(line: str) -> None:
    """Show one line of preparation's progress."""
    print(line, flush=True)
