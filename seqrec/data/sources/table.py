"""Logs in CSV, TSV or Parquet tables, one event a row, with column names of their own."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING

from seqrec.data.progress import Progress
from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID
from seqrec.data.sources.base import SOURCES, Source
from seqrec.data.sources.table_file import SUFFIXES, Columns, TableFile, suffix
from seqrec.errors import InputError, MissingInputError

if TYPE_CHECKING:
    import polars as pl


@SOURCES.register("table")
class Table(Source):
    r"""CSV, TSV or Parquet files with a column of users, one of items and perhaps one of times.

    CSV and TSV files may be compressed (`.gz`, `.zst`) and start with a line of column names, unless `header`
    gives these. Several files are read one after the other in the order of their names.

    Timestamps: integers are kept as they are, in the log's unit. Dates and times become seconds since 1970
    UTC (a time without a zone is taken as UTC), and numbers with a decimal point become whole numbers; where
    any time of the log has a fraction, all of them are given in millionths (microseconds) instead.

    Feature columns keep their Parquet type; in CSV and TSV files those whose first 10,000 values are numbers
    are numbers (Float64), those of true and false are Boolean, and the others are text.

    Args:
        path: A file, a glob such as `log/part-*.csv.gz`, or a folder.
        user: Name of the column of user ids.
        item: Name of the column of item ids.
        timestamp: Name of the column of times; None for a log without, whose rows are in time order.
        separator: What stands between fields; None takes a comma for `.csv` and a tab for `.tsv`.
        features: Further columns that the event filter may name, beside `user_id`, `item_id` and `timestamp`,
            which stand for the columns above whatever their names. None takes all others.
        header: Names of all columns, in order, of CSV and TSV files that do not start with a line of names
            (LFM-1b). None: they do.
    """

    name = "table"

    def __init__(
        self,
        path: str,
        user: str = "user_id",
        item: str = "item_id",
        timestamp: str | None = "timestamp",
        separator: str | None = None,
        features: list[str] | None = None,
        header: list[str] | None = None,
    ) -> None:
        if len({user, item, timestamp}) < 3:
            raise InputError(f"{user=}, {item=} and {timestamp=} must be different columns")
        taken = {user, item, timestamp, USER_ID, ITEM_ID, TIMESTAMP}
        if repeated := [feature for feature in features or [] if feature in taken]:
            raise InputError(
                f"features={features}: {repeated[0]!r} is there already; "
                "an event filter calls user, item and time user_id, item_id and timestamp"
            )
        if header is not None and len(set(header)) < len(header):
            raise InputError(f"header={header} names a column twice")
        if separator is not None and len(separator.encode()) != 1:
            raise InputError(f"separator={separator!r} must be one ASCII character")
        self.path = path
        self.user = user
        self.item = item
        self.timestamp = timestamp
        self.separator = separator
        self.features = features
        self.header = header

    def files(self) -> list[Path]:
        """Return the files in the order they are read.

        Raises:
            MissingInputError: nothing matches `path`.
        """
        path = Path(self.path)
        if path.is_file():
            return [path]
        if path.is_dir():
            found = [file for file in sorted(path.iterdir()) if file.is_file() and suffix(file) in SUFFIXES]
            if not found:
                raise MissingInputError(f"path={self.path!r}: no {', '.join(SUFFIXES)} file in this folder")
            return found
        found = [
            Path(match) for match in sorted(glob.glob(self.path, recursive=True)) if Path(match).is_file()
        ]
        if not found:
            raise MissingInputError(f"path={self.path!r}: no such file or folder, and no file matches it")
        return found

    def scan(self, progress: Progress | None = None) -> pl.LazyFrame:
        """Return the interaction frame; each file is read once to check it, and again when it is collected.

        Raises:
            MissingInputError: nothing matches `path`.
            InputError: a file is unreadable or empty, a column is missing, or a value is bad; the message
                names file, column and line (row for Parquet).
        """
        import polars as pl

        columns = Columns(self.user, self.item, self.timestamp, self.features)
        files = [TableFile(file, columns, self.separator, self.header) for file in self.files()]
        if len({file.time.is_date for file in files if file.time is not None}) > 1:
            raise InputError(
                f"timestamp={self.timestamp!r}: {self.path} has dates in some files, numbers in others"
            )
        id_types = {
            name: pl.Int64 if all(file.integer_ids[name] for file in files) else pl.String
            for name in (USER_ID, ITEM_ID)
        }
        fractions = any(file.fractions for file in files)
        frames = [file.interactions(id_types, fractions=fractions) for file in files]
        return frames[0] if len(frames) == 1 else pl.concat(frames, how="diagonal_relaxed")
