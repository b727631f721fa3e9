"""The training part of a log, read in pieces. U users, E events of the log, N events of a piece."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqrec.data.cold_items import without_items
from seqrec.data.event_block import EventBlock
from seqrec.data.segments import plain
from seqrec.data.splits import Split
from seqrec.data.store import EventStore
from seqrec.data.targets import LogTargets

Int64 = NDArray[np.int64]

# Events in memory at a time: 2^22 places, users and items as int64 are 96 MiB.
PIECE_EVENTS = 1 << 22


class LogEvents(NamedTuple):
    """Some events of a log: their places in it, rows of users, and items, (N,) int64 each."""

    places: Int64
    user_rows: Int64
    item_ids: Int64


@dataclass(frozen=True)
class TrainingEvents:
    """The events that a model may learn from: for the user in row u, the log's events `starts[u]` to `stops[u]` - 1.

    With a target filter, baselines learn from targets as what is predicted: they count how often an item is a target,
    and which targets are near any events.

    Attributes:
        item_ids: (E,) items of the whole log, usually memory-mapped.
        timestamps: (E,) int64, or None if the log has no times.
        starts: (U,) int64, ascending, first event of each user.
        stops: (U,) int64, end of each user's training part.
        num_items: Items of the catalogue; ids are 1..num_items.
        piece_events: Events in memory at a time; all events of one item are always read together.
        targets: The events that are predicted; None is all.

    Example:
        >>> import numpy as np
        >>> from seqrec import TrainingEvents
        >>> log = TrainingEvents(np.array([1, 2, 2, 3]), None, np.array([0, 3]), np.array([2, 4]), num_items=3)
        >>> log.item_counts().tolist()  # without the third event, which is held out
        [0, 1, 1, 1]
    """

    item_ids: NDArray[np.integer[Any]]
    timestamps: Int64 | None
    starts: Int64
    stops: Int64
    num_items: int
    piece_events: int = PIECE_EVENTS
    targets: LogTargets | None = None

    @staticmethod
    def of(store: EventStore, split: Split) -> TrainingEvents:
        """Return the training part of a store under a split, in memory if the split hides items from it."""
        log: EventStore | EventBlock = store
        stops = split.history_stops(store, "train")
        if (hidden := split.hidden_items(store)) is not None:
            log, stops = without_items(store, hidden, stops)
        timestamps = None if log.timestamps is None else plain(log.timestamps)
        starts = np.asarray(log.offsets)[:-1]
        return TrainingEvents(plain(log.item_ids), timestamps, starts, stops, log.num_items, targets=log.targets)

    @property
    def with_context(self) -> TrainingEvents:
        """The same events as if all of them were targets."""
        return replace(self, targets=None)

    def is_target(self, places: Int64) -> NDArray[np.bool_]:
        """Return which of the log's events at `places`, of any shape, are targets."""
        return np.ones(places.shape, dtype=np.bool_) if self.targets is None else self.targets.at(places)

    def pieces(self) -> Iterator[LogEvents]:
        """Yield all training targets in the log's order, those of `piece_events` events at a time."""
        for begin in range(0, len(self.item_ids), self.piece_events):
            end = min(begin + self.piece_events, len(self.item_ids))
            yield self._at(np.arange(begin, end))

    def item_counts(self) -> Int64:
        """Return (num_items + 1,) the number of targets of each item; item 0 has none."""
        counts = np.zeros(self.num_items + 1, dtype=np.int64)
        for events in self.pieces():
            counts += np.bincount(events.item_ids, minlength=len(counts))
        return counts

    def by_item(self) -> Iterator[LogEvents]:
        """Yield all training targets by item, then in the log's order; an item's targets stay together.

        The log is read once per piece, as it may not fit into memory to be sorted.
        """
        until = np.cumsum(self.item_counts())
        first = 1
        while first <= self.num_items:
            # As many items as fit, but at least one.
            end = int(np.searchsorted(until, until[first - 1] + self.piece_events, side="right"))
            end = max(end, first + 1)
            events = self._of_items(first, end)
            order = np.argsort(events.item_ids, kind="stable")
            yield LogEvents(*(column[order] for column in events))
            first = end

    def _of_items(self, first: int, end: int) -> LogEvents:
        """Return the training targets of the items `first` to `end` - 1."""
        found = []
        for begin in range(0, len(self.item_ids), self.piece_events):
            item_ids = self.item_ids[begin : begin + self.piece_events]
            found.append(self._at(np.flatnonzero((item_ids >= first) & (item_ids < end)) + begin))
        return LogEvents(*(np.concatenate(columns) for columns in zip(*found, strict=True)))

    def _at(self, places: Int64) -> LogEvents:
        """Return the targets at these places, without those that are held out."""
        # Users without events have the start of the next user, which is the one to find.
        user_rows = np.searchsorted(self.starts, places, side="right") - 1
        known = (places < self.stops[user_rows]) & self.is_target(places)
        places, user_rows = places[known], user_rows[known]
        return LogEvents(places, user_rows, self.item_ids[places].astype(np.int64))
