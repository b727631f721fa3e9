"""The columns of a store besides users, items and times, memory-mapped, and their statistics.

R rows: events, or items or users with row 0 for padding and for the unknown. S values of all rows together. W numbers
a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seqrec.data.schema import CATEGORICAL, CATEGORIES, EVENTS, NUMERIC, VECTOR, file_names
from seqrec.data.segments import Layout, plain
from seqrec.data.vocabulary import Vocabulary

if TYPE_CHECKING:
    import polars

Int64 = NDArray[np.int64]
# Events to read at a time for their mean, which bounds the memory.
SCALED_EVENTS = 1 << 20


@dataclass(frozen=True)
class Column:
    """A column of events, items or users, as `Schema` declares it.

    Attributes:
        kind: One of `seqrec.data.schema.KINDS`.
        values: By kind: `categorical` (R,) codes; `numeric` (R,) float32, not standardised, NaN is missing;
            `categories` (S,) codes, row after row; `vector` (R, W) float16 or float32. Code 0 is missing or unknown.
        missing: Number of rows without a value; row 0 of items and users does not count.
        vocabulary: The values of the codes 1, 2, ..; None for numbers and vectors.
        offsets: (R + 1,) int64 with `categories`: row r has `values[offsets[r]:offsets[r + 1]]`, possibly none.
        mean: With which a number is standardised. Items and users: the mean of all rows with a value. Events: 0,
            because the mean is that of the training part, which a store does not know; see `training_scales`.
        std: The standard deviation, likewise; 1 if all values are equal.
    """

    kind: str
    values: NDArray[Any]
    missing: int = 0
    vocabulary: Vocabulary | None = None
    offsets: Int64 | None = None
    mean: float = 0.0
    std: float = 1.0

    @property
    def num_codes(self) -> int:
        """Number of codes, that of missing values included; 0 for numbers and vectors."""
        return 0 if self.vocabulary is None else len(self.vocabulary) + 1

    @property
    def width(self) -> int:
        """Numbers of a vector, W; 1 for other kinds."""
        return int(self.values.shape[1]) if self.kind == VECTOR else 1

    def series(self, begin: int, end: int) -> polars.Series:
        """Return the log's values of the rows [begin, end) of a categorical or numeric column; null is missing."""
        # Training needs no polars.
        import polars

        if self.vocabulary is None:
            return polars.Series(np.asarray(self.values[begin:end])).fill_nan(None)
        return self._values_of_codes.gather(polars.Series(np.asarray(self.values[begin:end])).cast(polars.UInt32))

    @cached_property
    def _values_of_codes(self) -> polars.Series:
        import polars

        assert self.vocabulary is not None
        values = self.vocabulary.external_series(np.arange(1, self.num_codes))
        return polars.concat([polars.Series([None], dtype=values.dtype), values])

    def taken(self, events: Any) -> Column:
        """Return the column of some rows, by an index of numpy's; kinds with one value a row only."""
        return replace(self, values=plain(self.values)[events])

    @property
    def sizes(self) -> dict[str, Any]:
        """Kind, shapes and scale as plain values, from which a model makes its parameters for this column."""
        rows = len(self.values) if self.offsets is None else len(self.offsets) - 1
        held = self.values.nbytes + (0 if self.offsets is None else self.offsets.nbytes)
        found = {"kind": self.kind, "num_rows": rows, "num_values": len(self.values), "bytes": int(held)}
        found |= {"dtype": str(self.values.dtype), "num_codes": self.num_codes, "width": self.width}
        return found | {"mean": float(self.mean), "std": float(self.std)}

    def describe(self) -> str:
        """Return kind, size and missing values in a few words."""
        size = {CATEGORICAL: f"{self.num_codes - 1:,} values", CATEGORIES: f"{self.num_codes - 1:,} values"}
        size |= {NUMERIC: str(self.values.dtype), VECTOR: f"{self.width} numbers, {self.values.dtype}"}
        return f"{self.kind}, {size[self.kind]}, {self.missing:,} missing"


def open_columns(layout: Layout, group: str, described: Mapping[str, Mapping[str, Any]]) -> dict[str, Column]:
    """Return the columns of a group by name, from the description of each in the store's manifest."""
    columns = {}
    for name, entry in described.items():
        stems = file_names(group, name, entry["kind"])
        arrays = {
            attribute: layout.events(stem) if group == EVENTS else layout.newest(stem)
            for attribute, stem in stems.items()
            if attribute != "vocabulary"
        }
        vocabulary = (
            Vocabulary.open(layout.folder_of(stems["vocabulary"]), stems["vocabulary"])
            if "vocabulary" in stems
            else None
        )
        columns[name] = Column(**{**entry, **arrays}, vocabulary=vocabulary)
    return columns


@dataclass
class Moments:
    """Count, mean and variance of numbers that come in pieces, without NaN."""

    count: int = 0
    mean: float = 0.0
    _squares: float = field(default=0.0, repr=False)

    def add(self, values: NDArray[np.floating[Any]]) -> None:
        """Add numbers (N,), and leave out NaN."""
        known = values[~np.isnan(values)].astype(np.float64)
        if not len(known):
            return
        mean, count = float(known.mean()), self.count + len(known)
        shift = mean - self.mean
        # Chan, Golub and LeVeque 1979: the squares about the common mean, from those of both parts about theirs.
        self._squares += float(np.square(known - mean).sum()) + shift**2 * self.count * len(known) / count
        self.mean += shift * len(known) / count
        self.count = count

    @property
    def std(self) -> float:
        """Standard deviation; 1 if all numbers are equal, which then become 0."""
        std = float(np.sqrt(self._squares / self.count)) if self.count else 0.0
        # float32 distinguishes no smaller differences.
        return std if std > 1e-7 * abs(self.mean) else 1.0


def training_scales(
    columns: Mapping[str, Column], offsets: Int64, stops: Callable[[], Int64]
) -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation of each numeric column of events in the training part, by name.

    User u has the events [offsets[u], offsets[u + 1]), of which those before `stops()[u]` are for training.
    """
    moments = {name: Moments() for name, column in columns.items() if column.kind == NUMERIC}
    if not moments:
        return {}
    offsets, ends = np.asarray(offsets), stops()
    for begin in range(0, int(offsets[-1]), SCALED_EVENTS):
        end = min(begin + SCALED_EVENTS, int(offsets[-1]))
        first, last = np.searchsorted(offsets, [begin, end - 1], side="right") - 1
        bounds = np.clip(offsets[first : last + 2], begin, end)
        is_training = np.arange(begin, end) < np.repeat(ends[first : last + 1], bounds[1:] - bounds[:-1])
        for name, found in moments.items():
            found.add(np.asarray(columns[name].values[begin:end])[is_training])
    return {name: (found.mean, found.std) for name, found in moments.items()}
