"""One file of a table log: opened, its ids and times checked in full, its bad row found and named."""

from __future__ import annotations

import csv
import difflib
import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID
from seqrec.data.sources.lines import is_integer, reading, shorten
from seqrec.data.sources.times import TimeColumn, ways_to_read
from seqrec.errors import InputError

if TYPE_CHECKING:
    import polars as pl

SEPARATORS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*SEPARATORS, ".parquet")
# Rows that the types of a CSV file's feature columns are told from.
_GUESSED_FROM = 10_000


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns; each attribute is an argument of `Table`."""

    user: str
    item: str
    timestamp: str | None
    features: list[str] | None

    def required(self) -> dict[str, str]:
        """Return the columns that must be there, by how the argument reads in a message."""
        named = {f"user={self.user!r}": self.user, f"item={self.item!r}": self.item}
        if self.timestamp is not None:
            named[f"timestamp={self.timestamp!r}"] = self.timestamp
        return named | {f"features has {feature!r}": feature for feature in self.features or []}


@dataclass
class TableFile:
    """A checked file; the constructor reads it once and refuses bad rows.

    Args:
        path: The file.
        columns: What its columns are called.
        separator: What stands between fields; None tells it from the suffix.
        header: Names of the columns where the first line does not hold them.

    Attributes:
        frame: The raw columns, without blank lines.
        ids: Columns `user_id` and `item_id` of the interaction frame: Int64, or String.
        integer_ids: By the same names, whether every id is an integer.
        time: How to read the time column; None where the log has none.
        fractions: Some time is not whole.

    Raises:
        InputError: the file is unreadable or empty, a column is missing or of a useless type, a value is bad.
    """

    path: Path
    columns: Columns
    separator: str | None = None
    header: list[str] | None = None
    frame: pl.LazyFrame = field(init=False)
    ids: dict[str, pl.Expr] = field(init=False)
    integer_ids: dict[str, bool] = field(init=False)
    time: TimeColumn | None = field(init=False, default=None)
    fractions: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        import polars as pl

        with reading(self.path, "Parquet" if self.is_parquet else "text"), self._naming_long_rows():
            self.frame = self._open()
            schema = self.frame.collect_schema()
            self._check_columns(list(schema))
            self.ids = {
                USER_ID: self._id_column("user", self.columns.user, schema),
                ITEM_ID: self._id_column("item", self.columns.item, schema),
            }
            ways = self._ways_to_read_time(schema)
            survey = self._survey(ways)
            if not self.is_parquet and survey["bad"]:
                # A blank line is empty in every column, and no event.
                self.frame = self.frame.filter(~pl.all_horizontal(pl.all().is_null()))
                survey = self._survey(ways)
        if not survey["events"]:
            raise InputError(f"{self.path} is empty; expected at least one event")
        self.integer_ids = {name: bool(survey[f"{name} integer"]) for name in self.ids}
        if ways:
            best = min(range(len(ways)), key=lambda k: int(survey[f"time {k} bad"]))
            self.time, self.fractions = ways[best], bool(survey[f"time {best} fractions"])
        if survey["bad"]:
            self._refuse_first_bad_row()

    @property
    def is_parquet(self) -> bool:
        """Whether the file is Parquet; otherwise it is lines of text."""
        return suffix(self.path) == ".parquet"

    def interactions(self, id_types: dict[str, Any], *, fractions: bool) -> pl.LazyFrame:
        """Return the file's interaction frame.

        Args:
            id_types: Type of `user_id` and of `item_id` in the whole log.
            fractions: Some time of the whole log is not whole.
        """
        selected = [column.cast(id_types[name]).alias(name) for name, column in self.ids.items()]
        if self.time is not None:
            selected.append(self.time.value(fractions=fractions).alias(TIMESTAMP))
        return self.frame.select(*selected, *self._features())

    def _open(self) -> pl.LazyFrame:
        import polars as pl

        if self.is_parquet:
            return pl.scan_parquet(self.path, glob=False)
        return self._scan_csv(infer_schema=False)

    def _scan_csv(self, **options: Any) -> pl.LazyFrame:
        import polars as pl

        frame = pl.scan_csv(
            self.path, separator=self._separator(), has_header=self.header is None, glob=False, **options
        )
        if self.header is None:
            return frame
        present = frame.collect_schema().names()
        if len(present) != len(self.header):
            raise InputError(f"{self.path} has {len(present)} columns, but header names {len(self.header)}")
        return frame.rename(dict(zip(present, self.header, strict=True)))

    def _separator(self) -> str:
        separator = self.separator or SEPARATORS.get(suffix(self.path))
        if separator is None:
            raise InputError(
                f"{self.path}: what its fields are separated by cannot be told from the name; give separator"
            )
        return separator

    def _check_columns(self, present: list[str]) -> None:
        for argument, column in self.columns.required().items():
            if column in present:
                continue
            near = difflib.get_close_matches(column, present, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            if len(present) == 1 and not self.is_parquet:
                hint = f"; is separator={self._separator()!r} right?"
            raise InputError(
                f"{self.path} has no column {column!r} ({argument}); it has {', '.join(present)}{hint}"
            )

    def _id_column(self, argument: str, column: str, schema: pl.Schema) -> pl.Expr:
        # Int64 or String, null where there is no id.
        import polars as pl

        values, dtype = pl.col(column), schema[column]
        if dtype.is_integer():
            return values.cast(pl.Int64, strict=False)
        if dtype.is_float():
            return pl.when(values == values.floor()).then(values.cast(pl.Int64, strict=False))
        if dtype == pl.String or isinstance(dtype, (pl.Categorical, pl.Enum)):
            text = values.cast(pl.String)
            return pl.when(text.str.len_bytes() > 0).then(text)
        raise InputError(f"{self.path}: {argument}={column!r} is {dtype}; ids must be integers or text")

    def _ways_to_read_time(self, schema: pl.Schema) -> list[TimeColumn]:
        import polars as pl

        name = self.columns.timestamp
        if name is None:
            return []
        column = pl.col(name)
        first = self.frame.select(column.drop_nulls().first()).collect().item()
        ways = ways_to_read(column, schema[name], first)
        if not ways and first is not None:
            got = f"starts with {first!r}" if isinstance(first, str) else f"is {schema[name]}"
            raise InputError(
                f"{self.path}: timestamp={name!r} {got}; "
                "expected integers, numbers or times such as 2022-04-10 08:59:09"
            )
        # A column without any value: reading it as integers reports its first row as missing.
        return ways or ways_to_read(column, pl.Int64(), None)

    def _survey(self, ways: list[TimeColumn]) -> dict[str, Any]:
        # One pass over the file: counts of events and of bad values.
        import polars as pl

        counts = [pl.len().alias("events")]
        for name, ids in self.ids.items():
            is_text = self.frame.select(ids).collect_schema().dtypes()[0] == pl.String
            counts.append(ids.is_null().sum().alias(f"{name} bad"))
            counts.append((is_integer(ids) if is_text else pl.lit(True)).alias(f"{name} integer"))
        for k, way in enumerate(ways):
            counts.append(way.parsed.is_null().sum().alias(f"time {k} bad"))
            counts.append(way.has_fractions().fill_null(False).alias(f"time {k} fractions"))
        survey: dict[str, Any] = self.frame.select(counts).collect().row(0, named=True)
        bad_times = min((survey[f"time {k} bad"] for k in range(len(ways))), default=0)
        survey["bad"] = survey[f"{USER_ID} bad"] + survey[f"{ITEM_ID} bad"] + bad_times
        return survey

    def _features(self) -> list[pl.Expr]:
        import polars as pl

        ids_and_time = {self.columns.user, self.columns.item, self.columns.timestamp}
        names = self.columns.features
        if names is None:
            taken = {*ids_and_time, USER_ID, ITEM_ID, TIMESTAMP}
            names = [name for name in self.frame.collect_schema() if name not in taken]
        if self.is_parquet:
            return [pl.col(name) for name in names]
        guessed = self._scan_csv(infer_schema_length=_GUESSED_FROM).collect_schema()
        features = []
        for name in names:
            column = pl.col(name)
            if guessed[name].is_numeric():
                column = column.cast(pl.Float64)
            elif guessed[name] == pl.Boolean:
                column = column.str.to_lowercase() == "true"
            features.append(column)
        return features

    def _refuse_first_bad_row(self) -> None:
        import polars as pl

        checks = {
            "user": (self.columns.user, self.ids[USER_ID], "an id"),
            "item": (self.columns.item, self.ids[ITEM_ID], "an id"),
        }
        if self.time is not None and self.columns.timestamp is not None:
            checks["timestamp"] = (self.columns.timestamp, self.time.parsed, self.time.expects)
        is_bad = {argument: parsed.is_null() for argument, (_, parsed, _) in checks.items()}
        raw = self._open().with_row_index("row number")
        if not self.is_parquet:
            raw = raw.filter(~pl.all_horizontal(pl.all().exclude("row number").is_null()))
        first = raw.filter(pl.any_horizontal(*is_bad.values())).head(1)
        row = first.collect().row(0, named=True)
        bad = first.select(pl.col("row number"), *(bad.alias(name) for name, bad in is_bad.items())).collect()
        argument = next(name for name in checks if bad[name].item())
        column, _, expects = checks[argument]
        value = row[column]
        got = "nothing" if value is None or value == "" else repr(shorten(str(value)))
        number = row["row number"]
        place = f"row {number + 1}" if self.is_parquet else f"line {self._line_of_row(number)}"
        raise InputError(f"{self.path} {place}: {argument}={column!r} expected {expects}, got {got}")

    def _line_of_row(self, number: int) -> int:
        # Quoted fields may span lines, so that rows and lines differ.
        names = 1 if self.header is None else 0
        for row, (line, _) in enumerate(self._records(), start=-names):
            if row == number:
                return line
        return number + 1 + names

    @contextmanager
    def _naming_long_rows(self) -> Iterator[None]:
        # polars refuses a row with more fields than the header has, but does not say which.
        import polars as pl

        try:
            yield
        except pl.exceptions.ComputeError as error:
            if self.is_parquet or "found more fields" not in str(error):
                raise
            width = 0
            for line, fields in self._records():
                width = width or len(fields)
                if len(fields) > width:
                    got = f"expected {width} fields, got {len(fields)}"
                    raise InputError(f"{self.path} line {line}: {got}") from error
            raise

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        # Each record of a CSV file with the number of its first line, slowly; only for messages.
        if self.path.suffix == ".zst":
            return
        opener = gzip.open if self.path.suffix == ".gz" else open
        with opener(self.path, "rt", encoding="utf-8", errors="replace", newline="") as stream:
            reader = csv.reader(stream, delimiter=self._separator())
            start = 1
            for fields in reader:
                yield start, fields
                start = reader.line_num + 1


def suffix(path: Path) -> str:
    """Return a file's suffix in lower case, without that of compression."""
    name = path.name.lower()
    for compressed in (".gz", ".zst"):
        name = name.removesuffix(compressed)
    return Path(name).suffix
