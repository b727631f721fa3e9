"""Windows to tensors, without a Python loop over events. B batch, L events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from seqrec.data.columns import Column
from seqrec.data.sampler import BatchPlan
from seqrec.data.schema import CATEGORICAL, NUMERIC
from seqrec.data.segments import plain
from seqrec.data.targets import LogTargets
from seqrec.data.windows import ranges
from seqrec.types import NO_TIME, HeldOutItems, History, RaggedItems, SequenceBatch

Int64 = NDArray[np.int64]

# If the longest row has this many events, rows are copied one by one. A copy costs some 0.5 us besides its bytes, a
# gather some 2 ns an event.
LONG_ROWS = 256


class EventArrays(Protocol):
    """The events of users as flat arrays, user after user: an `EventStore`, or an `EventBlock` in memory."""

    @property
    def item_ids(self) -> NDArray[np.integer[Any]]:
        """(E,) internal ids."""

    @property
    def timestamps(self) -> Int64 | None:
        """(E,) or None if the log has none."""

    @property
    def offsets(self) -> Int64:
        """(U + 1,) start of each user's events."""

    @property
    def num_items(self) -> int:
        """Items of the catalogue."""

    @property
    def event_columns(self) -> Mapping[str, Column]:
        """Further columns with E rows, by name."""

    @property
    def targets(self) -> LogTargets | None:
        """The events that are targets; None is all."""

    def check_in_use(self) -> None:
        """Raise an error if the events can no longer be read; see `EventStore.check_in_use`."""


