"""Logs in CSV, TSV or Parquet tables, one event a row, with column names of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from seqrec.data.progress import Progress
from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID
from seqrec.data.sources.base import Source
from seqrec.data.sources.malformed import check_max_bad_share
from seqrec.data.sources.table_file import SUFFIXES, Columns, Form, TableFile, matching, suffix
from seqrec.data.sources.table_log import check_tables
from seqrec.errors import InputError, MissingInputError

if TYPE_CHECKING:
    import polars as pl


class Table(Source):
    r"""CSV, TSV or Parquet files with a column of users, one of items and perhaps one of times.

    CSV and TSV files may be compressed (`.gz`, `.zst`) and start with a line of column names, unless `header`
    gives these. Several files are read one after the other in the order of their names.

    Timestamps: integers are kept as they are, in the log's unit. Dates and times become seconds since 1970
    UTC (a time without a zone is taken as UTC), and numbers with a decimal point become whole numbers; where
    any time of the log has a fraction, all of them are given in millionths (microseconds) instead.

    A row is malformed where it has no user or item, no time that fits into int64, or more fields than there are
    columns. A separator at the end of a row does no harm, and a row with nothing in any field is a blank line.

    Feature columns keep their Parquet type. In CSV and TSV files those whose first 10,000 values are integers are
    Int64, those of other numbers Float64, those of true and false Boolean, and the others are text; a later value
    of another kind is an error where an event filter needs the column.

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
        quote: What encloses fields of CSV and TSV files that hold a separator, a line break or, doubled, itself.
            None: nothing does, and quotes are characters like others.
        max_bad_share: Largest share of malformed rows, 0..1, that are left out; more of them are an error.
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
        quote: str | None = '"',
        max_bad_share: float = 0.0,
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
        for argument, character in (("separator", separator), ("quote", quote)):
            if character is not None and (
                not character.isascii() or len(character) != 1 or character in "\r\n"
            ):
                raise InputError(f"{argument}={character!r} must be one ASCII character, and no line break")
        if separator is not None and separator == quote:
            raise InputError(f"{separator=} and {quote=} must be different characters")
        self.path = path
        self.user = user
        self.item = item
        self.timestamp = timestamp
        self.separator = separator
        self.features = features
        self.header = header
        self.quote = quote
        self.max_bad_share = check_max_bad_share(max_bad_share)

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
        found = matching(self.path)
        if not found:
            raise MissingInputError(f"path={self.path!r}: no such file or folder, and no file matches it")
        return found

    def scan(self, progress: Progress | None = None) -> pl.LazyFrame:
        """Return the interaction frame; each file is read once or twice to check it, and when it is collected.

        Raises:
            MissingInputError: nothing matches `path`.
            InputError: a file is unreadable or empty, a column is missing, or more rows are malformed than
                `max_bad_share` allows; the message names file, column and line (row for Parquet).
        """
        columns = Columns(self.user, self.item, self.timestamp, self.features)
        form = Form(self.separator, self.quote, self.header)
        files = [TableFile(file, columns, form) for file in self.files()]
        return self._take(check_tables(files, self.max_bad_share, progress))
