"""Values of a schema's columns as numbers, float32 and codes, and the refusal of those that do not suit their kind.

C rows a chunk, W numbers a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqrec.data.ids import cleaned
from seqrec.data.prepare.memory import MemoryLimit
from seqrec.data.schema import BETWEEN, CATEGORICAL, CATEGORIES, NUMERIC, VECTOR
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError

_NEEDS = {
    CATEGORICAL: "text, integers or booleans",
    NUMERIC: "numbers or booleans",
    CATEGORIES: f"lists of text or integers, or text with {BETWEEN} between the values",
    VECTOR: "lists of numbers",
}


def check_type(kind: str, dtype: pl.DataType, where: str) -> None:
    """Refuse a column with a type that does not suit its kind; `where` names the column in messages.

    Raises:
        InputError: if it does not.
    """
    inner = dtype.inner if isinstance(dtype, (pl.List, pl.Array)) else None
    is_text = _is_text(dtype)
    suits = {
        CATEGORICAL: is_text or dtype.is_numeric() or dtype == pl.Boolean,
        NUMERIC: dtype.is_numeric() or dtype == pl.Boolean,
        CATEGORIES: is_text or (inner is not None and (inner.is_numeric() or _is_text(inner))),
        VECTOR: inner is not None and inner.is_numeric(),
    }
    if not suits[kind] and dtype != pl.Null:
        hint = f"; declare it {CATEGORICAL}" if kind == NUMERIC and is_text else ""
        raise InputError(f"{where} is {dtype}, but {kind} needs {_NEEDS[kind]}{hint}")


def _is_text(dtype: Any) -> bool:
    return dtype == pl.String or isinstance(dtype, (pl.Categorical, pl.Enum))


def width_of(frame: pl.LazyFrame, name: str, where: str) -> int:
    """Return the number of numbers, W, in the first vector of a column.

    Raises:
        InputError: if no row has one.
    """
    vectors = pl.col(name).cast(pl.List(pl.Float64))
    first = frame.select(vectors.list.len().alias("width")).drop_nulls().head(1).collect(engine="streaming")["width"]
    if not len(first) or not first[0]:
        raise InputError(f"{where} has no vector")
    return int(first[0])


def numbers(values: pl.Series, where: str) -> NDArray[np.float32]:
    """Return numbers (C,) float32, NaN if missing.

    Raises:
        InputError: if one is infinite, or too large for float32.
    """
    floats: NDArray[np.float32] = values.cast(pl.Float32).fill_null(float("nan")).to_numpy()
    if np.isinf(floats).any():
        raise InputError(f"{where} has the number {values[int(np.isinf(floats).argmax())]}, which float32 cannot hold")
    return floats


def vectors(values: pl.Series, width: int, where: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return vectors (C, W) float32 of lists, zeros if missing. `rows` (C,) are their numbers, for messages.

    Raises:
        InputError: if a vector has another width, or a number that is missing, NaN or infinite.
    """
    lists = values.cast(pl.List(pl.Float32))
    widths = lists.list.len()
    wrong = widths.ne(width).fill_null(False).to_numpy()
    if wrong.any():
        place = int(np.argmax(wrong))
        raise InputError(f"{where}, row {rows[place]}, has {widths[place]} numbers, expected {width} as in the first")
    found = np.zeros((len(values), width), np.float32)
    known = lists.is_not_null().to_numpy()
    found[known] = lists.drop_nulls().explode().fill_null(float("nan")).to_numpy().reshape(-1, width)
    refuse_not_finite(found, where, rows)
    return found


def refuse_not_finite(vectors: NDArray[np.floating[Any]], where: str, rows: NDArray[np.int64]) -> None:
    """Refuse vectors (C, W) with a NaN or an infinite number; `rows` (C,) are their numbers, for messages.

    Raises:
        InputError: if a vector has one.
    """
    finite = np.isfinite(vectors)
    if not finite.all():
        place = int(np.argmin(finite.all(axis=1)))
        bad = vectors[place][~finite[place]][0]
        raise InputError(f"{where}, row {rows[place]}, has the number {bad}; every number must be finite")


