"""Rows of a file with one JSON object a line, as text, and files of lines that are dictionaries of Python."""

from __future__ import annotations

import ast
import gzip
import json
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from seqrec.data.progress import Progress
from seqrec.data.sources.checking import shorten
from seqrec.data.sources.csv_rows import typed_columns
from seqrec.data.sources.packed import require_room
from seqrec.errors import InputError

# Lines that show which keys a file has.
_LINES_FOR_KEYS = 1000
_LINES_IN_BATCH = 1 << 12


class BadLineError(InputError):
    """A line that is no JSON; which one it is, reading by line shows."""


@dataclass
class JsonRows:
    """The values of some keys of each line, as text: `12`, `true`, or `["a", "b"]` for a list.

    Lines are parsed by polars, which refuses a file with a line that is no JSON without naming it. With `by_line` each
    line is parsed alone, which takes some ten times as long and marks such lines as too long rows.

    Args:
        path: The file, plain, `.gz` or `.zst`.
        origin: Its name for messages.
        keys: The keys to read. Those that none of the first 1,000 lines has are left out.
        missing_values: Text of a missing value.
        by_line: Whether to parse each line alone.

    Attributes:
        found: All keys of these lines.
        names: Those of `keys` among them.
        extra: With `by_line`, the column of `frame` for lines that are no JSON objects.
        frame: String columns `names` and `extra`, null if a line lacks the key. Blank lines are no rows.

    Raises:
        InputError: if the file is empty, or if none of these lines is a JSON object.
    """

    path: Path
    origin: str
    keys: Sequence[str]
    missing_values: Sequence[str] = ()
    by_line: bool = False
    found: list[str] = field(init=False)
    names: list[str] = field(init=False)
    extra: list[str] = field(init=False)
    frame: pl.LazyFrame = field(init=False)

    def __post_init__(self) -> None:
        self.found = self._found()
        self.names = [key for key in self.keys if key in self.found]
        self.extra = [f"line of {self.origin}"] if self.by_line else []
        if self.by_line:
            line = pl.col("line")
            is_object = line.str.json_path_match("$").str.starts_with("{").fill_null(False)
            values = {name: line.str.json_path_match(f"$['{name}']") for name in self.names}
            self.frame = self._lines().select(**values, **{self.extra[0]: pl.when(~is_object).then(line)})
        else:
            # By its address a file is read in pieces; by its path it would be mapped into memory whole.
            address = self.path.resolve().as_uri()
            self.frame = pl.scan_ndjson(address, schema=dict.fromkeys(self.names, pl.String))

    @property
    def is_blank(self) -> pl.Expr:
        """False, because blank lines are no rows."""
        return pl.lit(False)

    @property
    def is_long(self) -> pl.Expr:
        """True for a line that is no JSON object; only `by_line`."""
        return pl.col(self.extra[0]).is_not_null() if self.extra else pl.lit(False)

    def problem(self, values: dict[str, Any]) -> str | None:
        """Return why a row is malformed, given its values, if it is no JSON object."""
        text = values[self.extra[0]] if self.extra else None
        return None if text is None else f"expected a JSON object, got {shorten(text.strip())!r}"

    def lines_of(self, rows: list[int]) -> list[int]:
        """Return the line, from 1, of each row, given the rows' numbers, from 0, in ascending order."""
        numbered = self._lines().with_row_index("row").filter(pl.col("row").is_in(rows)).head(len(rows))
        return [number + 1 for number in numbered.collect(engine="streaming")["number"]]

    def typed(self, names: Sequence[str], texts: Collection[str] = ()) -> list[pl.Expr]:
        """Return columns with the type of their first 10,000 values, as `CsvRows.typed` does."""
        return typed_columns(self.frame, names, texts, self.missing_values)

    def check_no_line_is_swallowed(self, rows: int) -> None:
        """Do nothing: no JSON object spans lines."""

    @contextmanager
    def naming_bad_lines(self) -> Iterator[None]:
        """Turn polars' error about a line that is no JSON into a `BadLineError`.

        Raises:
            BadLineError: if there is such a line.
        """
        try:
            yield
        except pl.exceptions.ComputeError as error:
            if self.by_line:
                raise
            raise BadLineError(f"{self.origin} has a line that is no JSON object") from error

    def check(self) -> None:
        """Refuse a file with a line that is no JSON object, and name the line.

        Raises:
            InputError: if there is one.
        """
        try:
            with self.naming_bad_lines():
                self.frame.select(pl.first().null_count()).collect(engine="streaming")
        except BadLineError:
            rows = JsonRows(self.path, self.origin, self.keys, self.missing_values, by_line=True)
            bad = rows.frame.with_row_index("row").filter(rows.is_long).head(1).collect(engine="streaming")
            if not len(bad):
                raise
            (line,) = self.lines_of(bad["row"].to_list())
            raise InputError(f"{self.origin} line {line}: {rows.problem(bad.row(0, named=True))}") from None

    def _lines(self) -> pl.LazyFrame:
        # Lines with their numbers, from 0, without blank ones.
        lines = pl.scan_lines(self.path, row_index_name="number", glob=False)
        return lines.filter(pl.col("line").str.strip_chars().str.len_bytes() > 0)

    def _found(self) -> list[str]:
        lines = self._lines().head(_LINES_FOR_KEYS).collect(engine="streaming")["line"]
        if not len(lines):
            raise InputError(f"{self.origin} is empty; expected at least one event")
        objects = [found for found in map(_parsed, lines) if isinstance(found, dict)]
        if not objects:
            raise InputError(
                f"{self.origin}: none of its first {len(lines):,} lines is a JSON object; the first is "
                f"{shorten(lines[0].strip())!r}"
            )
        return list(dict.fromkeys(key for found in objects for key in found))


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def write_json_of_literals(file: Path, keys: Sequence[str], folder: Path, progress: Progress) -> Path:
    """Write the lines of a file, dictionaries as Python prints them (`{u'id': u'7'}`), as JSON lines, in one pass.

    Lines keep their numbers. One that is no dictionary is kept as it is, so that reading it names it.

    Args:
        file: The file, plain or `.gz`.
        keys: The keys to keep.
        folder: The folder for the new file.
        progress: Shows the lines.

    Returns:
        The new file.

    Raises:
        InputError: if the file is damaged or no text, or if the disk has no room.
    """
    target = folder / f"{file.name}.jsonl"
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as stream, target.open("w") as out:
            batches = iter(lambda: list(islice(stream, _LINES_IN_BATCH)), [])
            for batch in progress.track(f"reading the dictionaries of {file}", batches):
                out.writelines(_json_of(line.decode(), keys) for line in batch)
                require_room(target, file)
    except (EOFError, zlib.error, UnicodeDecodeError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} cannot be read as lines of text: {error}; save it again, or give another") from error
    return target


def _json_of(line: str, keys: Sequence[str]) -> str:
    text = line.strip()
    try:
        found = ast.literal_eval(text)
        return json.dumps({key: found[key] for key in keys if key in found}) + "\n"
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text + "\n"
