"""From a raw log to batches: the data module and its loader. No other module of `data` imports Lightning."""

# Longer than 400 lines because Lightning needs its hooks on one class.

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from seqrec.data.cold_items import without_items
from seqrec.data.collate import EventArrays, WindowDataset
from seqrec.data.columns import training_scales
from seqrec.data.event_columns import EventColumn, checked_scales
from seqrec.data.item_counts import first_event_times, training_item_counts
from seqrec.data.loader import ResumableLoader, outlive_signals
from seqrec.data.new_events import NewEvents
from seqrec.data.position import EpochPosition, count_as_done
from seqrec.data.prepare import Filters, append, ensure_store, fingerprint, prepare
from seqrec.data.prepare.filters import Changed, Duplicates, Late
from seqrec.data.prepare.memory import MemoryLimit
from seqrec.data.progress import STATUS
from seqrec.data.sampler import BatchSampler, SequentialBatches
from seqrec.data.schema import Schema
from seqrec.data.sources import Source
from seqrec.data.splits import LeaveOneOut, Split, judged_ranges
from seqrec.data.store import EventStore
from seqrec.data.targets import LogTargets
from seqrec.data.tasks import check_workers
from seqrec.data.windows import (
    NewestWindow,
    StridedWindows,
    TrainWindows,
    WindowIndex,
    judged_windows,
    newest_windows,
    prequential_windows,
)
from seqrec.errors import InputError, check_at_least
from seqrec.specs import to_spec

# More loader processes than this a core are a mistake.
MAX_WORKERS_PER_CORE = 32
# By default evaluation takes batches of so many windows, or of as many events as training, but so many at least.
EVAL_WINDOWS, EVAL_EVENTS = 128, 25_600


def _check_machine(num_workers: int, memory_limit: str | None, prepare_workers: int | str) -> None:
    check_workers(prepare_workers)
    if memory_limit is not None:
        MemoryLimit(memory_limit)
    most = MAX_WORKERS_PER_CORE * (os.cpu_count() or 1)
    if not 0 <= num_workers <= most:
        raise InputError(f"num_workers={num_workers} must be between 0 and {most} on this machine")