def count_missing(values: NDArray[Any]) -> int:
    """Return how many of numbers (N,), codes (N,) or vectors (N, W) are missing."""
    if values.ndim > 1:
        return int((~values.any(axis=1)).sum())
    return int((np.isnan(values) if values.dtype.kind == "f" else values == 0).sum())


class Codes:
    """The values of a categorical column, text or integers. They get codes as they come, and others in the end.

    Args:
        dtype: Type of the column; of lists, their values count.
        limit: Memory that the distinct values may take.
        where: The column, for messages.

    Attributes:
        prefix: Values that get the first codes, also if they do not occur; None is none.
    """

    def __init__(self, dtype: pl.DataType, limit: MemoryLimit, where: str) -> None:
        self._is_text = _is_text(dtype.inner if isinstance(dtype, (pl.List, pl.Array)) else dtype)
        self._limit = limit
        self._where = where
        self.prefix: Vocabulary | None = None
        self._known = pl.Series("text", [], pl.String)
        self._ranks: NDArray[np.unsignedinteger[Any]] | None = None

    def add(self, values: pl.Series) -> NDArray[np.uint32]:
        """Return codes (C,) by order of arrival, 0 if missing; see `final`.

        Raises:
            InputError: if a value is a number with a fraction, or the distinct values exceed the memory limit.
        """
        text = self._as_text(values)
        distinct = text.unique().drop_nulls()
        new = distinct.filter(~distinct.is_in(self._known.implode())).sort()
        if len(new):
            needed = 4 * int(self._known.estimated_size() + new.estimated_size())
            self._limit.require(needed, f"the distinct values of {self._where}")
            self._known = pl.concat([self._known, new], rechunk=True)
            self._ranks = None
        codes = text.cast(pl.Enum(self._known)).to_physical().cast(pl.UInt32) + 1
        return codes.fill_null(0).to_numpy()

    def _as_text(self, values: pl.Series) -> pl.Series:
        if self._is_text:
            return values.cast(pl.String).to_frame("text").select(cleaned(pl.col("text")))["text"]
        whole = values.fill_nan(None) if values.dtype.is_float() else values
        integers = whole.cast(pl.Int64, strict=False)
        if (wrong := (integers != whole).fill_null(False) | (integers.is_null() & whole.is_not_null())).any():
            raise InputError(
                f"{self._where} has the value {whole.filter(wrong)[0]}, but {CATEGORICAL} values are text or whole "
                f"numbers; declare it {NUMERIC}"
            )
        return integers.cast(pl.String)

    def final(self, codes: NDArray[np.uint32]) -> NDArray[np.unsignedinteger[Any]]:
        """Return the final codes of codes by order of arrival: 1, 2, .. in the order of `vocabulary`; 0 stays."""
        if self._ranks is None:
            values = self._known if self._is_text else self._known.cast(pl.Int64)
            vocabulary = self.vocabulary()
            self._ranks = np.zeros(len(values) + 1, np.min_scalar_type(len(vocabulary)))
            self._ranks[1 + values.arg_sort().to_numpy()] = (
                np.arange(1, len(self._ranks)) if self.prefix is None else vocabulary.lookup(_plain(values.sort()))
            )
        found: NDArray[np.unsignedinteger[Any]] = self._ranks[codes]
        return found

    @staticmethod
    def unite(parts: Sequence[Codes]) -> None:
        """Give parts of one column the same final codes: those of the values of all parts."""
        whole = copy(parts[0])
        size = sum(int(part._known.estimated_size()) for part in parts)
        whole._limit.require(4 * size, f"the distinct values of {whole._where}")
        whole._known = pl.concat([part._known for part in parts]).unique()
        vocabulary = whole.vocabulary()
        for part in parts:
            part.prefix, part._ranks = vocabulary, None

    def vocabulary(self) -> Vocabulary:
        """Return the values of the codes 1, 2, ..: those of the prefix, then others in ascending order."""
        values = _plain((self._known if self._is_text else self._known.cast(pl.Int64)).sort())
        return Vocabulary(values) if self.prefix is None else self.prefix.extended(values)


def _plain(values: pl.Series) -> NDArray[np.int64] | list[str]:
    return values.to_list() if values.dtype == pl.String else values.to_numpy()
