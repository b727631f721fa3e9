"""Windows to tensors, without a Python loop over events. B batch, L events."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from seqrec.data.sampler import BatchPlan
from seqrec.data.windows import ranges
from seqrec.types import HeldOutItems, History, RaggedItems, SequenceBatch

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

    def check_in_use(self) -> None:
        """Raise an error if the events can no longer be read; see `EventStore.check_in_use`."""


class WindowDataset(Dataset[SequenceBatch]):
    """Batches of windows by their plans. The data set can be pickled if its events can.

    `history_stops` (U,) are the ends of users' seen events, from `Split.history_stops`; `target_stops` (U,) those of
    held-out events, from `Split.target_stops`, None if no events are. Without `with_targets` no event follows the
    windows (prediction). With `prequential`, windows are whole histories up to the event before the last target, and
    each target keeps its position in them.
    """

    def __init__(
        self,
        store: EventArrays,
        history_stops: Int64,
        *,
        target_stops: Int64 | None = None,
        with_targets: bool = True,
        prequential: bool = False,
    ) -> None:
        self.store = store
        self.history_stops = history_stops
        self.target_stops = target_stops
        self.with_targets = with_targets
        self.prequential = prequential

    def __getitem__(self, plan: BatchPlan) -> SequenceBatch:
        """Return the batch of a plan, with rows right-padded to the longest."""
        self.store.check_in_use()
        windows, item_ids, timestamps = plan.windows, self.store.item_ids, self.store.timestamps
        starts, lengths = windows.starts, windows.lengths
        history = History(
            item_ids=padded_rows(item_ids, starts, lengths),
            lengths=torch.from_numpy(lengths),
            timestamps=None if timestamps is None else padded_rows(timestamps, starts, lengths),
        )
        targets, request_times = None, None
        if self.with_targets:
            targets = padded_rows(item_ids, starts + 1, lengths)
            request_times = None if timestamps is None else padded_rows(timestamps, starts + 1, lengths)
        seen_events, user_ids = self._seen_events(windows.user_rows), torch.from_numpy(windows.user_rows + 1)
        weight = torch.tensor(plan.weight, dtype=torch.float32)
        held_out = None if self.target_stops is None else self._held_out(windows.user_rows, self.target_stops)
        return SequenceBatch(history, targets, user_ids, seen_events, weight, held_out, request_times)

    def _seen_events(self, user_rows: Int64) -> RaggedItems:
        starts, stops = np.asarray(self.store.offsets)[user_rows], self.history_stops[user_rows]
        offsets = np.zeros(len(user_rows) + 1, dtype=np.int64)
        np.cumsum(stops - starts, out=offsets[1:])
        small = self.store.num_items <= np.iinfo(np.int32).max
        item_ids = np.empty(offsets[-1], dtype=np.int32 if small else np.int64)
        column = np.asarray(self.store.item_ids)
        rows = [column[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
        np.concatenate(rows, out=item_ids, casting="unsafe")
        return RaggedItems(torch.from_numpy(item_ids), torch.from_numpy(offsets))

    def _held_out(self, user_rows: Int64, target_stops: Int64) -> HeldOutItems:
        starts = self.history_stops[user_rows]
        counts = target_stops[user_rows] - starts
        places = ranges(starts, counts)
        item_ids = np.asarray(self.store.item_ids)[places].astype(np.int64)
        if counts.max() > 1 and not self.prequential:
            rows = np.repeat(np.arange(len(counts)), counts)
            # The first event of each item. A pair's number fits, because its row is a place in a batch.
            _, first = np.unique(rows * (self.store.num_items + 1) + item_ids, return_index=True)
            first.sort()
            places, item_ids = places[first], item_ids[first]
            counts = np.bincount(rows[first], minlength=len(counts))
        offsets = np.concatenate([[0], np.cumsum(counts)])
        times = self.store.timestamps
        timestamps = None if times is None else torch.from_numpy(np.asarray(times)[places].astype(np.int64))
        positions = None
        if self.prequential:
            positions = torch.from_numpy(places - np.repeat(np.asarray(self.store.offsets)[user_rows], counts))
        return HeldOutItems(torch.from_numpy(item_ids), torch.from_numpy(offsets), timestamps, positions)


def padded_rows(column: NDArray[np.integer[Any]], starts: Int64, lengths: Int64) -> Tensor:
    """Return rows (B, L) int64: row b is `column[starts[b]:starts[b] + lengths[b]]`, followed by zeros.

    `column` (E,) is most often memory-mapped. L is the largest of the `lengths` (B,).
    """
    # Each slice of the map itself would make another map object.
    column = np.asarray(column)
    longest = int(lengths.max())
    gather = _copy_each if longest >= LONG_ROWS else _gather
    return torch.from_numpy(gather(column, starts, lengths, longest))


def _copy_each(column: NDArray[np.integer[Any]], starts: Int64, lengths: Int64, longest: int) -> Int64:
    rows = np.zeros((len(starts), longest), dtype=np.int64)
    for row, start, length in zip(rows, starts.tolist(), lengths.tolist(), strict=True):
        row[:length] = column[start : start + length]
    return rows


def _gather(column: NDArray[np.integer[Any]], starts: Int64, lengths: Int64, longest: int) -> Int64:
    steps = np.arange(longest)
    # Padding first gets the following events, if any, and is then set to zero.
    events = np.minimum(starts[:, None] + steps, len(column) - 1)
    rows: Int64 = column.take(events).astype(np.int64, copy=False)
    rows[steps >= lengths[:, None]] = 0
    return rows
