"""One file of a table log: its columns, and expressions that read its ids and its times, as int64, in any form."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import polars as pl

from seqrec.data.ids import BLANKS, MISSING_VALUES, cleaned, whole_numbers
from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID
from seqrec.data.sources.checking import reading, shorten
from seqrec.data.sources.csv_rows import CsvRows
from seqrec.data.sources.json_rows import BadLineError, JsonRows
from seqrec.data.sources.source import suffix
from seqrec.data.sources.time_column import TIMES_IN_SAMPLE, TimeColumn, time_column
from seqrec.data.user_files import kind_of_bytes
from seqrec.errors import InputError

SEPARATORS = {".csv": ",", ".tsv": "\t"}


def _what_it_is(path: Path) -> str:
    """Return why a file is not read as text."""
    with path.open("rb") as stream:
        start = stream.read(16)
    if kind := kind_of_bytes(start):
        return f"this is {kind}, which is not read; save the table as CSV or Parquet"
    if start.lstrip()[:1] == b"[":
        return "this is a JSON array; save it as JSON lines (.jsonl), with one object a line"
    return "the name does not show what separates the fields; give separator"


def _partitions(path: Path) -> list[tuple[str, str]]:
    """Return names and values of the folders of a path that are partitions."""
    found = [part.partition("=") for part in path.parent.parts]
    return [(name, unquote(value)) for name, equals, value in found if equals and name.isidentifier()]


def _literal(value: str) -> pl.Expr:
    if value == "__HIVE_DEFAULT_PARTITION__":
        return pl.lit(None, pl.String)
    return pl.lit(int(value), pl.Int64) if value.isdecimal() and len(value) < 19 else pl.lit(value)


@dataclass(frozen=True)
class Layout:
    """Columns and text of a table.

    Attributes:
        user, item, timestamp, features, separator, quote, header, missing_values, time_format: Arguments of `Table`.
        log: Name of the published log with files of this layout; empty if the user gives the columns.
        keys: Keys to read of the objects in JSON lines; none if the file is no such file, or all are read.
        texts: Columns that are text though their first values may be numbers.
        needs: Columns of the file that `derive` reads.
        derive: Returns the frame with further columns, such as a time that is a date and a number.
    """

    user: str
    item: str
    timestamp: str | None
    features: list[str] | None = None
    separator: str | None = None
    quote: str | None = '"'
    header: list[str] | None = None
    missing_values: tuple[str, ...] = MISSING_VALUES
    time_format: str | None = None
    log: str = ""
    keys: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    derive: Callable[[pl.LazyFrame], pl.LazyFrame] | None = None

    def required(self) -> dict[str, str]:
        """Return the columns that the file must have, by the text of the argument in messages."""
        named = {f"user={self.user!r}": self.user, f"item={self.item!r}": self.item}
        if self.timestamp is not None:
            named[f"timestamp={self.timestamp!r}"] = self.timestamp
        return named | {f"features has {feature!r}": feature for feature in self.features or []}


@dataclass
class TableFile:
    """A file of a table, maybe unpacked elsewhere. The constructor reads its first rows only.

    Attributes:
        text: The rows as text; None for Parquet, and for JSON lines if `layout` names no keys.
        by_line: Whether each line is parsed alone; see `JsonRows`.
        frame: The raw columns, with blank lines and malformed rows; `names` are theirs, in order.
        partitions: Columns that the file's folders give, such as dt=2024-01-02, with their value.
        raw_ids: The columns `user_id` and `item_id` of the interaction frame, as the file has them.
        loose: Whether ids are read by all rules of `seqrec.data.ids`. If all are plain integers, as in most logs, that
            changes nothing but the time it takes.
        decimals: Names of the id columns that have whole numbers such as 12.0.
        time: Expressions that read the time column, at first in the strictest way; None if the log has no times.
        in_millionths: Whether times become millionths, as in a log with a time that is not whole; False at first.

    Raises:
        InputError: if the file is unreadable, or if a column is missing or has an unsuitable type.
    """

    path: Path
    layout: Layout
    unpacked: Path | None = None
    text: CsvRows | JsonRows | None = field(init=False, default=None)
    by_line: bool = field(init=False, default=False)
    frame: pl.LazyFrame = field(init=False)
    names: list[str] = field(init=False)
    partitions: dict[str, str] = field(init=False)
    raw_ids: dict[str, pl.Expr] = field(init=False)
    loose: bool = field(init=False, default=False)
    decimals: set[str] = field(init=False, default_factory=set)
    time: TimeColumn | None = field(init=False)
    in_millionths: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        try:
            self._open()
        except BadLineError:
            self.read_by_line()

    def read_by_line(self) -> None:
        """Open the file again and parse each line alone, which names those that cannot be parsed."""
        self.by_line, self.loose = True, False
        self._open()

    def _open(self) -> None:
        with reading(self.path, self._kind):
            if self.layout.keys:
                self.text = JsonRows(
                    self.content, str(self.path), self.layout.keys, self.layout.missing_values, self.by_line
                )
                self.frame, self.names = self.text.frame, self.text.names
            elif self._kind == "Parquet":
                self.frame = pl.scan_parquet(self.content, glob=False)
                self.names = self.frame.collect_schema().names()
            elif self._kind == "JSON lines":
                self.frame = pl.scan_ndjson(self.content, infer_schema_length=None)
                self.names = self.frame.collect_schema().names()
            else:
                layout, origin = self.layout, str(self.path)
                self.text = CsvRows(
                    self.content, origin, self._separator(), layout.quote, layout.header, layout.missing_values
                )
                self.frame, self.names = self.text.frame, self.text.names
        for column in self.layout.needs:
            self._check_column("", column)
        if self.layout.derive is not None:
            with self.reading():
                try:
                    self.frame = self.layout.derive(self.frame)
                except InputError as error:
                    raise InputError(f"{self.path}: {error}") from error
                names = self.frame.collect_schema().names()
            self.names = [name for name in names if self.text is None or name not in self.text.extra]
        self.partitions = {name: value for name, value in _partitions(self.path) if name not in self.names}
        self.frame = self.frame.with_columns(**{name: _literal(value) for name, value in self.partitions.items()})
        self.names = [*self.names, *self.partitions]
        with self.reading():
            self._schema = self.frame.collect_schema()
            self._check_columns()
            self.raw_ids = {
                USER_ID: self._id_column("user", self.layout.user),
                ITEM_ID: self._id_column("item", self.layout.item),
            }
            self.time = self._time_column()

    @property
    def content(self) -> Path:
        """The file to read, by a name that holds in other processes."""
        return (self.unpacked or self.path).absolute()

    @property
    def can_slice(self) -> bool:
        """Whether a slice of the frame is read without the rows before it."""
        return self._kind == "Parquet" and self.layout.derive is None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn a failure to read the file into a one-line error."""
        with reading(self.path, self._kind):
            if self.text is None:
                yield
            else:
                with self.text.naming_bad_lines():
                    yield

    def loosen_time(self) -> None:
        """Read the time column in the next looser way, if it has one."""
        if self.time is not None and self.time.looser is not None:
            self.time = self.time.looser

    @property
    def ids(self) -> dict[str, pl.Expr]:
        """Columns `user_id` and `item_id`, Int64 or String, null if a row has no id."""
        return {name: self._id(name) for name in self.raw_ids}

    def is_text(self, name: str) -> bool:
        """Return whether an id column is text in the file, which may be written numbers."""
        dtype = self._schema[self._columns[name]]
        return dtype == pl.String or isinstance(dtype, (pl.Categorical, pl.Enum))

    @property
    def _columns(self) -> dict[str, str]:
        return {USER_ID: self.layout.user, ITEM_ID: self.layout.item}

    def _id(self, name: str) -> pl.Expr:
        column = self.raw_ids[name]
        if not self.is_text(name):
            return column
        if self.loose:
            return cleaned(column, self.layout.missing_values)
        return pl.when(column.str.len_bytes() > 0).then(column)

    @property
    def parsed(self) -> dict[str, pl.Expr]:
        """Columns `user_id`, `item_id` and, if the log has times, `timestamp`; null if a row has no valid one."""
        if self.time is None:
            return self.ids
        return {**self.ids, TIMESTAMP: self.time.millionths if self.in_millionths else self.time.whole}

    @property
    def is_unfit(self) -> pl.Expr:
        """True for a row of `frame` that is not an event: malformed, or a blank line."""
        unfit = pl.any_horizontal(*(column.is_null() for column in self.parsed.values()))
        return unfit if self.text is None else unfit | self.text.is_long

    def interactions(self, id_types: dict[str, Any], *, all_fit: bool) -> pl.LazyFrame:
        """Return the file's interaction frame, without malformed rows and blank lines."""
        frame = self.frame if all_fit else self.frame.filter(~self.is_unfit)
        types = {**id_types, TIMESTAMP: pl.Int64}
        parsed = [self._cast(name, column, types[name]).alias(name) for name, column in self.parsed.items()]
        with self.reading():
            return frame.select(*parsed, *self._features())

    def _cast(self, name: str, column: pl.Expr, dtype: Any) -> pl.Expr:
        return whole_numbers(column) if name in self.decimals and dtype == pl.Int64 else column.cast(dtype)

    @property
    def _kind(self) -> str:
        if self.layout.keys:
            return "JSON lines"
        kinds = {".parquet": "Parquet", ".jsonl": "JSON lines", ".ndjson": "JSON lines"}
        return kinds.get(suffix(self.content), "text")

    def _separator(self) -> str:
        separator = self.layout.separator or SEPARATORS.get(suffix(self.content))
        if separator is None:
            raise InputError(f"{self.path}: {_what_it_is(self.content)}")
        return separator

    def expected_id(self, column: str, value: Any) -> str:
        """Return what an id of a column must be, given a value that is none."""
        dtype = self._schema[column]
        if dtype.is_float() and value is not None and math.isfinite(value) and value == math.floor(value):
            return f"an id whose digits {dtype} can hold (write the column as integers or text)"
        if dtype.is_integer() and value is not None:
            return "an id below 2^63 (write the column as text)"
        return "an id"

    def _check_columns(self) -> None:
        for argument, column in self.layout.required().items():
            # polars numbers columns of the same name.
            if f"{column}_duplicated_0" in self.names:
                raise InputError(f"{self.path} has two columns {column!r} ({argument}); give each a name of its own")
            self._check_column(argument, column)

    def _check_column(self, argument: str, column: str) -> None:
        if column in self.names:
            return
        if self.layout.log:
            has = self.text.found if isinstance(self.text, JsonRows) else self.names
            raise InputError(
                f"{self.path} has no column {column!r}; it has {', '.join(has) or 'none that is read'}; is it a file "
                f"of {self.layout.log} as it is published?"
            )
        near = difflib.get_close_matches(column, self.names, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        # A column alone whose name is a word was separated rightly.
        if len(self.names) == 1 and self.text is not None and not self.names[0].replace("_", "").isalnum():
            hint = f"; is separator={self._separator()!r} right?"
        elif len(self.names) == 1 and self.names[0] in self.layout.required().values():
            hint = "; a log needs users and items, one event a row"
        elif not near and self.text is not None and self.layout.header is None and not self._has_any_column():
            hint = "; if its first line has no names, give them all: header=[user_id, item_id, ..]"
        elif not near and column == self.layout.timestamp:
            hint = "; if the log has no times, set timestamp to null"
        hint = hint or "; choose one of these"
        raise InputError(f"{self.path} has no column {column!r} ({argument}); it has {', '.join(self.names)}{hint}")

    def _has_any_column(self) -> bool:
        return any(column in self.names for column in self.layout.required().values())

    def _id_column(self, argument: str, column: str) -> pl.Expr:
        # Int64 or String.
        values, dtype = pl.col(column), self._schema[column]
        if dtype.is_integer() or (isinstance(dtype, pl.Decimal) and dtype.scale == 0):
            return values.cast(pl.Int64, strict=False)
        if dtype.is_float():
            # From here on not every integer is a float, so the id may be another.
            exact = (values == values.floor()) & (values.abs() < (2.0**24 if dtype == pl.Float32 else 2.0**53))
            return pl.when(exact).then(values.cast(pl.Int64, strict=False))
        if dtype == pl.String or isinstance(dtype, (pl.Categorical, pl.Enum)):
            return values.cast(pl.String)
        raise InputError(
            f"{self.path}: {argument}={column!r} is {dtype}; ids must be integers or text: write the column as text"
        )

    def _time_column(self) -> TimeColumn | None:
        name = self.layout.timestamp
        if name is None:
            return None
        column, dtype = pl.col(name), self._schema[name]
        known = self.frame.select(column).filter(column.is_not_null() & (column.cast(pl.String) != ""))
        sample = pl.Series(dtype=dtype)
        if dtype == pl.String:
            sample = known.head(TIMES_IN_SAMPLE).collect(engine="streaming").to_series()
            if (stripped := sample.str.strip_chars(BLANKS)).ne(sample).any():
                column, sample = column.str.strip_chars(BLANKS), stripped
            # Without any value each row is reported as missing its time.
            sample = sample if len(sample) else pl.Series(["0"])
        if self.layout.time_format is not None and dtype != pl.String:
            raise InputError(f"{self.path}: time_format is for times in text, but timestamp={name!r} is {dtype}")
        try:
            time = time_column(column, dtype, sample, self.layout.time_format)
        except InputError as error:
            raise InputError(f"{self.path}: timestamp={name!r} {error}") from error
        if time is None:
            two_digits = dtype == pl.String and sample.str.contains(r"^\d{1,2}[-/. ]\w{1,9}[-/. ]\d{1,2}(?:\D|$)").any()
            got = f"starts with {shorten(sample[0])!r}" if dtype == pl.String else f"is {dtype}"
            years = "; years of two digits need time_format, such as '%d/%m/%y %H:%M'" if two_digits else ""
            raise InputError(
                f"{self.path}: timestamp={name!r} {got}; expected integers, numbers or times such as "
                f"2022-04-10 08:59:09{years or '; other forms by time_format, such as ' + repr('%d %B %Y, %Hh')}"
            )
        return time

    def _features(self) -> list[pl.Expr]:
        names = self.layout.features
        if names is None:
            taken = {*self.layout.required().values(), USER_ID, ITEM_ID, TIMESTAMP}
            names = [name for name in self.names if name not in taken]
        own = [name for name in names if name not in self.partitions]
        columns = [pl.col(name) for name in own] if self.text is None else self.text.typed(own, self.layout.texts)
        return columns + [_literal(self.partitions[name]).alias(name) for name in names if name in self.partitions]
