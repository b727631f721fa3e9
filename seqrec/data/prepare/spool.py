"""A log's columns as temporary raw files, in log order, between reading and ordering. C events a chunk."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import DTypeLike, NDArray

from seqrec.data.prepare.columns import Codes, numbers, vectors
from seqrec.data.prepare.filters import Filters
from seqrec.data.prepare.memory import MemoryLimit, spoken_bytes
from seqrec.data.progress import Progress
from seqrec.data.schema import BETWEEN, CATEGORICAL, CATEGORIES, NUMERIC, VECTOR, Schema
from seqrec.data.store import EventStore
from seqrec.data.tasks import Tasks
from seqrec.data.windows import ranges
from seqrec.errors import InputError, StoreError

# Bytes an event of a log for the spool, partitions and the store together, at most times; a first estimate.
EVENT_BYTES = 32
_WRAP = 2**64


@dataclass
class Workspace:
    """Folder of the temporary files, and the settings that all stages share.

    Attributes:
        folder: An empty folder, in that of the incomplete store.
        filters: The filters.
        schema: Columns to keep.
        limit: Memory that the process may hold.
        progress: Shows the stages.
        needed: Estimate of all bytes that preparation takes on that disk; 0 before the first estimate.
        prefix: A store whose ids and codes come first, in its order; None numbers all in ascending order.
        tasks: Runs the stages over parts of the log.
    """

    folder: Path
    filters: Filters
    schema: Schema
    limit: MemoryLimit
    progress: Progress
    needed: int = 0
    prefix: EventStore | None = None
    tasks: Tasks = field(default_factory=Tasks)

    def require(self, more: int) -> None:
        """Refuse to continue if less than `more` bytes are free."""
        free = shutil.disk_usage(self.folder).free
        if more > free:
            raise StoreError(
                f"the disk of {self.folder.parent} is too small: {spoken_bytes(more)} more are needed, "
                f"{spoken_bytes(free)} are free; free some, or choose another --data.store"
            )


class RawColumn:
    """Values of one type in a file, written in order and read by ranges.

    The file is open only while it is written or read, so an interrupted preparation leaves none open.
    """

    def __init__(self, file: Path, dtype: DTypeLike) -> None:
        self.file = file
        self.dtype = np.dtype(dtype)
        file.touch(exist_ok=False)

    def append(self, values: NDArray[Any]) -> None:
        """Write values (C,) at the end of the file."""
        with self.file.open("ab") as stream:
            stream.write(np.ascontiguousarray(values, self.dtype).data)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return values start..stop, (stop - start,)."""
        size = self.dtype.itemsize
        values = np.fromfile(self.file, self.dtype, count=stop - start, offset=start * size)
        assert len(values) == stop - start
        return values

    def mapped(self) -> NDArray[Any]:
        """Return all values, memory-mapped."""
        return np.memmap(self.file, self.dtype, "r") if self.file.stat().st_size else np.zeros(0, self.dtype)


class _Packing(NamedTuple):
    offset: int
    length: int
    base: int
    dtype: np.dtype[Any]


