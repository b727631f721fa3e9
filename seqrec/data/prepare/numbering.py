"""From external ids to internal ids, 1.. in ascending order of external id. C events a chunk, N distinct ids.

Memory: 5 R bytes for integers in a small range of R values, up to 36 N bytes for other integers, about four times the
size of the distinct ids for text, 12 bytes for each raw id. It does not grow with the events.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, TypeAlias, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqrec.data.ids import refuse_two_spellings
from seqrec.data.prepare.memory import MemoryLimit
from seqrec.data.prepare.spool import IntegerColumn, TextColumn, differences
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError

Ids: TypeAlias = NDArray[np.unsignedinteger[Any]]
Run = TypeVar("Run", bound=Sized)
# Sorting is cheaper than a table if the range has more values than this for each event, and more than a million.
_SPARSE = 8
_SMALL_RANGE = 1 << 20
_BLOCK = 1 << 20
# For each raw id while events are counted: the count, and two flags (kept, in the catalogue).
_BYTES_OF_RAW = 12
# Distinct ids are merged when they are this many, or a quarter of those merged already.
_PENDING = 1 << 20


class Numbering(ABC):
    """The distinct external ids of a column.

    Attributes:
        size: Number of distinct ids, N.
        is_text: Whether external ids are text instead of integers.
        listed: (N + 1,) True for ids that the store numbers even if no event of theirs is kept; None is none.
    """

    size: int
    is_text: bool = False
    listed: NDArray[np.bool_] | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Smallest unsigned type of internal ids."""
        return np.min_scalar_type(self.size)

    @abstractmethod
    def ids(self, column: Any, chunk: int) -> Ids:
        """Return internal ids (C,) of chunk number `chunk` of a column, with values that are numbered."""

    @abstractmethod
    def external_id(self, internal_id: int) -> int | str:
        """Return the external id of an internal id."""

    @abstractmethod
    def blocks(self, kept: NDArray[np.bool_]) -> Iterator[NDArray[np.int64] | pl.Series]:
        """Yield the external ids for which `kept` (N,) is True, in ascending order, a bounded number at a time."""


