"""A log's columns as raw files, in log order, between reading and ordering. C events a chunk."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

if TYPE_CHECKING:
    import polars as pl

_WRAP = 2**64


class RawColumn:
    """Values of one type in a file, written in order and read by ranges.

    The file is open only while it is written or read, so that whatever interrupts preparation leaves none open.

    Args:
        file: A new file.
        dtype: Type of the values.
    """

    def __init__(self, file: Path, dtype: DTypeLike) -> None:
        self.file = file
        self.dtype = np.dtype(dtype)
        file.touch(exist_ok=False)

    def append(self, values: NDArray[Any]) -> None:
        """Write values (C,) after those that are there."""
        with self.file.open("ab") as stream:
            stream.write(np.ascontiguousarray(values, self.dtype).data)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return values start..stop, (stop - start,)."""
        size = self.dtype.itemsize
        values = np.fromfile(self.file, self.dtype, count=stop - start, offset=start * size)
        assert len(values) == stop - start
        return values

    def delete(self) -> None:
        """Remove the file."""
        self.file.unlink()


class _Packing(NamedTuple):
    offset: int
    length: int
    base: int
    dtype: np.dtype[Any]


class IntegerColumn:
    """Chunks of int64, each kept as differences to its smallest value in the smallest type that holds them.

    Args:
        file: A new file.

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
        # Differences of int64 need not fit int64, but they fit uint64, whose arithmetic wraps.
        packed = differences(values, base).astype(np.min_scalar_type(high - base))
        with self.file.open("ab") as stream:
            stream.write(packed.data)
        self._chunks.append(_Packing(self._bytes, len(values), base, packed.dtype))
        self._bytes += packed.nbytes

    def read(self, chunk: int) -> NDArray[np.int64]:
        """Return chunk number `chunk`, (C,)."""
        offset, length, base, dtype = self._chunks[chunk]
        packed = np.fromfile(self.file, dtype, count=length, offset=offset)
        assert len(packed) == length
        unwrapped = packed.astype(np.uint64)
        unwrapped += np.uint64(base % _WRAP)
        return unwrapped.view(np.int64)

    def delete(self) -> None:
        """Remove the file."""
        self.file.unlink()


class TextColumn:
    """Chunks of text, each kept as its distinct values in ascending order and (C,) places among them.

    Args:
        file: A new file for the places; distinct values go to files beside it.
    """

    def __init__(self, file: Path) -> None:
        self.places = RawColumn(file, np.uint32)
        self._ends: list[int] = [0]

    def append(self, values: pl.Series) -> None:
        """Write a chunk (C,)."""
        import polars as pl

        distinct = values.unique().sort()
        # Ranking text sorts it, which is many times slower than hashing it.
        self.places.append(values.cast(pl.Enum(distinct)).to_physical().to_numpy())
        distinct.to_frame("text").write_ipc(self._dictionary(len(self._ends) - 1))
        self._ends.append(self._ends[-1] + len(values))

    def read(self, chunk: int) -> NDArray[np.uint32]:
        """Return places (C,) of chunk number `chunk` among its distinct values."""
        return self.places.read(self._ends[chunk], self._ends[chunk + 1])

    def length(self, chunk: int) -> int:
        """Return the events of chunk number `chunk`, C."""
        return self._ends[chunk + 1] - self._ends[chunk]

    def distinct(self, chunk: int) -> pl.Series:
        """Return the distinct values of chunk number `chunk`, ascending."""
        import polars as pl

        # From an open file: polars would map one that it is given by name.
        with self._dictionary(chunk).open("rb") as stream:
            return pl.read_ipc(stream)["text"]

    def delete(self) -> None:
        """Remove all files."""
        self.places.delete()
        for chunk in range(len(self._ends) - 1):
            self._dictionary(chunk).unlink()

    def _dictionary(self, chunk: int) -> Path:
        return self.places.file.with_suffix(f".{chunk}.ipc")


@dataclass
class Spool:
    """What was read of a log, in log order.

    Attributes:
        users: External ids of the users.
        items: External ids of the items.
        timestamps: Times, or None where the log has none.
        features: Event features by name.
        lengths: Events of each chunk; all columns have the same chunks.
        rows: Rows that were read, those that the event filter left out included.
    """

    users: IntegerColumn | TextColumn
    items: IntegerColumn | TextColumn
    timestamps: IntegerColumn | None
    features: dict[str, RawColumn]
    lengths: list[int] = field(default_factory=list)
    rows: int = 0

    @property
    def num_events(self) -> int:
        """Events that met the event filter, E."""
        return sum(self.lengths)

    def delete(self) -> None:
        """Remove all files."""
        for column in (self.users, self.items, self.timestamps, *self.features.values()):
            if column is not None:
                column.delete()


def differences(values: NDArray[np.int64], base: int) -> NDArray[np.uint64]:
    """Return `values - base`, (C,), for a base that no value is below; any two int64 will do."""
    return values.view(np.uint64) - np.uint64(base % _WRAP)
