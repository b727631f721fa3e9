"""One file of a table log: its columns, and expressions that read its ids and times."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID
from seqrec.data.sources.checking import reading, shorten
from seqrec.data.sources.csv_rows import CsvRows
from seqrec.data.sources.source import suffix
from seqrec.data.sources.times import TimeColumn, time_column
from seqrec.errors import InputError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
# Values that determine the form of a time column.
_TIMES_IN_SAMPLE = 1000


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns; each attribute is an argument of `Table`."""

    user: str
    item: str
    timestamp: str | None
    features: list[str] | None = None

    def required(self) -> dict[str, str]:
        """Return the columns that the file must have, by the text of the argument in messages."""
        named = {f"user={self.user!r}": self.user, f"item={self.item!r}": self.item}
        if self.timestamp is not None:
            named[f"timestamp={self.timestamp!r}"] = self.timestamp
        return named | {f"features has {feature!r}": feature for feature in self.features or []}


@dataclass(frozen=True)
class Form:
    """Layout of the text of CSV and TSV files; each attribute is an argument of `Table`."""

    separator: str | None = None
    quote: str | None = '"'
    header: list[str] | None = None


@dataclass
class TableFile:
    """A file of a table. The constructor reads its first rows only.

    Args:
        path: The file.
        columns: Names of the columns.
        form: Layout of the text.

    Attributes:
        csv: The rows as text; None for Parquet.
        frame: The raw columns, with blank lines and malformed rows.
        names: The names of these columns, in order.
        ids: Columns `user_id` and `item_id` of the interaction frame, Int64 or String, null if a row has no id.
        time: Expressions that read the time column, at first in the strictest way; None if the log has no times.

    Raises:
        InputError: if the file is unreadable, or if a column is missing or has an unsuitable type.
    """

    path: Path
    columns: Columns
    form: Form = field(default_factory=Form)
    csv: CsvRows | None = field(init=False, default=None)
    frame: pl.LazyFrame = field(init=False)
    names: list[str] = field(init=False)
    ids: dict[str, pl.Expr] = field(init=False)
    time: TimeColumn | None = field(init=False)

    def __post_init__(self) -> None:
        with reading(self.path, self._kind):
            if self._kind == "Parquet":
                self.frame = pl.scan_parquet(self.path, glob=False)
                self.names = self.frame.collect_schema().names()
            else:
                self.csv = CsvRows(self.path, self._separator(), self.form.quote, self.form.header)
                self.frame, self.names = self.csv.frame, self.csv.names
        with self.reading():
            self._schema = self.frame.collect_schema()
            self._check_columns()
            self.ids = {
                USER_ID: self._id_column("user", self.columns.user),
                ITEM_ID: self._id_column("item", self.columns.item),
            }
            self.time = self._time_column()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn a failure to read the file into a one-line error.

        Raises:
            InputError: if polars or the operating system could not read it.
        """
        with reading(self.path, self._kind):
            if self.csv is None:
                yield
            else:
                with self.csv.naming_stray_quotes():
                    yield

    def loosen_time(self) -> None:
        """Read the time column in the next looser way, if it has one."""
        if self.time is not None and self.time.looser is not None:
            self.time = self.time.looser

    def timestamps(self, *, in_millionths: bool) -> pl.Expr | None:
        """Return the column `timestamp` of the interaction frame, null for invalid times; None if the log has none.

        Args:
            in_millionths: Whether the log's times are kept in millionths. Fewer times fit then.
        """
        if self.time is None:
            return None
        return self.time.millionths if in_millionths else self.time.whole

    def is_unfit(self, *, in_millionths: bool) -> pl.Expr:
        """Return True for a row of `frame` that is not an event: malformed, or a blank line.

        Args:
            in_millionths: As for `timestamps`.
        """
        times = self.timestamps(in_millionths=in_millionths)
        wanted = [*self.ids.values(), *([] if times is None else [times])]
        unfit = pl.any_horizontal(*(column.is_null() for column in wanted))
        return unfit if self.csv is None else unfit | self.csv.is_long

    def interactions(self, id_types: dict[str, Any], *, in_millionths: bool, all_fit: bool) -> pl.LazyFrame:
        """Return the file's interaction frame, without malformed rows and blank lines.

        Args:
            id_types: Type of `user_id` and of `item_id` in the whole log.
            in_millionths: As for `timestamps`.
            all_fit: Whether all rows are known to be events.
        """
        selected = [column.cast(id_types[name]).alias(name) for name, column in self.ids.items()]
        times = self.timestamps(in_millionths=in_millionths)
        if times is not None:
            selected.append(times.alias(TIMESTAMP))
        frame = self.frame if all_fit else self.frame.filter(~self.is_unfit(in_millionths=in_millionths))
        with self.reading():
            return frame.select(*selected, *self._features())

    @property
    def _kind(self) -> str:
        return "Parquet" if suffix(self.path) == ".parquet" else "text"

    def _separator(self) -> str:
        separator = self.form.separator or SEPARATORS.get(suffix(self.path))
        if separator is None:
            raise InputError(f"{self.path}: the name does not show what separates the fields; give separator")
        return separator

    def _check_columns(self) -> None:
        for argument, column in self.columns.required().items():
            if column in self.names:
                continue
            near = difflib.get_close_matches(column, self.names, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            if len(self.names) == 1 and self.csv is not None:
                hint = f"; is separator={self._separator()!r} right?"
            raise InputError(
                f"{self.path} has no column {column!r} ({argument}); it has {', '.join(self.names)}{hint}"
            )

    def _id_column(self, argument: str, column: str) -> pl.Expr:
        # Int64 or String, null if a row has no id.
        values, dtype = pl.col(column), self._schema[column]
        if dtype.is_integer():
            return values.cast(pl.Int64, strict=False)
        if dtype.is_float():
            return pl.when(values == values.floor()).then(values.cast(pl.Int64, strict=False))
        if dtype == pl.String or isinstance(dtype, (pl.Categorical, pl.Enum)):
            text = values.cast(pl.String)
            return pl.when(text.str.len_bytes() > 0).then(text)
        raise InputError(f"{self.path}: {argument}={column!r} is {dtype}; ids must be integers or text")

    def _time_column(self) -> TimeColumn | None:
        name = self.columns.timestamp
        if name is None:
            return None
        column, dtype = pl.col(name), self._schema[name]
        known = self.frame.select(column).filter(column.is_not_null() & (column.cast(pl.String) != ""))
        sample = pl.Series(dtype=dtype)
        if dtype == pl.String:
            sample = known.head(_TIMES_IN_SAMPLE).collect(engine="streaming").to_series()
            # Without any value each row is reported as missing its time.
            sample = sample if len(sample) else pl.Series(["0"])
        if (time := time_column(column, dtype, sample)) is None:
            got = f"starts with {shorten(sample[0])!r}" if dtype == pl.String else f"is {dtype}"
            raise InputError(
                f"{self.path}: timestamp={name!r} {got}; "
                "expected integers, numbers or times such as 2022-04-10 08:59:09"
            )
        return time

    def _features(self) -> list[pl.Expr]:
        names = self.columns.features
        if names is None:
            taken = {*self.columns.required().values(), USER_ID, ITEM_ID, TIMESTAMP}
            names = [name for name in self.names if name not in taken]
        return [pl.col(name) for name in names] if self.csv is None else self.csv.typed(names)