class IntegerTable(Numbering):
    """Integers in a small range: a table of all values in the range."""

    def __init__(self, low: int, high: int, runs: Iterable[NDArray[np.int64]]) -> None:
        self._low = low
        seen = np.zeros(high - low + 1, np.bool_)
        for run in runs:
            seen[self._places(run)] = True
        self._seen = seen
        self.size = int(np.count_nonzero(seen))
        self._ranks = np.cumsum(seen, dtype=self.dtype)

    def ids(self, column: IntegerColumn, chunk: int) -> Ids:  # noqa: D102
        return self._ranks[self._places(column.read(chunk))]

    def external_id(self, internal_id: int) -> int:  # noqa: D102
        return self._low + int(np.searchsorted(self._ranks, internal_id))

    def blocks(self, kept: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:  # noqa: D102
        done = 0
        for start in range(0, len(self._seen), _BLOCK):
            places = np.flatnonzero(self._seen[start : start + _BLOCK])
            chosen = places[kept[done : done + len(places)]]
            done += len(places)
            yield chosen.astype(np.int64) + (self._low + start)

    def _places(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        return differences(values, self._low).view(np.int64)


class RawIntegers(Numbering):
    """All integers from 1 to the largest of the columns, even if they do not occur; internal ids are external ids."""

    def __init__(self, columns: Sequence[IntegerColumn | TextColumn], limit: MemoryLimit) -> None:
        low, high = bounds_of(columns)
        if isinstance(columns[0], TextColumn) or low < 1:
            found = "text" if isinstance(columns[0], TextColumn) else f"integers from {low} on"
            raise InputError(
                f"filters.as_published_raw_ids=True needs item ids that are integers from 1 on, but the log's are "
                f"{found}; leave it out"
            )
        limit.require(_BYTES_OF_RAW * high, f"the items 1..{high:,} of filters.as_published_raw_ids")
        self.size = high
        self.listed = np.arange(high + 1) > 0

    def ids(self, column: IntegerColumn, chunk: int) -> Ids:  # noqa: D102
        return column.read(chunk).astype(self.dtype)

    def external_id(self, internal_id: int) -> int:  # noqa: D102
        return internal_id

    def blocks(self, kept: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:  # noqa: D102
        for start in range(0, self.size, _BLOCK):
            yield np.flatnonzero(kept[start : start + _BLOCK]) + (start + 1)


class SortedIntegers(Numbering):
    """Integers in a wide range: their distinct values in ascending order."""

    def __init__(self, runs: Iterable[NDArray[np.int64]], limit: MemoryLimit, what: str) -> None:
        def merge(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
            # In addition to the parts: their concatenation, half as much to sort it, and the result.
            limit.require(20 * sum(map(len, parts)), f"the distinct ids of {what}")
            return _merged(parts)

        # Sorting is many times faster than the hash table of `numpy.unique`.
        self._distinct = _merged_in_turn(np.empty(0, np.int64), (_firsts(np.sort(run)) for run in runs), merge)
        self.size = len(self._distinct)

    def ids(self, column: IntegerColumn, chunk: int) -> Ids:  # noqa: D102
        # Looking up ascending values reads memory once, in order.
        values, places = np.unique(column.read(chunk), return_inverse=True)
        return (np.searchsorted(self._distinct, values) + 1).astype(self.dtype)[places]

    def external_id(self, internal_id: int) -> int:  # noqa: D102
        return int(self._distinct[internal_id - 1])

    def blocks(self, kept: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:  # noqa: D102
        for start in range(0, self.size, _BLOCK):
            yield self._distinct[start : start + _BLOCK][kept[start : start + _BLOCK]]


class SortedTexts(Numbering):
    """Text: its distinct values in ascending order."""

    is_text = True

    def __init__(self, runs: Iterable[pl.Series], limit: MemoryLimit, what: str) -> None:
        def merge(parts: list[pl.Series]) -> pl.Series:
            size = sum(int(part.estimated_size()) for part in parts)
            limit.require(3 * size, f"the distinct ids of {what}")
            merged = pl.concat(parts, rechunk=True).sort()
            return merged.filter(merged.ne_missing(merged.shift(1)))

        self._distinct = _merged_in_turn(pl.Series("text", [], pl.String), runs, merge).rechunk()
        refuse_two_spellings(self._distinct, f"the log's column of {what}")
        self.size = len(self._distinct)

    def ids(self, column: TextColumn, chunk: int) -> Ids:  # noqa: D102
        ranks = self._distinct.search_sorted(column.values(chunk)).to_numpy() + 1
        return ranks.astype(self.dtype)[column.read(chunk)]

    def external_id(self, internal_id: int) -> str:  # noqa: D102
        return str(self._distinct[internal_id - 1])

    def blocks(self, kept: NDArray[np.bool_]) -> Iterator[pl.Series]:  # noqa: D102
        for start in range(0, self.size, _BLOCK):
            yield self._distinct[start : start + _BLOCK].filter(pl.Series(kept[start : start + _BLOCK]))


class Prefixed(Numbering):
    """Another numbering, but the ids of a vocabulary come first, in its order; others follow in ascending order.

    Args:
        numbering: The other one.
        prefix: The vocabulary; all of its ids must occur.
        limit: Memory that the ids may take.
        what: The ids, for messages.

    Attributes:
        vocabulary: All ids.

    Raises:
        InputError: if an id of the prefix does not occur in the column.
    """

    def __init__(self, numbering: Numbering, prefix: Vocabulary, limit: MemoryLimit, what: str) -> None:
        blocks = [pl.Series(block) for block in numbering.blocks(np.ones(numbering.size, np.bool_))]
        own = pl.concat(blocks)
        limit.require(6 * int(own.estimated_size()), f"the distinct ids of {what}")
        external = own.to_list() if numbering.is_text else own.to_numpy()
        self._numbering, self.is_text = numbering, numbering.is_text
        self.vocabulary = prefix.extended(external)
        self.size = len(self.vocabulary)
        if lacking := self.size - numbering.size:
            raise InputError(f"prefix has {lacking:,} {what} that the log has not; give a store of a part of this log")
        self._ids = np.zeros(self.size + 1, self.dtype)
        self._ids[1:] = self.vocabulary.lookup(external)

    def ids(self, column: Any, chunk: int) -> Ids:  # noqa: D102
        found: Ids = self._ids[self._numbering.ids(column, chunk)]
        return found

    def external_id(self, internal_id: int) -> int | str:  # noqa: D102
        return self.vocabulary.external_ids([internal_id])[0]

    def blocks(self, kept: NDArray[np.bool_]) -> Iterator[NDArray[np.int64] | pl.Series]:  # noqa: D102
        for start in range(0, self.size, _BLOCK):
            chosen = start + 1 + np.flatnonzero(kept[start : start + _BLOCK])
            block = self.vocabulary.external_series(chosen)
            yield block if self.is_text else block.to_numpy()


class WithListed(Numbering):
    """Another numbering, and further ids that need not occur in the column.

    Args:
        numbering: The other one.
        listed: The further ids, integers or text as those of the column, in any order.
        limit: Memory that the ids may take.
        what: The ids, for messages.
    """

    def __init__(self, numbering: Numbering, listed: pl.Series, limit: MemoryLimit, what: str) -> None:
        blocks = [pl.Series(block) for block in numbering.blocks(np.ones(numbering.size, np.bool_))]
        own = pl.concat([pl.Series([], dtype=listed.dtype), *blocks])
        limit.require(3 * int(own.estimated_size() + listed.estimated_size()), f"the distinct ids of {what}")
        self._numbering, self.is_text = numbering, numbering.is_text
        self._distinct = pl.concat([own, listed]).unique().sort().rechunk()
        self.size = len(self._distinct)
        self._ranks = np.zeros(len(own) + 1, self.dtype)
        self._ranks[1:] = self._distinct.search_sorted(own).to_numpy() + 1
        self.listed = np.zeros(self.size + 1, np.bool_)
        self.listed[self._distinct.search_sorted(listed).to_numpy() + 1] = True

    def ids(self, column: Any, chunk: int) -> Ids:  # noqa: D102
        found: Ids = self._ranks[self._numbering.ids(column, chunk)]
        return found

    def external_id(self, internal_id: int) -> int | str:  # noqa: D102
        found: int | str = self._distinct[internal_id - 1]
        return found

    def blocks(self, kept: NDArray[np.bool_]) -> Iterator[NDArray[np.int64] | pl.Series]:  # noqa: D102
        for start in range(0, self.size, _BLOCK):
            block = self._distinct[start : start + _BLOCK].filter(pl.Series(kept[start : start + _BLOCK]))
            yield block if self.is_text else block.to_numpy()


def number_ids(
    columns: Sequence[IntegerColumn | TextColumn], runs: Iterable[Any], num_events: int, limit: MemoryLimit, what: str
) -> Numbering:
    """Return the numbering of the ids in a log, made in the fastest way that the limit allows.

    Args:
        columns: The ids, in a column for each part of the log.
        runs: All of their values, a part at a time: arrays in any order, or text without repeats in ascending order.
        num_events: Events of the log.
        limit: Memory that the ids may take.
        what: The ids, for messages.

    Raises:
        InputError: if the distinct ids exceed the limit.
    """
    if isinstance(columns[0], TextColumn):
        return SortedTexts(runs, limit, what)
    low, high = bounds_of(columns)
    span = high - low + 1
    # Half of the room is left to the later stages.
    if span <= max(_SMALL_RANGE, _SPARSE * num_events) and 5 * span < limit.room() // 2:
        return IntegerTable(low, high, runs)
    return SortedIntegers(runs, limit, what)


def bounds_of(columns: Sequence[Any]) -> tuple[int, int]:
    """Return the smallest and the largest integer of columns that have any; (0, 0) for text."""
    if isinstance(columns[0], TextColumn):
        return 0, 0
    return min(column.low for column in columns), max(column.high for column in columns)


def _merged_in_turn(merged: Run, runs: Iterable[Run], merge: Callable[[list[Run]], Run]) -> Run:
    # The distinct values of all runs. At most `_PENDING` or a quarter of those merged already wait at a time.
    pending: list[Run] = []
    waiting = 0
    for run in runs:
        pending.append(run)
        waiting += len(run)
        if waiting > max(_PENDING, len(merged) // 4):
            merged = merge([merged, *pending])
            pending, waiting = [], 0
    return merge([merged, *pending]) if pending else merged


def _merged(runs: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    # numpy's stable sort merges runs that are in order.
    values = np.concatenate(runs)
    values.sort(kind="stable")
    return _firsts(values)


def _firsts(values: NDArray[np.int64]) -> NDArray[np.int64]:
    # The distinct values of ascending ones.
    is_first = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=is_first[1:])
    return values[is_first]