class IntegerColumn:
    """Chunks of int64, each kept as differences to its smallest value in the smallest type that holds them.

    Attributes:
        low: The smallest value.
        high: The largest one.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.low = 2**63 - 1
        self.high = -(2**63)
        self._chunks: list[_Packing] = []
        self._bytes = 0
        file.touch(exist_ok=False)

    def append(self, values: NDArray[np.int64]) -> None:
        """Write a chunk (C,), C >= 1."""
        base, high = int(values.min()), int(values.max())
        self.low, self.high = min(self.low, base), max(self.high, high)
        # Differences of int64 may not fit int64, but they fit uint64, because its arithmetic wraps.
        packed = differences(values, base).astype(np.min_scalar_type(high - base))
        with self.file.open("ab") as stream:
            stream.write(packed.data)
        self._chunks.append(_Packing(self._bytes, len(values), base, packed.dtype))
        self._bytes += packed.nbytes

    def values(self, chunk: int) -> NDArray[np.int64]:
        """Return chunk number `chunk`, (C,), as `read` does: with repeats, in any order."""
        return self.read(chunk)

    def read(self, chunk: int) -> NDArray[np.int64]:
        """Return chunk number `chunk`, (C,)."""
        offset, length, base, dtype = self._chunks[chunk]
        packed = np.fromfile(self.file, dtype, count=length, offset=offset)
        assert len(packed) == length
        unwrapped = packed.astype(np.uint64)
        unwrapped += np.uint64(base % _WRAP)
        return unwrapped.view(np.int64)


class TextColumn:
    """Chunks of text, each kept as its distinct values in ascending order, in a file of its own, and (C,) places."""

    def __init__(self, file: Path) -> None:
        self.places = RawColumn(file, np.uint32)
        self._ends: list[int] = [0]

    def append(self, values: pl.Series) -> None:
        """Write a chunk (C,)."""
        distinct = values.unique().sort()
        # Ranking would sort the text, which is many times slower than hashing it.
        self.places.append(values.cast(pl.Enum(distinct)).to_physical().to_numpy())
        distinct.to_frame("text").write_ipc(self._dictionary(len(self._ends) - 1))
        self._ends.append(self._ends[-1] + len(values))

    def read(self, chunk: int) -> NDArray[np.uint32]:
        """Return places (C,) of chunk number `chunk` among its distinct values."""
        return self.places.read(self._ends[chunk], self._ends[chunk + 1])

    def values(self, chunk: int) -> pl.Series:
        """Return the distinct values of chunk number `chunk`, ascending."""
        # From an open file, because polars would map a file given by name.
        with self._dictionary(chunk).open("rb") as stream:
            return pl.read_ipc(stream)["text"]

    def _dictionary(self, chunk: int) -> Path:
        return self.places.file.with_suffix(f".{chunk}.ipc")


class SpooledColumn(ABC):
    """A column of the schema in a file, in the order of the log or of a table.

    Args:
        file: A new file.
        raw: Type of its values.
        where: The column, for messages.

    Attributes:
        kind: The column's kind.
        width: Numbers of a vector; None for other kinds.
        codes: The values of a categorical column; None for numbers and vectors.
    """

    kind: ClassVar[str]
    width: int | None = None
    codes: Codes | None = None

    def __init__(self, file: Path, raw: DTypeLike, where: str) -> None:
        self._raw = RawColumn(file, raw)
        self._where = where

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of `read`. A vector is one value, so that it is ordered like a number."""
        return self._raw.dtype

    @abstractmethod
    def append(self, values: pl.Series) -> None:
        """Write a chunk (C,).

        Raises:
            InputError: if a value does not suit the kind.
        """

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return the values start..stop, (stop - start,), after the last `append`."""
        return self._raw.read(start, stop)

    @abstractmethod
    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the values (N,), or vectors (N, W), of some rows, which count from 1; row 0 is missing."""


class SpooledNumbers(SpooledColumn):
    """Numbers, float32; NaN is missing."""

    kind = NUMERIC

    def __init__(self, file: Path, where: str) -> None:
        super().__init__(file, np.float32, where)

    def append(self, values: pl.Series) -> None:  # noqa: D102
        self._raw.append(numbers(values, self._where))

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:  # noqa: D102
        return gather(self._raw.mapped(), rows, np.nan)


class SpooledCodes(SpooledColumn):
    """Codes in ascending order of value, in the smallest type that holds them; 0 is missing."""

    kind = CATEGORICAL
    codes: Codes

    def __init__(self, file: Path, where: str, dtype: pl.DataType, limit: MemoryLimit) -> None:
        super().__init__(file, np.uint32, where)
        self.codes = Codes(dtype, limit, where)

    @property
    def dtype(self) -> np.dtype[Any]:  # noqa: D102
        return self.codes.final(np.zeros(0, np.uint32)).dtype

    def append(self, values: pl.Series) -> None:  # noqa: D102
        self._raw.append(self.codes.add(values))

    def read(self, start: int, stop: int) -> NDArray[Any]:  # noqa: D102
        return self.codes.final(self._raw.read(start, stop))

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:  # noqa: D102
        return self.codes.final(gather(self._raw.mapped(), rows))