class SequenceDataModule(pl.LightningDataModule):
    """Per-user windows of a log, for training, evaluation and prediction.

    The store is prepared from the source when it is first needed, and later only opened. On each host one process
    prepares it and the others wait. Hosts may share a store, or each prepare one on its own disk. The state, which is
    part of each checkpoint, is the position in the training order. A resumed run continues with the next batch.

    Args:
        source: The raw log.
        store: Folder of the prepared store; None is `stores/<source>-<fingerprint of source, filters and schema>`.
        filters: Users, items and events to keep.
        schema: Columns of events, items and users to keep.
        targets: SQL condition over columns of the store, such as "event_type = 'buy'": only events that meet it are
            trained for and judged, and all others are context; see `EventStore.select_targets`. None is all events. It
            is evaluated when the store is opened, so another condition needs no preparation.
        split: Division into training, validation and test; the default is leave-one-out.
        train_windows: Windows of training histories; the default is the newest window of each user.
        max_length: Events a window, at most.
        batch_size: Windows a batch and process, in training.
        max_tokens: Events a batch and process, in training, padding included, instead of `batch_size`.
        eval_batch_size: Windows a batch and process, in evaluation and prediction. None is 128. If 128 windows of
            `max_length` have more events than a training batch, None limits the events of a batch to those of a
            training batch, so evaluation takes no more memory than training. But 25,600 events are always allowed,
            which take no more than 16,000 in training.
        val_users: Users that validation judges while fitting, at most: a fixed sample, the same in each epoch and for
            any number of processes. None judges all; the commands `validate` and `test` always do.
        bucket_by_length: Whether the rows of a training batch have similar lengths (less padding). Batches are then
            weighted by their events, to keep the weight of short histories.
        num_workers: Loader processes; 0 reads in the main process, which the memory-mapped store makes cheap.
        prefetch: Whether a thread takes the next batches from the loader, and copies them to the trainer's GPU while
            that computes. Batches and their order are the same.
        seed: Seed of the training order.
        memory_limit: Most memory that preparation may take, such as "8GiB"; None is half of the machine's.
        prepare_workers: Processes that prepare the store: their number, or the address of a dask scheduler, such as
            tcp://node1:8786.

    Attributes:
        prepare_seconds: Seconds that this process has spent on preparing or opening the store.
        target_columns: Columns of the next event in training batches (`SequenceBatch.target_features`), which a model
            with heads sets.
        new_events: What is trained on, if not all events, which `WarmStart` sets.
        longest_first: Whether training windows come longest first instead of shuffled, to measure their memory.
        carry_state: Whether each row of a training batch continues that of the batch before, which a model with
            `carry_state` sets.

    Raises:
        InputError: if a number is out of range.

    Example:
        >>> import tempfile
        >>> from seqrec import Filters, SequenceDataModule, Synthetic, prepare
        >>> source = Synthetic(num_users=20, num_items=30, mean_events=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = prepare(source, Filters(), f"{folder}/store")
        ...     data = SequenceDataModule(source, store=f"{folder}/store", max_length=4, batch_size=4)
        ...     batch = next(iter(data.train_dataloader()))
        ...     batch.history.item_ids.shape[0], batch.targets.shape == batch.history.item_ids.shape
        (4, True)
    """

    target_columns: tuple[str, ...]
    new_events: NewEvents | None = None
    carry_state = False

    def __init__(
        self,
        source: Source,
        *,
        store: str | None = None,
        filters: Filters = Filters(),  # noqa: B008  # frozen
        schema: Schema = Schema(),  # noqa: B008  # not changed
        targets: str | None = None,
        split: Split | None = None,
        train_windows: TrainWindows | None = None,
        max_length: int = 200,
        batch_size: int = 16,
        max_tokens: int | None = None,
        eval_batch_size: int | None = None,
        val_users: int | None = None,
        bucket_by_length: bool = True,
        num_workers: int = 0,
        prefetch: bool = False,
        seed: int = 0,
        memory_limit: str | None = None,
        prepare_workers: int | str = 1,
    ) -> None:
        super().__init__()
        sizes = {"max_length": max_length, "batch_size": batch_size, "max_tokens": max_tokens}
        sizes |= {"eval_batch_size": eval_batch_size, "val_users": val_users}
        check_at_least(1, **{name: size for name, size in sizes.items() if size is not None})
        _check_machine(num_workers, memory_limit, prepare_workers)
        if targets is not None and not targets.strip():
            raise InputError("targets is blank; leave it out (null) to make all events targets")
        self.source = source
        self.filters = filters
        self.schema = schema
        self.targets = targets
        self.split = split or LeaveOneOut()
        self.train_windows = train_windows or NewestWindow()
        self.max_length, self.batch_size = max_length, batch_size
        self.max_tokens = max_tokens
        self.eval_batch_size = eval_batch_size
        self.val_users = val_users
        self.bucket_by_length = bucket_by_length
        self.num_workers, self.prefetch = num_workers, prefetch
        self.seed, self.memory_limit, self.prepare_workers = seed, memory_limit, prepare_workers
        # A policy that cannot be described fails here, and not when the first checkpoint is written.
        self._policies = {"split": to_spec(self.split), "train_windows": to_spec(self.train_windows)}
        self.prepare_seconds, self.longest_first, self.target_columns = 0.0, False, ()
        self._resume_from: dict[str, Any] | None = None
        self._train_sampler: BatchSampler | None = None
        self._position = EpochPosition()
        self.store_directory = Path(store or f"stores/{source.name}-{fingerprint(source, filters, schema)}")

    @cached_property
    def store(self) -> EventStore:
        """The prepared events, which are prepared now if the store does not exist."""
        started = perf_counter()
        store = ensure_store(
            self.source,
            self.filters,
            self.store_directory,
            schema=self.schema,
            **self._how,
        )
        if self.targets is not None:
            store.select_targets(self.targets)
        self.prepare_seconds += perf_counter() - started
        return store

    @property
    def num_items(self) -> int:
        """Items of the catalogue; ids are 1..num_items."""
        return self.store.num_items

    @property
    def num_users(self) -> int:
        """Users of the log; ids are 1..num_users."""
        return self.store.num_users

    @property
    def item_columns(self) -> dict[str, dict[str, Any]]:
        """Sizes of the columns of items by name, from which a model that reads them makes its parameters."""
        return self.store.item_column_sizes

    @property
    def user_columns(self) -> dict[str, dict[str, Any]]:
        """Sizes of the columns of users by name, likewise."""
        return self.store.user_column_sizes

    def train_item_counts(self) -> NDArray[np.int64]:
        """Return the number of events (num_items + 1,) of each item in the training part; item 0 has none.

        With a target filter, the number of targets.
        """
        return training_item_counts(self.store, self.split)

    def trained_items(self) -> NDArray[np.bool_]:
        """Return (num_items + 1,) True for items that occur in the training part, as targets or as context."""
        return training_item_counts(self.store, self.split, all_events=True) > 0

    @cached_property
    def first_event_times(self) -> NDArray[np.int64]:
        """(num_items + 1,) time of each item's first event in the whole log; see `seqrec.data.item_counts`."""
        return first_event_times(self.store)

    @cached_property
    def newest_trained(self) -> int | None:
        """Time of the newest event of the training part; None if the log has no times."""
        times, stops = self.store.timestamps, self.split.history_stops(self.store, "train")
        stops = stops[stops > np.asarray(self.store.offsets)[:-1]]
        return None if times is None or not len(stops) else int(times[stops - 1].max())

    @cached_property
    def hidden_items(self) -> NDArray[np.bool_] | None:
        """(num_items + 1,) True for items that the split hides from training; None if it hides none."""
        return self.split.hidden_items(self.store)

    @cached_property
    def event_scales(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of numeric columns in the training part, by name; batches are scaled by them."""
        stops = partial(self.split.history_stops, self.store, "train")
        return training_scales(self.store.event_columns, self.store.offsets, stops)

    @property
    def event_columns(self) -> list[EventColumn]:
        """Columns of events as a model reads them, with the scales of the training part."""
        return [EventColumn.of_store(*each, self.event_scales) for each in self.store.event_columns.items()]

    def read_as(self, columns: Iterable[EventColumn]) -> None:
        """Standardise numbers as a model does, with the errors of `seqrec.data.event_columns.checked_scales`."""
        self.event_scales.update(checked_scales(columns, self.store.event_columns, self.store_directory))

    def prepare_again(self) -> None:
        """Prepare the store even if it exists. Only one process may call this."""
        self._forget_store()
        log = self.source, self.filters, self.store_directory
        prepare(*log, schema=self.schema, overwrite=True, **self._how)

    def append(
        self,
        input: list[str],
        *,
        duplicates: Duplicates | None = None,
        late: Late = "merge",
        items: str | dict[str, Any] | None = None,
        users: str | dict[str, Any] | None = None,
        changed: Changed = "refuse",
    ) -> None:
        """Add new events to the prepared store; see `seqrec.data.prepare.append`. Only one process may call this."""
        self._forget_store()
        log = self.source, self.filters, self.store_directory, input
        options: dict[str, Any] = {"schema": self.schema, "items": items, "users": users, **self._how}
        append(*log, duplicates=duplicates, late=late, changed=changed, **options)

    @property
    def _how(self) -> dict[str, Any]:
        return {"memory_limit": self.memory_limit, "progress": STATUS, "workers": self.prepare_workers}

    def _forget_store(self) -> None:
        for name in ("store", "event_scales", "first_event_times", "newest_trained", "hidden_items"):
            self.__dict__.pop(name, None)

    def prepare_data(self) -> None:
        """Prepare the store on one process of each host."""
        self.store  # noqa: B018  # opens or prepares

    def described_targets(self) -> dict[str, Any] | None:
        """Return the target filter and what it selects, as plain values; None without one, or if no store is open.

        `condition`, `events` and `targets` of the log, `users_without_targets`, and the log's ids of the `first_users`
        without any, at most five.
        """
        # A run that fails because its store cannot be opened reports that.
        if "store" not in self.__dict__ or (targets := self.store.targets) is None:
            return None
        rows = np.flatnonzero(targets.count(self._offsets, np.asarray(self.store.offsets)[1:]) == 0)
        return {
            "condition": targets.condition,
            "events": self.store.num_events,
            "targets": targets.total,
            "users_without_targets": len(rows),
            "first_users": np.asarray(self.store.user_vocabulary.external_ids(rows[:5] + 1)).tolist(),
        }

    def train_dataloader(self) -> ResumableLoader:
        """Return a loader of shuffled windows of the training part; every window has at least one target."""
        if self.carry_state:
            self._check_carried()
        stops = self.split.history_stops(self.store, "train")
        events: EventArrays = self.store
        if self.hidden_items is not None:
            events, stops = without_items(self.store, self.hidden_items, stops)
        offsets, targets = np.asarray(events.offsets)[:-1], events.targets
        if self.new_events is not None:
            everything = self._windows(offsets, stops, targets)(np.random.default_rng(self.seed))
            is_random = self.train_windows.random
            targets = self.new_events.targets(events, stops, everything, self.seed, is_random=is_random)
            rank_zero_info(targets.summary(self.store.num_events))
        windows = self._windows(offsets, stops, targets)
        if self.store.targets is not None:
            self._report_targets(self.store.targets)
        predicted = self.target_columns
        dataset = WindowDataset(events, stops, scales=self.event_scales, target_columns=predicted, targets=targets)
        shuffle = not (self.longest_first or self._overfits)
        loader = self._loader(dataset, windows, self.batch_size, shuffle=shuffle, carry_state=self.carry_state)
        self._train_sampler = loader.sampler
        self._resume(loader.sampler)
        return loader

    def _check_carried(self) -> None:
        """Refuse training windows of which a user's next one does not follow the one before."""
        windows = self.train_windows
        stride = getattr(windows, "stride", None) or self.max_length
        if not isinstance(windows, StridedWindows):
            problem = f"data.train_windows={type(windows).__name__} are shuffled, and do not follow one another"
            fix = "set data.train_windows=StridedWindows"
        elif stride < self.max_length:
            problem = f"data.train_windows.stride={stride} lets windows of {self.max_length} events overlap"
            fix = "leave stride out"
        elif self.targets is not None or self.new_events is not None:
            name = "data.targets" if self.new_events is None else "warm_start.replay"
            problem, fix = f"{name} leaves out windows without a target", f"leave {name} out"
        elif self._overfits:
            problem, fix = "trainer.overfit_batches repeats batches", "leave it out"
        else:
            return
        raise InputError(
            f"model.carry_state=true starts each window from the state after the one before, but {problem}: {fix}, or "
            "set model.carry_state=false"
        )

    def _windows(
        self, offsets: NDArray[np.int64], stops: NDArray[np.int64], targets: LogTargets | None
    ) -> Callable[[np.random.Generator], WindowIndex]:
        last = stops - 1 if targets is None else targets.last(offsets + 1, stops)
        if not (last > offsets).any():
            needed = "two training events" if targets is None else "a training target with an event before it"
            raise InputError(f"{self.store_directory}: no user has {needed}, there is nothing to learn")

        def windows(rng: np.random.Generator) -> WindowIndex:
            found = self.train_windows.index(offsets, last, self.max_length, rng)
            return found if targets is None else found.with_targets(targets, slide=self.train_windows.random)

        return windows

    def _report_targets(self, targets: LogTargets) -> None:
        found = self.described_targets() or {}
        rank_zero_info(targets.summary(self.store.num_events))
        if count := found["users_without_targets"]:
            users = ", ".join(map(repr, found["first_users"])) + (", .." if count > len(found["first_users"]) else "")
            rank_zero_info(f"{count:,} user(s) without a target are neither trained for nor judged: {users}")

    def state_dict(self) -> dict[str, Any]:
        """Return epoch and number of the next training batch, and the settings that determine the order.

        Raises:
            StoreError: if a file of the store was found damaged, so no checkpoint of what it taught is written.
        """
        assert self.trainer is not None
        self.store.check_in_use()
        epoch = 0 if self._train_sampler is None else self._train_sampler.epoch
        batch = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if batch >= self.trainer.num_training_batches:
            epoch, batch = epoch + 1, 0
        return self._position.state(epoch, batch, self._order())

    def teardown(self, stage: str) -> None:
        """Wait until all files of the store are hashed, at the end of each of a trainer's commands.

        Raises:
            StoreError: if one is damaged.
        """
        self.store.finish_check()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next training loader start at a checkpoint's position. Evaluation ignores it."""
        self._resume_from = state_dict

    def _resume(self, sampler: BatchSampler) -> None:
        state, self._resume_from = self._resume_from, None
        if state is None:
            return
        order = self._order()
        # Checkpoints of older versions lack newer settings.
        known = inspect.signature(SequenceDataModule).parameters
        defaults = {"carry_state": False} | {name: known[name].default for name in order if name in known}
        done = self._position.resume(sampler, {**state, "order": {**defaults, **state["order"]}}, order)
        assert self.trainer is not None
        loop, limit = self.trainer.fit_loop, self.trainer.limit_train_batches
        if state["batch"]:
            count_as_done(loop.epoch_loop.batch_progress.current, done, limit=limit)
        else:
            # A new epoch. With `max_steps`, Lightning would end the old one once more.
            loop._restarting = loop.epoch_loop.restarting = False

    def _order(self) -> dict[str, Any]:
        """Return all settings that determine the order of an epoch, as plain values."""
        return {
            "events": self.store.num_events,
            "targets": self.targets,
            "new_events": to_spec(self.new_events),
            **self._policies,
            "max_length": self.max_length,
            "batch_size": self.batch_size,
            "max_tokens": self.max_tokens,
            "bucket_by_length": self.bucket_by_length,
            "seed": self.seed,
            "carry_state": self.carry_state,
            "world_size": self.trainer.world_size if self.trainer else 1,
        }

    @property
    def event_order(self) -> str:
        """Rule by which the store orders a user's events, including those of equal time."""
        return str(self.store.manifest.get("order", "unknown"))

    def val_dataloader(self) -> ResumableLoader:
        """Return a loader of all judged users with their validation targets; while fitting, of `val_users` of them."""
        return self._eval_loader("validate")

    def test_dataloader(self) -> ResumableLoader:
        """Return a loader of all judged users with their test targets."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> ResumableLoader:
        """Return a loader of all users, with the whole log as history and no targets."""
        return self._eval_loader("predict")

    @property
    def _overfits(self) -> bool:
        return bool(getattr(self.trainer, "overfit_batches", 0))

    @property
    def _offsets(self) -> NDArray[np.int64]:
        return np.asarray(self.store.offsets)[:-1]

    def _eval_loader(self, stage: str) -> ResumableLoader:
        if stage == "predict":
            stops = self.split.history_stops(self.store, stage)
            newest = newest_windows(self._offsets, stops, self.max_length)
            dataset = WindowDataset(self.store, stops, with_targets=False, scales=self.event_scales)
            size, tokens = self._eval_sizes()
            return self._loader(dataset, lambda _: newest, size, shuffle=False, max_tokens=tokens)
        stops, ends = judged_ranges(self.split, self.store, stage)
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        most = self.val_users if fitting and stage == "validate" else None
        users = (self._offsets, stops, ends)
        if self.split.prequential:
            judged = prequential_windows(*users, most=most, seed=self.seed)
        else:
            judged = judged_windows(*users, self.max_length, most=most, seed=self.seed)
        if not len(judged):
            raise InputError(
                f"{self.store_directory}: the split {self.split.id} leaves no user to {stage}: "
                f"{self.split.left_out(self.store, stage)}; hold out more, or ask for a shorter warm-up"
            )
        scales, one_by_one = self.event_scales, self.split.prequential
        dataset = WindowDataset(self.store, stops, target_stops=ends, prequential=one_by_one, scales=scales)
        size, tokens = self._eval_sizes()
        if self.split.prequential:
            tokens = max(tokens or size * self.max_length, int(judged.lengths.max()))
        return self._loader(dataset, lambda _: judged, size, shuffle=False, max_tokens=tokens)

    def _eval_sizes(self) -> tuple[int, int | None]:
        """Return the windows of a batch of evaluation, and its most events if these decide."""
        if self.eval_batch_size is not None:
            return self.eval_batch_size, None
        training = self.max_tokens or self.batch_size * self.max_length
        events = max(training, EVAL_EVENTS, self.max_length)
        return EVAL_WINDOWS, None if EVAL_WINDOWS * self.max_length <= events else events

    def _loader(
        self,
        dataset: WindowDataset,
        windows: Callable[[np.random.Generator], WindowIndex],
        batch_size: int,
        *,
        shuffle: bool,
        max_tokens: int | None = None,
        carry_state: bool = False,
    ) -> ResumableLoader:
        if shuffle and self.max_tokens:
            max_tokens = self.max_tokens
        # Lightning replaces any other sampler if the trainer overfits a few batches.
        sampler = (SequentialBatches if self._overfits else BatchSampler)(
            windows,
            batch_size=None if max_tokens else batch_size,
            max_tokens=max_tokens,
            shuffle=shuffle,
            bucket=self.bucket_by_length,
            carry_state=carry_state,
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )
        device = None if self.trainer is None else self.trainer.strategy.root_device
        # The sampler yields complete batches, so the loader itself must not batch.
        loader = ResumableLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
            worker_init_fn=outlive_signals,
            persistent_workers=self.num_workers > 0,
            pin_memory=device is not None and device.type == "cuda",
        )
        loader.device = device if self.prefetch else None
        return loader
