"""Each user's events put in order, partition after partition; duplicates found. N events, U users in all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec.data.prepare.filters import Duplicates
from seqrec.data.prepare.partitions import Events, Partitions
from seqrec.data.prepare.spool import RawColumn
from seqrec.data.progress import Stage
from seqrec.errors import InputError

# Bytes an event that ordering takes beside two copies of its columns, should all events tie.
_SORTING_BYTES = 64


@dataclass(frozen=True)
class Block:
    """All events of some users in a row.

    Attributes:
        first: User row of the first of them.
        lengths: Events of each of them, from that row on.
        events: Their events: user after user, oldest first.
    """

    first: int
    lengths: NDArray[np.int64]
    events: Events

    def user_rows(self) -> NDArray[np.int64]:
        """Return the user row of each event, (N,)."""
        return np.repeat(np.arange(self.first, self.first + len(self.lengths)), self.lengths)

    def oldest(self, count: int) -> Block:
        """Return the same users with their oldest `count` events."""
        begins = np.cumsum(self.lengths) - self.lengths
        places = np.arange(self.lengths.sum()) - np.repeat(begins, self.lengths)
        return Block(self.first, np.minimum(self.lengths, count), self.events.take(places < count))


@dataclass
class DuplicateCount:
    """How many events repeat user, item and timestamp of one before, and the first of them by user.

    Attributes:
        count: How many.
        example: User row, internal item id and timestamp; None where there are none.
    """

    count: int = 0
    example: tuple[int, int, int] | None = None


def ordering_bytes(types: dict[str, np.dtype[Any]]) -> int:
    """Return the bytes of memory that ordering takes at most for each event of the largest partition.

    Args:
        types: Of `column_types`.
    """
    return _SORTING_BYTES + 2 * sum(dtype.itemsize for dtype in types.values())


def ordered_blocks(
    partitions: Partitions, duplicates: Duplicates, found: DuplicateCount, stage: Stage
) -> Iterator[Block]:
    """Yield the events of all users, a partition at a time, in ascending order of user row.

    A user's events come by timestamp, ties in log order; in log order where there are no timestamps.

    Args:
        partitions: The events.
        duplicates: With "drop", events that repeat an earlier one are left out.
        found: Counts them.
        stage: Told rows.
    """
    for place in range(len(partitions)):
        first, stop = partitions.users(place)
        rows, events = partitions.read(place)
        order = _order(rows, events.timestamps)
        rows, events = rows[order], events.take(order)
        repeated = _repeated(rows, events)
        if len(repeated):
            if found.example is None:
                found.example = _example(first, rows, events, int(repeated[0]))
            found.count += len(repeated)
            if duplicates == "drop":
                kept = np.ones(len(rows), np.bool_)
                kept[repeated] = False
                rows, events = rows[kept], events.take(kept)
        yield Block(first, np.bincount(rows, minlength=stop - first), events)
        stage.advance(len(order))


def refuse_duplicates(
    found: DuplicateCount, user: Callable[[int], int | str], item: Callable[[int], int | str]
) -> None:
    """Stop if there are duplicates.

    Args:
        found: What `ordered_blocks` counted.
        user: External id of an internal user id.
        item: External id of an internal item id.

    Raises:
        InputError: there are.
    """
    if found.example is None:
        return
    row, item_id, time = found.example
    raise InputError(
        f"filters.duplicates='refuse': {found.count:,} events repeat user, item and timestamp of an earlier "
        f"one, first user_id={user(row + 1)!r}, item_id={item(item_id)!r}, timestamp={time}; "
        "clean the log, or choose drop or keep"
    )


@dataclass
class BlockSpool:
    """Blocks kept on disk, to be read several times.

    Args:
        folder: Where the files go.
        name: Start of the files' names, of which there must be none yet.

    Attributes:
        lengths: Events of each user of all blocks, by block.
    """

    folder: Path
    name: str
    lengths: list[NDArray[np.int64]] = field(default_factory=list)
    _columns: dict[str, RawColumn] = field(default_factory=dict)

    @property
    def num_events(self) -> int:
        """Events of all blocks."""
        return sum(int(lengths.sum()) for lengths in self.lengths)

    def append(self, block: Block) -> None:
        """Write a block; they come in ascending order of user row, without gaps."""
        self.lengths.append(block.lengths)
        for name, values in block.events.columns().items():
            if name not in self._columns:
                self._columns[name] = RawColumn(self.folder / f"{self.name}_{name}", values.dtype)
            self._columns[name].append(values)

    def blocks(self, *, items_only: bool = False) -> Iterator[Block]:
        """Yield the blocks as they were written, with their item ids alone if asked."""
        columns: dict[str, RawColumn] = dict(self._columns)
        if items_only:
            columns = {"item_ids": columns["item_ids"]}
        first = start = 0
        for lengths in self.lengths:
            stop = start + int(lengths.sum())
            read: dict[str, NDArray[Any]] = {
                name: column.read(start, stop) for name, column in columns.items()
            }
            yield Block(first, lengths, Events.of_columns(read))
            first, start = first + len(lengths), stop

    def delete(self) -> None:
        """Remove the files."""
        for column in self._columns.values():
            column.delete()


def _order(rows: NDArray[np.uint16], times: NDArray[np.int64] | None) -> NDArray[np.intp]:
    # All sorts are stable, so that ties keep log order; that by 16 bits goes by counting.
    by_user = np.argsort(rows, kind="stable")
    if times is None or _ascends(rows[by_user], times[by_user]):
        return by_user
    by_time = np.argsort(times, kind="stable")
    return by_time[np.argsort(rows[by_time], kind="stable")]


def _ascends(rows: NDArray[np.uint16], times: NDArray[np.int64]) -> bool:
    # Most logs are written as events happen, and need no sorting by time.
    return not bool(np.any((times[1:] < times[:-1]) & (rows[1:] == rows[:-1])))


def _repeated(rows: NDArray[np.uint16], events: Events) -> NDArray[np.intp]:
    # Places, ascending, of ordered events that are duplicates: each but the first of equal ones in log order.
    times = events.timestamps
    if times is None:
        return np.empty(0, np.intp)
    ties = (times[1:] == times[:-1]) & (rows[1:] == rows[:-1])
    if not ties.any():
        return np.empty(0, np.intp)
    tied = np.zeros(len(times), np.bool_)
    tied[1:] = ties
    tied[:-1] |= ties
    places = np.flatnonzero(tied)
    # Events of one user and time, numbered: a new number wherever an event is not tied to the one before.
    group = np.cumsum(~np.concatenate([[False], ties])[places])
    items = events.item_ids[places]
    order = np.lexsort((items, group))
    same = (items[order][1:] == items[order][:-1]) & (group[order][1:] == group[order][:-1])
    return np.sort(places[order[1:][same]])


def _example(first: int, rows: NDArray[np.uint16], events: Events, place: int) -> tuple[int, int, int]:
    assert events.timestamps is not None
    return first + int(rows[place]), int(events.item_ids[place]), int(events.timestamps[place])
