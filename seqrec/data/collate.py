"""Windows to tensors, without a Python loop over events. B batch, L events."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from seqrec.data.ragged import ranges
from seqrec.data.sampler import BatchPlan
from seqrec.types import HeldOutItems, History, RaggedItems, SequenceBatch

Int64 = NDArray[np.int64]

# Longest row, in events, from which rows are copied one by one. A copy costs some 0.5 us beside its bytes, a gather
# some 2 ns an event.
LONG_ROWS = 256


class Events(Protocol):
    """What windows are cut from: an `EventStore`, or an `EventBlock` in memory."""

    @property
    def item_ids(self) -> NDArray[np.integer[Any]]:
        """(E,) internal ids."""

    @property
    def timestamps(self) -> Int64 | None:
        """(E,) or None where there are none."""

    @property
    def offsets(self) -> Int64:
        """(U + 1,) where each user's events start."""

    @property
    def num_items(self) -> int:
        """Items of the catalogue."""

    def check_in_use(self) -> None:
        """Raise an error where the events can no longer be read; see `EventStore.check_in_use`."""


class WindowDataset(Dataset[SequenceBatch]):
    """Batches of windows by their plans; picklable where the events are, reads the memory-mapped store.

    Args:
        store: The events.
        history_stops: (num_users,) end of what counts as seen by a user, from `Split.history_stops`.
        target_stops: (num_users,) end of what a user is judged by, from `Split.target_stops`; None judges by nothing.
        with_targets: False when no event stands behind the windows (prediction).
    """

    def __init__(
        self,
        store: Events,
        history_stops: Int64,
        *,
        target_stops: Int64 | None = None,
        with_targets: bool = True,
    ) -> None:
        self.store = store
        self.history_stops = history_stops
        self.target_stops = target_stops
        self.with_targets = with_targets

    def __getitem__(self, plan: BatchPlan) -> SequenceBatch:
        """Collate the windows of a batch, right-padded to the longest of them."""
        self.store.check_in_use()
        windows, item_ids, timestamps = plan.windows, self.store.item_ids, self.store.timestamps
        starts, lengths = windows.starts, windows.lengths
        history = History(
            item_ids=padded_rows(item_ids, starts, lengths),
            lengths=torch.from_numpy(lengths),
            timestamps=None if timestamps is None else padded_rows(timestamps, starts, lengths),
        )
        targets = padded_rows(item_ids, starts + 1, lengths) if self.with_targets else None
        seen_events, user_ids = self._seen_events(windows.user_rows), torch.from_numpy(windows.user_rows + 1)
        weight = torch.tensor(plan.weight, dtype=torch.float32)
        held_out = None if self.target_stops is None else self._held_out(windows.user_rows, self.target_stops)
        return SequenceBatch(history, targets, user_ids, seen_events, weight, held_out)

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
        if counts.max() > 1:
            rows = np.repeat(np.arange(len(counts)), counts)
            # The first event of each item; numbers of pairs are places in a batch, so they fit.
            _, first = np.unique(rows * (self.store.num_items + 1) + item_ids, return_index=True)
            first.sort()
            places, item_ids = places[first], item_ids[first]
            counts = np.bincount(rows[first], minlength=len(counts))
        offsets = np.concatenate([[0], np.cumsum(counts)])
        times = self.store.timestamps
        timestamps = None if times is None else torch.from_numpy(np.asarray(times)[places].astype(np.int64))
        return HeldOutItems(torch.from_numpy(item_ids), torch.from_numpy(offsets), timestamps)


def padded_rows(column: NDArray[np.integer[Any]], starts: Int64, lengths: Int64) -> Tensor:
    """(B, L) int64, row b holds `column[starts[b]:starts[b] + lengths[b]]` and zeros behind.

    Args:
        column: (E,) integers, most often memory-mapped.
        starts: (B,) int64.
        lengths: (B,) int64; L is the largest.
    """
    # A slice of the map itself would make another map object each time.
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
    # Padding reads on into the events behind, as far as there are any, and is wiped out after.
    events = np.minimum(starts[:, None] + steps, len(column) - 1)
    rows: Int64 = column.take(events).astype(np.int64, copy=False)
    rows[steps >= lengths[:, None]] = 0
    return rows
