"""Files with the events of neighbouring users together: the spool, split by ranges of users that fit memory.

C events a chunk, U users, P partitions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from seqrec.data.prepare.numbering import Ids, Numbering
from seqrec.data.prepare.spool import RawColumn, Spool
from seqrec.data.schema import EVENTS
from seqrec.data.tasks import own_name

# Columns of some events, (N,) each, by the names of the store's files: `item_ids`, `timestamps` if the log has times,
# and `events.<name>` for each column of the schema.
Events: TypeAlias = dict[str, NDArray[Any]]
# Events to sort at a time, unless one user has more. Small, because using more memory is slower.
PARTITION_EVENTS = 1 << 21
# Users a partition. Their places in it take two bytes, which are sorted by counting.
PARTITION_USERS = 1 << 16


def take(events: Events, places: NDArray[Any]) -> Events:
    """Return the events at `places`, integers or booleans (N,)."""
    return {name: values[places] for name, values in events.items()}


def largest(lengths: NDArray[np.int64], bounds: NDArray[np.int64]) -> tuple[int, int]:
    """Return the number of events of the largest partition, and its first user row."""
    sizes = np.add.reduceat(lengths, bounds[:-1])
    place = int(np.argmax(sizes))
    return int(sizes[place]), int(bounds[place])


def column_types(spool: Spool, items: Numbering) -> dict[str, np.dtype[Any]]:
    """Return the type of each column of the store, by the names of `Events`."""
    types = {"item_ids": items.dtype}
    if spool.timestamps is not None:
        types["timestamps"] = np.dtype(np.int64)
    return types | {f"{EVENTS}.{name}": column.dtype for name, column in spool.columns.items()}


@dataclass(frozen=True)
class Partitioning:
    """How the events of a log are brought together, and the items and columns that each part of it takes along.

    Attributes:
        folder: Folder for a folder of each part.
        users: (P + 1,) bounds of the partitions, as user rows.
        items: The item ids.
        types: Type of each column of the store, by the names of `Events`.
    """

    folder: Path
    users: NDArray[np.int64]
    items: Numbering
    types: dict[str, np.dtype[Any]]


def bring_together(how: Partitioning, spool: Spool, advance: Callable[[int], None]) -> Partitions:
    """Write the events of a part of a log into partitions of their own.

    Args:
        how: Bounds and types of the partitions.
        spool: The part, with its `user_rows`.
        advance: Called with numbers of events that are written.
    """
    assert spool.user_rows is not None
    partitions = Partitions(how, spool.user_rows[1].mapped())
    partitions.fill(spool, spool.user_rows[0], how.items, spool.chunks(advance))
    return partitions


class Partitions:
    """Files with the events of neighbouring users together, each user's in log order, of a log or a part of it.

    `lengths` (U,) are the numbers of the users' events.
    """

    def __init__(self, how: Partitioning, lengths: NDArray[np.int64]) -> None:
        # Bounds of the partitions, (P + 1,), as user rows and as events in the order of users.
        self._users = how.users
        self._events = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[self._users]
        folder, types = own_name(how.folder), how.types
        folder.mkdir()
        self.folder = folder
        self._rows = RawColumn(folder / "user_rows", np.uint16)
        self._columns = {name: RawColumn(folder / name, types[name]) for name in types}

    def __len__(self) -> int:
        return len(self._users) - 1

    def fill(self, spool: Spool, user_rows: RawColumn, items: Numbering, chunks: Iterable[int]) -> None:
        """Write the events of the spool."""
        count = len(self)
        partition_of = np.repeat(np.arange(count, dtype=np.min_scalar_type(count)), np.diff(self._users))
        firsts = self._users[:-1].astype(user_rows.dtype)
        filled = self._events[:-1].copy()
        with ExitStack() as opened:
            files = [
                (column, opened.enter_context(column.file.open("r+b")))
                for column in (self._rows, *self._columns.values())
            ]
            start = 0
            for chunk in chunks:
                length = spool.lengths[chunk]
                rows = user_rows.read(start, start + length)
                partition = partition_of[rows]
                order = np.argsort(partition, kind="stable")
                local = (rows - firsts[partition]).astype(np.uint16)
                events = _chunk(spool, chunk, start, items.ids(spool.items, chunk))
                counts = np.bincount(partition, minlength=count)
                for (column, file), values in zip(files, (local, *events.values()), strict=True):
                    _scatter(file, column.dtype, values[order], counts, filled)
                filled += counts
                start += length

    def users(self, place: int) -> tuple[int, int]:
        """Return the range of user rows of partition number `place`."""
        return int(self._users[place]), int(self._users[place + 1])

    def read(self, place: int) -> tuple[NDArray[np.uint16], Events]:
        """Return partition number `place`: user rows (N,), counted from its first one, and events, in log order."""
        start, stop = self._events[place : place + 2].tolist()
        columns = {name: column.read(start, stop) for name, column in self._columns.items()}
        return self._rows.read(start, stop), columns


def user_bounds(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the first user row of each partition, and U, (P + 1,). `lengths` (U,) are the users' events, at least 1.

    A user with too many events has a partition alone.
    """
    ends, bounds = np.cumsum(lengths), [0]
    while bounds[-1] < len(ends):
        first = bounds[-1]
        begun = int(ends[first - 1]) if first else 0
        stop = int(np.searchsorted(ends, begun + PARTITION_EVENTS, side="right"))
        bounds.append(min(max(stop, first + 1), first + PARTITION_USERS))
    return np.array(bounds, np.int64)


def _chunk(spool: Spool, chunk: int, start: int, item_ids: Ids) -> Events:
    stop = start + spool.lengths[chunk]
    times = {} if spool.timestamps is None else {"timestamps": spool.timestamps.read(chunk)}
    columns = {f"{EVENTS}.{name}": column.read(start, stop) for name, column in spool.columns.items()}
    return {"item_ids": item_ids, **times, **columns}


def _scatter(
    file: BinaryIO,
    dtype: np.dtype[Any],
    values: NDArray[Any],
    counts: NDArray[np.int64],
    filled: NDArray[np.int64],
) -> None:
    # Write `values`, which are in order of partitions, `counts` of each, after the `filled` events of each.
    begun = 0
    for partition in np.flatnonzero(counts):
        stop = begun + int(counts[partition])
        file.seek(int(filled[partition]) * dtype.itemsize)
        file.write(np.ascontiguousarray(values[begun:stop], dtype).data)
        begun = stop
