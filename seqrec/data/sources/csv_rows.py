"""Rows of a CSV or TSV file as text, with the line that each begins on, and the types of its feature columns."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from seqrec.data.ids import BLANKS, MISSING_VALUES, cleaned
from seqrec.data.user_files import kind_of_bytes
from seqrec.errors import InputError

# polars cuts a row after the requested columns, so some fields beyond the header's are requested, too. A row is too
# long if one of these has content. A separator at the end of each row only makes an empty one.
_NUM_EXTRA = 8
# Lines that are compared with the width of a given header.
_ROWS_FOR_WIDTH = 100
# The longest quoted field, in lines, in the search for a stray quote.
_MAX_LINES_IN_FIELD = 1000
# Rows that determine the types of feature columns.
_ROWS_FOR_TYPES = 10_000


@dataclass
class CsvRows:
    """The rows of a file, as text.

    Args:
        path: The file, plain, `.gz` or `.zst`.
        origin: Its name for messages.
        separator: Character between fields.
        quote: Character around fields that contain separators or line breaks; None if quotes mean nothing.
        header: Names of the columns, if the first line does not contain them.
        missing_values: Text of a missing value.

    Attributes:
        names: The column names.
        extra: Columns of `frame` for fields beyond those, null if a row has none.
        frame: String columns `names` and `extra`. A missing or empty field is null, a blank line is a row of nulls.

    Raises:
        InputError: if `header` has another number of columns, or if the line of names is empty or has a stray quote.
    """

    path: Path
    origin: str
    separator: str
    quote: str | None
    header: list[str] | None = None
    missing_values: Sequence[str] = MISSING_VALUES
    names: list[str] = field(init=False)
    extra: list[str] = field(init=False)
    frame: pl.LazyFrame = field(init=False)

    def __post_init__(self) -> None:
        names = self._names() if self.header is None else self._checked_header(self.header)
        self.names = [name.strip(BLANKS) for name in names]
        self.extra = [f"field {len(self.names) + k + 1} of {self.origin}" for k in range(_NUM_EXTRA)]
        self._skipped = 0 if self.header is not None else self._lines_to_names()
        self.frame = self._positional(self._skipped)

    @property
    def is_blank(self) -> pl.Expr:
        """True for a row that is empty in all columns, which is not an event."""
        return ~pl.any_horizontal(pl.col(self.names + self.extra).str.len_bytes() > 0).fill_null(False)

    @property
    def is_long(self) -> pl.Expr:
        """True for a row that has more fields than the file has columns."""
        return pl.any_horizontal(pl.col(self.extra).str.len_bytes() > 0).fill_null(False)

    def lines_of(self, rows: list[int]) -> list[int]:
        """Return the line, from 1, that each row begins on, given the rows' numbers, from 0, in ascending order."""
        before = [1 + self._skipped + row for row in rows]
        if not self.quote or not rows:
            return before
        # Quoted fields may span lines, and then row numbers are not line numbers.
        in_names = sum(name.count("\n") for name in self.names) if self.header is None else 0
        breaks = pl.sum_horizontal(
            pl.col(self.names + self.extra).str.count_matches("\n", literal=True).cast(pl.Int64).fill_null(0)
        )
        earlier = [pl.when(pl.col("row") < row).then(breaks).otherwise(0).sum().alias(str(row)) for row in rows]
        counted = self.frame.with_row_index("row").head(rows[-1] + 1).select(earlier).collect(engine="streaming")
        return [line + in_names + more for line, more in zip(before, counted.row(0), strict=True)]

    def typed(self, names: Sequence[str], texts: Collection[str] = ()) -> list[pl.Expr]:
        """Return columns with the type of their first 10,000 values: Int64, Float64, Boolean (true, false) or text.

        Those in `texts` are text. If a later value has another type, collecting the column fails, and polars' error
        names the column.
        """
        return typed_columns(self.frame, names, texts, self.missing_values)

    def problem(self, values: dict[str, Any]) -> str | None:
        """Return why a row is malformed, given its values, if it has too many fields."""
        filled = [k for k, name in enumerate(self.extra, start=1) if values[name]]
        return f"expected {len(self.names)} fields, got {len(self.names) + filled[-1]}" if filled else None

    @contextmanager
    def naming_bad_lines(self) -> Iterator[None]:
        """Turn polars' error about a stray quote into one that names the line."""
        try:
            yield
        except pl.exceptions.ComputeError as error:
            if self.quote and (line := self._line_of_stray_quote()) is not None:
                raise InputError(self._stray_quote(line)) from error
            raise

    def check_no_line_is_swallowed(self, rows: int) -> None:
        """Refuse a file in which a stray quote in a long row swallows the lines after it."""
        if not self.quote:
            return
        lines = pl.scan_lines(self.path, glob=False).select(pl.len()).collect(engine="streaming").item()
        last_line = self.lines_of([rows])[0] - 1
        if lines != last_line:
            line = self._line_of_stray_quote()
            raise InputError(self._stray_quote(line) if line else f"{self.origin}: rows that are too long span lines")

    def _scan(self, **options: object) -> pl.LazyFrame:
        frame: pl.LazyFrame = pl.scan_csv(
            self.path,
            separator=self.separator,
            quote_char=self.quote,
            infer_schema=False,
            truncate_ragged_lines=True,
            glob=False,
            **options,  # type: ignore[arg-type]
        )
        return frame

    def _names(self) -> list[str]:
        with self.path.open("rb") as stream:
            kind = kind_of_bytes(stream.read(16))
        if kind == "UTF-16":
            raise InputError(f"{self.origin} is UTF-16; save it as UTF-8")
        if kind and not kind.startswith("compressed"):
            raise InputError(f"{self.origin}: this is {kind}, which is not read so; save the table as CSV or Parquet")
        names = self._scan(has_header=True).collect_schema().names()
        if any("\r" in name for name in names):
            raise InputError(f"{self.origin} ends its lines with carriage returns alone; save it with line feeds")
        if self.quote and any(self.quote in name for name in names):
            raise InputError(f"{self.origin} has a stray quote ({self.quote}) in its line of column names")
        return names

    def _checked_header(self, header: list[str]) -> list[str]:
        # At least one of the first rows must have the header's width. The others may be malformed.
        lines = pl.scan_lines(self.path, glob=False).filter(pl.col("line").str.strip_chars() != "")
        first = lines.head(_ROWS_FOR_WIDTH).collect(engine="streaming").to_series().to_list()
        # A quoted field may contain separators.
        if first and not any(self.quote and self.quote in line for line in first):
            widths = [line.removesuffix(self.separator).count(self.separator) + 1 for line in first]
            ending = [line.count(self.separator) + 1 for line in first]
            if len(header) not in {*widths, *ending}:
                raise InputError(f"{self.origin} has {ending[0]} columns, but header names {len(header)}")
        return header

    def _lines_to_names(self) -> int:
        # Number of lines up to the line of names, which blank lines may precede.
        has_names = pl.any_horizontal(pl.exclude("row").is_not_null())
        named = self._positional(0).with_row_index("row").filter(has_names).head(1)
        with self.naming_bad_lines():
            row = named.collect(engine="streaming")["row"]
        if len(row) == 0:
            raise InputError(f"{self.origin} names no column in its first line; expected names, or give header")
        return int(row.item()) + 1

    def _positional(self, skipped: int) -> pl.LazyFrame:
        return self._scan(
            has_header=False,
            skip_rows=skipped,
            schema=dict.fromkeys(self.names + self.extra, pl.String),
            missing_columns="insert",
            extra_columns="ignore",
        )

    def _stray_quote(self, line: int) -> str:
        return (
            f"{self.origin} line {line}: a quote ({self.quote}) that encloses no whole field; double it inside a "
            "quoted field, or give quote: null if quotes mean nothing"
        )

    def _line_of_stray_quote(self) -> int | None:
        # The first line that begins no record, a run of lines with fields that are quoted whole or not at all.
        assert self.quote is not None
        quote, separator = re.escape(self.quote), re.escape(self.separator)
        one_field = f"(?:{quote}(?:[^{quote}]|{quote}{quote})*{quote}|[^{quote}{separator}\n]*)"
        is_record = re.compile(f"{one_field}(?:{separator}{one_field})*\r?")
        quoted = pl.scan_lines(self.path, row_index_name="row", glob=False).filter(
            pl.col("line").str.contains(self.quote, literal=True)
        )
        record, began = "", 0
        for batch in quoted.collect_batches(engine="streaming", lazy=True):
            for row, line in batch.iter_rows():
                began = began if record else row + 1
                record += line + "\n"
                if record.count(self.quote) % 2 == 0:
                    if not is_record.fullmatch(record.removeprefix("\ufeff")[:-1]):
                        return began
                    record = ""
                elif row + 1 - began > _MAX_LINES_IN_FIELD:
                    return began
        return began if record else None


def typed_columns(
    frame: pl.LazyFrame, names: Sequence[str], texts: Collection[str], missing_values: Sequence[str]
) -> list[pl.Expr]:
    """Return columns of a frame of text with the type of their first 10,000 values; see `CsvRows.typed`."""
    if not names:
        return []
    sample = frame.select(names).head(_ROWS_FOR_TYPES).collect(engine="streaming")
    known = sample.select(cleaned(pl.col(names), missing_values))
    values = {name: cleaned(pl.col(name), missing_values) for name in names}
    return [values[name] if name in texts else _typed(values[name], known[name].drop_nulls()) for name in names]


def _typed(value: pl.Expr, values: pl.Series) -> pl.Expr:
    if len(values) == 0:
        return value
    for number in (pl.Int64, pl.Float64):
        if values.cast(number, strict=False).is_not_null().all():
            return value.cast(number)
    if values.str.to_lowercase().is_in(["true", "false"]).all():
        # Text does not cast to Boolean, and any other way would not name a later value that is neither.
        return value.str.to_lowercase().cast(pl.Enum(["false", "true"])).to_physical().cast(pl.Boolean)
    return value
