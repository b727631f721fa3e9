"""Order each user's events, partition after partition, and find duplicates. N events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec.data.prepare.filters import Duplicates
from seqrec.data.prepare.partitions import Events, Partitions, take
from seqrec.data.prepare.spool import RawColumn

# Bytes an event for ordering, besides two copies of its columns, if all events tie.
_SORTING_BYTES = 64


@dataclass(frozen=True)
class Block:
    """All events of some users in a row.

    Attributes:
        first: User row of the first user.
        lengths: Number of events of each user, from that row on.
        events: The events, user after user, oldest first.
    """

    first: int
    lengths: NDArray[np.int64]
    events: Events

    def __len__(self) -> int:
        return len(self.events["item_ids"])

    def user_rows(self) -> NDArray[np.int64]:
        """Return the user row of each event, (N,)."""
        return np.repeat(np.arange(self.first, self.first + len(self.lengths)), self.lengths)

    def oldest(self, count: int) -> Block:
        """Return the same users with their oldest `count` events."""
        begins = np.cumsum(self.lengths) - self.lengths
        places = np.arange(self.lengths.sum()) - np.repeat(begins, self.lengths)
        return Block(self.first, np.minimum(self.lengths, count), take(self.events, places < count))


@dataclass
class DuplicateCount:
    """Count of the events with the user, item and timestamp of an earlier one, and the first of them by user."""

    count: int = 0
    example: tuple[int, int, int] | None = None

    def add(self, later: DuplicateCount) -> None:
        """Add the count of later users."""
        self.count += later.count
        self.example = self.example or later.example


@dataclass(frozen=True)
class Ordering:
    """The partitions of each part of a log, in log order, and the treatment of duplicates."""

    parts: list[Partitions]
    duplicates: Duplicates


def ordering_bytes(types: dict[str, np.dtype[Any]]) -> int:
    """Return the bytes of memory that ordering takes at most, for each event of the largest partition."""
    return _SORTING_BYTES + 2 * sum(dtype.itemsize for dtype in types.values())


def ordered_block(log: Ordering, place: int, advance: Callable[[int], None]) -> tuple[Block, DuplicateCount]:
    """Return the events of the users of partition number `place`, and the duplicates among them.

    A user's events are ordered by timestamp, ties by log order; by log order if the log has no timestamps.
    """
    first, stop = log.parts[0].users(place)
    rows, events = _read(log.parts, place)
    advance(len(rows))
    order = _order(rows, events.get("timestamps"))
    rows, events = rows[order], take(events, order)
    repeated = repeated_places(rows, events)
    found = DuplicateCount(len(repeated))
    if len(repeated):
        earliest = int(repeated[0])
        item_id, time = int(events["item_ids"][earliest]), int(events["timestamps"][earliest])
        found.example = first + int(rows[earliest]), item_id, time
        if log.duplicates == "drop":
            kept = np.ones(len(rows), np.bool_)
            kept[repeated] = False
            rows, events = rows[kept], take(events, kept)
    return Block(first, np.bincount(rows, minlength=stop - first), events), found


def _read(parts: list[Partitions], place: int) -> tuple[NDArray[np.uint16], Events]:
    if len(parts) == 1:
        return parts[0].read(place)
    rows, events = zip(*(part.read(place) for part in parts), strict=True)
    return np.concatenate(rows), {name: np.concatenate([each[name] for each in events]) for name in events[0]}


@dataclass
class BlockSpool:
    """Blocks on disk that can be read several times, in files of a new folder."""

    folder: Path
    lengths: list[NDArray[np.int64]] = field(default_factory=list)
    _columns: dict[str, RawColumn] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir()

    @property
    def num_events(self) -> int:
        """Events of all blocks."""
        return sum(int(lengths.sum()) for lengths in self.lengths)

    def append(self, block: Block) -> None:
        """Write a block. The blocks must be in ascending order of user row, without gaps."""
        self.lengths.append(block.lengths)
        for name, values in block.events.items():
            if name not in self._columns:
                self._columns[name] = RawColumn(self.folder / name, values.dtype)
            self._columns[name].append(values)

    def blocks(self, *, items_only: bool = False) -> Iterator[Block]:
        """Yield the blocks in order; with `items_only` they have no other columns than item ids."""
        columns = {"item_ids": self._columns["item_ids"]} if items_only else self._columns
        first = start = 0
        for lengths in self.lengths:
            stop = start + int(lengths.sum())
            yield Block(first, lengths, {name: column.read(start, stop) for name, column in columns.items()})
            first, start = first + len(lengths), stop


def _order(rows: NDArray[np.uint16], times: NDArray[np.int64] | None) -> NDArray[np.intp]:
    # All sorts are stable, which keeps ties in log order. Rows of 16 bits are sorted by counting.
    by_user = np.argsort(rows, kind="stable")
    if times is None or _ascends(rows[by_user], times[by_user]):
        return by_user
    by_time = np.argsort(times, kind="stable")
    return by_time[np.argsort(rows[by_time], kind="stable")]


def _ascends(rows: NDArray[np.uint16], times: NDArray[np.int64]) -> bool:
    # True for most logs, which are written as events happen, and need no sorting by time.
    return not bool(np.any((times[1:] < times[:-1]) & (rows[1:] == rows[:-1])))


def repeated_places(rows: NDArray[np.integer[Any]], events: Events) -> NDArray[np.intp]:
    """Return the places, ascending, of duplicates among ordered events: all but the first of equal ones in order."""
    times = events.get("timestamps")
    if times is None:
        return np.empty(0, np.intp)
    ties = (times[1:] == times[:-1]) & (rows[1:] == rows[:-1])
    if not ties.any():
        return np.empty(0, np.intp)
    tied = np.zeros(len(times), np.bool_)
    tied[1:] = ties
    tied[:-1] |= ties
    places = np.flatnonzero(tied)
    # A number for the events of one user and time: an event that is not tied to the one before gets a new one.
    group = np.cumsum(~np.concatenate([[False], ties])[places])
    items = events["item_ids"][places]
    order = np.lexsort((items, group))
    same = (items[order][1:] == items[order][:-1]) & (group[order][1:] == group[order][:-1])
    return np.sort(places[order[1:][same]])