class SpooledLists(SpooledCodes):
    """Codes of lists, each list's without repeats, one list after the other. `ends` (rows + 1,) are their ends."""

    kind = CATEGORIES

    def __init__(self, file: Path, where: str, dtype: pl.DataType, limit: MemoryLimit) -> None:
        super().__init__(file, where, dtype, limit)
        self.ends = np.zeros(1, np.int64)

    def append(self, values: pl.Series) -> None:  # noqa: D102
        lists = values if values.dtype.is_nested() else values.cast(pl.String).str.split(BETWEEN)
        flat = pl.DataFrame({"row": np.arange(len(lists)), "value": lists}).explode("value")
        codes = flat.select("row", code=self.codes.add(flat["value"])).filter(pl.col("code") > 0)
        codes = codes.unique(maintain_order=True)
        self._raw.append(codes["code"].to_numpy())
        counts = np.bincount(codes["row"].to_numpy(), minlength=len(lists))
        self.ends = np.concatenate([self.ends, self.ends[-1] + np.cumsum(counts)])

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the codes (S,) of the lists of some rows, one list after the other, without row 0."""
        rows = rows[rows > 0]
        places = ranges(self.ends[rows - 1], np.diff(self.ends)[rows - 1])
        return self.codes.final(self._raw.mapped()[places])


class SpooledVectors(SpooledColumn):
    """Vectors, float32; zeros are missing."""

    kind = VECTOR
    width: int

    def __init__(self, file: Path, where: str, width: int) -> None:
        super().__init__(file, np.dtype((np.void, 4 * width)), where)
        self.width = width
        self._rows = 0

    def append(self, values: pl.Series) -> None:  # noqa: D102
        rows = np.arange(self._rows + 1, self._rows + 1 + len(values))
        found = vectors(values, self.width, self._where, rows)
        self._rows += len(values)
        self._raw.append(found.view(self.dtype).reshape(-1))

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:  # noqa: D102
        return gather(self._raw.mapped().view(np.float32).reshape(-1, self.width), rows)


def spooled_column(
    kind: str, file: Path, dtype: pl.DataType, width: int | None, where: str, limit: MemoryLimit
) -> SpooledColumn:
    """Return an empty column for values of a type; `width` is that of vectors, and None for other kinds."""
    if kind == NUMERIC:
        return SpooledNumbers(file, where)
    if width is not None:
        return SpooledVectors(file, where, width)
    return (SpooledCodes if kind == CATEGORICAL else SpooledLists)(file, where, dtype, limit)


def use_prefix(work: Workspace, group: str, columns: Mapping[str, SpooledColumn]) -> None:
    """Give values of the store `work.prefix`, if there is one, the first codes of a group's columns."""
    if work.prefix is None:
        return
    known = work.prefix.columns[group]
    for name, column in columns.items():
        if column.codes is not None:
            if name not in known or known[name].vocabulary is None:
                raise InputError(f"prefix has no {CATEGORICAL} column {name!r} of {group}; give a store of this schema")
            column.codes.prefix = known[name].vocabulary


def gather(array: NDArray[Any], rows: NDArray[np.int64], fill: float = 0) -> NDArray[Any]:
    """Return rows (N, ..) of an array by their numbers, which count from 1; `fill` for the number 0."""
    found = np.full((len(rows), *array.shape[1:]), fill, array.dtype)
    found[rows > 0] = array[rows[rows > 0] - 1]
    return found


@dataclass
class Spool:
    """The events that were read of a log, or of a part of it, in log order.

    Attributes:
        folder: Folder of the columns' files, which only this object has.
        users: External ids of the users.
        items: External ids of the items.
        timestamps: Times; None if the log has none.
        columns: Columns of the schema by name.
        lengths: Events of each chunk; all columns have the same chunks.
        rows: Rows that were read, including those that the event filter left out.
        user_rows: User row of each event, and (U,) events of each user, once users are numbered.
    """

    folder: Path
    users: IntegerColumn | TextColumn
    items: IntegerColumn | TextColumn
    timestamps: IntegerColumn | None
    columns: dict[str, SpooledColumn]
    lengths: list[int] = field(default_factory=list)
    rows: int = 0
    user_rows: tuple[RawColumn, RawColumn] | None = None

    @property
    def num_events(self) -> int:
        """Events that met the event filter, E."""
        return sum(self.lengths)

    def chunks(self, advance: Callable[[int], None]) -> Iterator[int]:
        """Yield the numbers of the chunks, and call a function with the length of each when it is done."""
        for chunk, length in enumerate(self.lengths):
            yield chunk
            advance(length)


def differences(values: NDArray[np.int64], base: int) -> NDArray[np.uint64]:
    """Return `values - base`, (C,). No value may be below the base; otherwise any int64 will do."""
    return values.view(np.uint64) - np.uint64(base % _WRAP)
