"""Rows of a CSV or TSV file as they stand in it: text, row for row, with the line that each begins on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from seqrec.errors import InputError

if TYPE_CHECKING:
    import polars as pl

# polars cuts a row after the columns it is asked for, so fields beyond the header's are asked for, too. A row with
# something in one of these is too long; empty ones, as a separator at the end of each row makes, hold nothing.
_NUM_EXTRA = 8
# Lines whose width is held against the header's, where that is given.
_ROWS_FOR_WIDTH = 100
# Lines that a quoted field is followed for when a stray quote is looked for.
_MAX_LINES_IN_FIELD = 1000


@dataclass
class CsvRows:
    """The rows of a file, as text.

    Args:
        path: The file, plain, `.gz` or `.zst`.
        separator: What stands between fields.
        quote: What a field may be enclosed in, so that it can hold separators and line breaks; None for nothing.
        header: Names of the columns where the first line does not hold them.

    Attributes:
        names: The column names.
        extra: Columns of `frame` for fields beyond those, null where a row has none.
        frame: One String column for each of both; a field that is missing or empty is null, a blank line is a
            row of nulls.

    Raises:
        InputError: `header` names another number of columns, there are no names, or a stray quote is in their line.
    """

    path: Path
    separator: str
    quote: str | None
    header: list[str] | None = None
    names: list[str] = field(init=False)
    extra: list[str] = field(init=False)
    frame: pl.LazyFrame = field(init=False)

    def __post_init__(self) -> None:
        self.names = self._names() if self.header is None else self._checked(self.header)
        self.extra = [f"field {len(self.names) + k + 1} of {self.path}" for k in range(_NUM_EXTRA)]
        self._skipped = 0 if self.header is not None else self._lines_to_names()
        self.frame = self._positional(self._skipped)

    @property
    def is_blank(self) -> pl.Expr:
        """Whether a row has nothing in any column: no event."""
        import polars as pl

        return ~pl.any_horizontal(pl.col(self.names + self.extra).str.len_bytes() > 0).fill_null(False)

    @property
    def is_long(self) -> pl.Expr:
        """Whether a row has more fields than there are columns."""
        import polars as pl

        return pl.any_horizontal(pl.col(self.extra).str.len_bytes() > 0).fill_null(False)

    def lines_of(self, rows: list[int]) -> list[int]:
        """Return the lines, from 1, that rows begin on, given their numbers, from 0, in ascending order."""
        import polars as pl

        before = [1 + self._skipped + row for row in rows]
        if not self.quote or not rows:
            return before
        # Quoted fields may span lines, so that rows and lines differ.
        in_names = sum(name.count("\n") for name in self.names) if self.header is None else 0
        breaks = pl.sum_horizontal(
            pl.col(self.names + self.extra).str.count_matches("\n", literal=True).cast(pl.Int64).fill_null(0)
        )
        earlier = [
            pl.when(pl.col("row") < row).then(breaks).otherwise(0).sum().alias(str(row)) for row in rows
        ]
        counted = (
            self.frame.with_row_index("row").head(rows[-1] + 1).select(earlier).collect(engine="streaming")
        )
        return [line + in_names + more for line, more in zip(before, counted.row(0), strict=True)]

    @contextmanager
    def naming_stray_quotes(self) -> Iterator[None]:
        """Context in which polars' refusal of a stray quote becomes an error that names the line.

        Raises:
            InputError: in place of polars' error.
        """
        import polars as pl

        try:
            yield
        except pl.exceptions.ComputeError as error:
            if self.quote and (line := self._line_of_stray_quote()) is not None:
                raise InputError(self._stray_quote(line)) from error
            raise

    def check_no_line_is_swallowed(self, rows: int) -> None:
        """Refuse a file in which a stray quote in a long row makes the lines after it part of that row.

        Args:
            rows: Number of rows of `frame`.

        Raises:
            InputError: there are more lines than the rows account for.
        """
        import polars as pl

        if not self.quote:
            return
        lines = pl.scan_lines(self.path, glob=False).select(pl.len()).collect(engine="streaming").item()
        last_line = self.lines_of([rows])[0] - 1
        if lines != last_line:
            line = self._line_of_stray_quote()
            raise InputError(
                self._stray_quote(line) if line else f"{self.path}: rows that are too long span lines"
            )

    def _scan(self, **options: object) -> pl.LazyFrame:
        import polars as pl

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
        names = self._scan(has_header=True).collect_schema().names()
        if self.quote and any(self.quote in name for name in names):
            raise InputError(f"{self.path} has a stray quote ({self.quote}) in its line of column names")
        return names

    def _checked(self, header: list[str]) -> list[str]:
        # Some of the first rows must be as wide; those that are not may be malformed.
        import polars as pl

        lines = pl.scan_lines(self.path, glob=False).filter(pl.col("line").str.strip_chars() != "")
        first = lines.head(_ROWS_FOR_WIDTH).collect(engine="streaming").to_series().to_list()
        # A quoted field may hold separators.
        if first and not any(self.quote and self.quote in line for line in first):
            widths = [line.removesuffix(self.separator).count(self.separator) + 1 for line in first]
            ending = [line.count(self.separator) + 1 for line in first]
            if len(header) not in {*widths, *ending}:
                raise InputError(f"{self.path} has {ending[0]} columns, but header names {len(header)}")
        return header

    def _lines_to_names(self) -> int:
        # Blank lines may come before the line of names, which is counted, too.
        import polars as pl

        has_names = pl.any_horizontal(pl.exclude("row").is_not_null())
        named = self._positional(0).with_row_index("row").filter(has_names).head(1)
        with self.naming_stray_quotes():
            row = named.collect(engine="streaming")["row"]
        if len(row) == 0:
            raise InputError(f"{self.path} names no column in its first line; expected names, or give header")
        return int(row.item()) + 1

    def _positional(self, skipped: int) -> pl.LazyFrame:
        import polars as pl

        return self._scan(
            has_header=False,
            skip_rows=skipped,
            schema=dict.fromkeys(self.names + self.extra, pl.String),
            missing_columns="insert",
            extra_columns="ignore",
        )

    def _stray_quote(self, line: int) -> str:
        return (
            f"{self.path} line {line}: a quote ({self.quote}) that encloses no whole field; double it inside a "
            "quoted field, or give quote: null where quotes mean nothing"
        )

    def _line_of_stray_quote(self) -> int | None:
        # The first line from which no whole number of lines reads as fields, quoted whole or not at all.
        import polars as pl

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
