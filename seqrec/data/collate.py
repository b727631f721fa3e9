"""Windows to tensors, without a Python loop over events."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from seqrec.data.ragged import ranges
from seqrec.data.store import EventStore
from seqrec.data.windows import WindowIndex
from seqrec.types import History, SeenItems, SequenceBatch

Int64 = NDArray[np.int64]


class WindowDataset(Dataset[SequenceBatch]):
    """Batches of windows by their numbers; picklable, reads the memory-mapped store.

    Args:
        store: The events.
        windows: The windows to serve.
        history_stops: (num_users,) end of what counts as seen by a user, from `Split.history_stops`.
        with_targets: False when no event stands behind the windows (prediction).
    """

    def __init__(
        self, store: EventStore, windows: WindowIndex, history_stops: Int64, *, with_targets: bool = True
    ) -> None:
        self.store = store
        self.windows = windows
        self.history_stops = history_stops
        self.with_targets = with_targets

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, numbers: Int64) -> SequenceBatch:
        """Collate the windows `numbers` (B,), right-padded to the longest of them."""
        rows = self.windows.user_rows[numbers]
        starts, lengths = self.windows.starts[numbers], self.windows.lengths[numbers]
        events, valid = _padded_positions(starts, lengths)
        timestamps = self.store.timestamps
        history = History(
            item_ids=_read(self.store.item_ids, events, valid),
            lengths=torch.from_numpy(lengths),
            timestamps=None if timestamps is None else _read(timestamps, events, valid),
        )
        targets = _read(self.store.item_ids, events + 1, valid) if self.with_targets else None
        return SequenceBatch(history, targets, torch.from_numpy(rows + 1), self._seen(rows))

    def _seen(self, rows: Int64) -> SeenItems:
        starts = np.asarray(self.store.offsets)[rows]
        counts = self.history_stops[rows] - starts
        batch_rows = np.repeat(np.arange(len(rows)), counts)
        item_ids = self.store.item_ids[ranges(starts, counts)].astype(np.int64)
        return SeenItems.from_events(torch.from_numpy(batch_rows), torch.from_numpy(item_ids), len(rows))


def _padded_positions(starts: Int64, lengths: Int64) -> tuple[Int64, NDArray[np.bool_]]:
    """Event numbers (B, L) of right-padded windows, 0 at padding, and which are events."""
    steps = np.arange(lengths.max(initial=0))
    valid = steps < lengths[:, None]
    return np.where(valid, starts[:, None] + steps, 0), valid


def _read(column: NDArray[np.integer], events: Int64, valid: NDArray[np.bool_]) -> Tensor:
    values = np.zeros(events.shape, dtype=np.int64)
    values[valid] = column[events[valid]]
    return torch.from_numpy(values)