class WindowDataset(Dataset[SequenceBatch]):
    """Batches of windows by their plans. The data set can be pickled if its events can.

    `history_stops` (U,) are the ends of users' seen events, from `Split.history_stops`; `target_stops` (U,) those of
    held-out events, from `judged_ranges`, None if no events are. Of the events that follow, only `store.targets` are
    targets. Without `with_targets` no event follows the windows (prediction). With `prequential`, windows are whole
    histories up to the event before the last target, and each target keeps its position in them.

    `scales` are mean and standard deviation by which numeric columns are standardised, by name, from `training_scales`;
    a column without them has those of its own. `target_columns` are the columns of `SequenceBatch.target_features`.
    `targets` replace those of the store.
    """

    def __init__(
        self,
        store: EventArrays,
        history_stops: Int64,
        *,
        target_stops: Int64 | None = None,
        with_targets: bool = True,
        prequential: bool = False,
        scales: Mapping[str, tuple[float, float]] | None = None,
        target_columns: Sequence[str] = (),
        targets: LogTargets | None = None,
    ) -> None:
        self.store = store
        self.targets = store.targets if targets is None else targets
        self.history_stops = history_stops
        self.target_stops = target_stops
        self.with_targets = with_targets
        self.prequential = prequential
        self.scales = scales or {}
        self.target_columns = target_columns

    def __getitem__(self, plan: BatchPlan) -> SequenceBatch:
        """Return the batch of a plan, with rows right-padded to the longest."""
        self.store.check_in_use()
        windows, item_ids, timestamps = plan.windows, self.store.item_ids, self.store.timestamps
        events = _Places(windows.starts, windows.lengths)
        history = History(
            item_ids=events.rows(item_ids),
            lengths=torch.from_numpy(windows.lengths),
            timestamps=None if timestamps is None else events.rows(timestamps),
            time_before=None if timestamps is None else _times_before(plan, timestamps),
            features=_features(self.store.event_columns, events, self.scales),
        )
        targets, request_times, target_features = None, None, None
        if self.with_targets:
            following = _Places(windows.starts + 1, windows.lengths)
            targets = following.rows(item_ids)
            if self.targets is not None:
                targets = following.only(targets, self.targets)
            request_times = None if timestamps is None else following.rows(timestamps)
            predicted = {name: self.store.event_columns[name] for name in self.target_columns}
            target_features = _features(predicted, following, self.scales, keep_missing=True)
        seen_events, user_ids = self._seen_events(windows.user_rows), torch.from_numpy(windows.user_rows + 1)
        weight = torch.tensor(plan.weight, dtype=torch.float32)
        held_out = None if self.target_stops is None else self._held_out(windows.user_rows, self.target_stops)
        filtered = self.targets is not None
        if filtered and held_out is not None and held_out.timestamps is not None and not self.prequential:
            # The first target may follow events that are none.
            rows, newest = torch.arange(len(user_ids)), history.lengths - 1
            assert request_times is not None
            request_times[rows, newest] = held_out.timestamps[held_out.offsets[:-1]]
        continues = None if plan.continues is None else torch.from_numpy(plan.continues)
        known = (seen_events, weight, held_out, request_times, target_features, continues)
        return SequenceBatch(history, targets, user_ids, *known)

    def _seen_events(self, user_rows: Int64) -> RaggedItems:
        starts, stops = np.asarray(self.store.offsets)[user_rows], self.history_stops[user_rows]
        offsets = np.zeros(len(user_rows) + 1, dtype=np.int64)
        np.cumsum(stops - starts, out=offsets[1:])
        small = self.store.num_items <= np.iinfo(np.int32).max
        item_ids = np.empty(offsets[-1], dtype=np.int32 if small else np.int64)
        column = plain(self.store.item_ids)
        rows = [column[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
        np.concatenate(rows, out=item_ids, casting="unsafe")
        return RaggedItems(torch.from_numpy(item_ids), torch.from_numpy(offsets))

    def _held_out(self, user_rows: Int64, target_stops: Int64) -> HeldOutItems:
        starts = self.history_stops[user_rows]
        counts = target_stops[user_rows] - starts
        places = ranges(starts, counts)
        if (targets := self.targets) is not None:
            rows, there = np.repeat(np.arange(len(counts)), counts), targets.at(places)
            places, counts = places[there], np.bincount(rows[there], minlength=len(counts))
        item_ids = plain(self.store.item_ids)[places].astype(np.int64)
        if counts.max() > 1 and not self.prequential:
            rows = np.repeat(np.arange(len(counts)), counts)
            # The first event of each item. A pair's number fits, because its row is a place in a batch.
            _, first = np.unique(rows * (self.store.num_items + 1) + item_ids, return_index=True)
            first.sort()
            places, item_ids = places[first], item_ids[first]
            counts = np.bincount(rows[first], minlength=len(counts))
        offsets = np.concatenate([[0], np.cumsum(counts)])
        times = self.store.timestamps
        timestamps = None if times is None else torch.from_numpy(plain(times)[places].astype(np.int64))
        positions = None
        if self.prequential:
            positions = torch.from_numpy(places - np.repeat(np.asarray(self.store.offsets)[user_rows], counts))
        return HeldOutItems(torch.from_numpy(item_ids), torch.from_numpy(offsets), timestamps, positions)


def _times_before(plan: BatchPlan, timestamps: Int64) -> Tensor | None:
    """Return the time (B,) of the event before each row that continues another, `NO_TIME` for other rows."""
    if plan.continues is None:
        return None
    before = plain(timestamps)[np.maximum(plan.windows.starts - 1, 0)]
    return torch.from_numpy(np.where(plan.continues, before, NO_TIME))


def padded_rows(column: NDArray[Any], starts: Int64, lengths: Int64) -> Tensor:
    """Return rows (B, L) int64: row b is `column[starts[b]:starts[b] + lengths[b]]`, followed by zeros.

    `column` (E,) is most often memory-mapped. L is the largest of the `lengths` (B,).
    """
    return _Places(starts, lengths).rows(column)


def padded_features(columns: Mapping[str, Column], starts: Int64, lengths: Int64) -> dict[str, Tensor] | None:
    """Return `History.features` of columns with E rows; row b has the events of `padded_rows`."""
    return _features(columns, _Places(starts, lengths), {})


def _features(
    columns: Mapping[str, Column],
    events: _Places,
    scales: Mapping[str, tuple[float, float]],
    *,
    keep_missing: bool = False,
) -> dict[str, Tensor] | None:
    features = {}
    for name, column in columns.items():
        if column.kind == NUMERIC:
            mean, std = scales.get(name, (column.mean, column.std))
            has_missing = column.missing > 0 and not keep_missing
            features[name] = events.standardised(column.values, mean, std, has_missing=has_missing)
        else:
            features[name] = events.rows(column.values, np.int64 if column.kind == CATEGORICAL else np.float32)
    return features or None


class _Places:
    """The events [starts[b], starts[b] + lengths[b]) of each row b of a batch. L is the largest of the lengths (B,)."""

    def __init__(self, starts: Int64, lengths: Int64) -> None:
        self.starts = starts
        self.lengths = lengths
        self.longest = int(lengths.max())

    def rows(self, column: NDArray[Any], dtype: DTypeLike = np.int64) -> Tensor:
        """Return rows (B, L) of a column (E,), most often memory-mapped, or (B, L, W) of (E, W), zeros at padding."""
        column = plain(column)
        return torch.from_numpy((self._copied if self.longest >= LONG_ROWS else self._gathered)(column, dtype))

    def standardised(self, column: NDArray[Any], mean: float, std: float, *, has_missing: bool) -> Tensor:
        """Return rows (B, L) float32 of `(column - mean) / std`; 0 at padding and, if some are missing, for NaN."""
        column = plain(column)
        if self.longest < LONG_ROWS:
            rows = self._gathered(column, np.float32)
            _standardise(rows, mean, std, rows, has_missing=has_missing)
            rows[self._padding] = 0
        else:
            rows = np.zeros((len(self.starts), self.longest), np.float32)
            for row, start, length in zip(rows, self.starts.tolist(), self.lengths.tolist(), strict=True):
                _standardise(column[start : start + length], mean, std, row[:length], has_missing=has_missing)
        return torch.from_numpy(rows)

    def only(self, rows: Tensor, targets: LogTargets) -> Tensor:
        """Return rows (B, L) with 0 at events that are no targets."""
        there = targets.at(np.minimum(self._events, self.starts[:, None] + self.lengths[:, None]))
        return rows.mul_(torch.from_numpy(there))

    def _copied(self, column: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
        rows = np.zeros((len(self.starts), self.longest, *column.shape[1:]), dtype=dtype)
        for row, start, length in zip(rows, self.starts.tolist(), self.lengths.tolist(), strict=True):
            row[:length] = column[start : start + length]
        return rows

    def _gathered(self, column: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
        # Padding first gets the following events, if any, and is then set to zero.
        rows: NDArray[Any] = column.take(self._events, axis=0, mode="clip").astype(dtype, copy=False)
        rows[self._padding] = 0
        return rows

    @cached_property
    def _events(self) -> Int64:
        events: Int64 = self.starts[:, None] + np.arange(self.longest)
        return events

    @cached_property
    def _padding(self) -> NDArray[np.bool_]:
        padding: NDArray[np.bool_] = np.arange(self.longest) >= self.lengths[:, None]
        return padding


def _standardise(
    values: NDArray[np.float32], mean: float, std: float, out: NDArray[np.float32], *, has_missing: bool
) -> None:
    # In numpy, because torch would wake its threads for each of these small steps.
    np.subtract(values, mean, out=out)
    np.multiply(out, 1 / std, out=out)
    if has_missing:
        # NaN differs from itself. Its bits times 0 are 0, several times as fast as by a mask.
        bits = out.view(np.uint32)
        np.multiply(bits, np.equal(out, out), out=bits)
