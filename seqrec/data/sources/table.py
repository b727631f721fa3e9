"""Logs in CSV, TSV or Parquet tables with any column names, one event a row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqrec.data.progress import Progress
from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID
from seqrec.data.sources.source import SideTable, Source, check_max_bad_share, from_here, matching_files, suffix
from seqrec.data.user_files import refuse_special
from seqrec.errors import InputError, MissingInputError
from seqrec.registry import did_you_mean

if TYPE_CHECKING:
    import polars as pl

# Entries of the arguments `items` and `users`.
_OF_TABLE = ("path", "key", "separator", "vectors")
_SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson")


# Ends of names of compressed files that are unpacked first; gzip and Zstandard need not be.
PACKED = (".zip", ".bz2", ".xz")


def _is_hidden(path: Path) -> bool:
    """Return whether a file or folder is hidden, as Spark has it: `_temporary`, `.x`, but not `_day=1`."""
    return path.name.startswith(".") or (path.name.startswith("_") and "=" not in path.name)


def _is_table(file: Path) -> bool:
    return suffix(file) in _SUFFIXES or file.suffix.lower() in PACKED


class Table(Source):
    r"""CSV, TSV, JSON lines or Parquet files with a column of users, one of items and perhaps one of times.

    Files of JSON lines (`.jsonl`, `.ndjson`) are read like Parquet. CSV and TSV files may be compressed (`.gz`,
    `.zst`). A `.zip` with one file, `.bz2` and `.xz` are unpacked into a temporary folder first. CSV and TSV files
    start with a line of column names, unless `header` is given. Several files are read one after the other in the
    order of their names.

    Timestamps: integers are kept unchanged, in the log's unit. Dates and times become seconds since 1970 UTC (a time
    without a zone is taken as UTC), and numbers with a decimal point become whole numbers. If any time of the log
    has a fraction, all times become millionths (microseconds) instead.

    Folders such as `dt=2024-01-02` are columns of their files, as Spark and Hive write them: text, or integers if their
    values are.

    Ids: see `seqrec.data.ids`. Blanks around ids are cut off, markers of missing values are no ids, and `12.0` is 12 if
    all ids of the column are whole numbers. What was done is reported.

    A row is malformed if it has no user or item, no time that fits into int64, or more fields than the file has
    columns. A separator at the end of a row does no harm, and a row with only empty fields is a blank line.

    Feature columns keep their Parquet type. In CSV and TSV files the first 10,000 values decide: integers make a
    column Int64, other numbers Float64, true and false Boolean, and anything else text. If an event filter needs the
    column, a later value of another type is an error.

    Args:
        path: A file, a glob such as `log/part-*.csv.gz`, a folder, or a list of these, which are read in its order.
        user: Name of the column of user ids.
        item: Name of the column of item ids.
        timestamp: Name of the column of times. None if the log has none; its rows must then be in time order.
        separator: Character between fields; None is a comma for `.csv` and a tab for `.tsv`.
        features: Further columns that the event filter may use, besides `user_id`, `item_id` and `timestamp`, which
            are its names for the three columns above. None is all other columns.
        header: Names of all columns, in order, if CSV and TSV files do not start with a line of names (LFM-1b).
        quote: Character around fields of CSV and TSV files that contain a separator, a line break or, doubled, the
            quote itself. None if quotes are characters like others.
        max_bad_share: Largest share of malformed rows, 0..1, that are left out; more of them are an error.
        missing_values: Text that stands for a missing value, in any column; a row without user or item is malformed.
            None is `seqrec.data.ids.MISSING_VALUES`: NULL, \N, NaN, None, NA and the like. [] if such words are ids.
        time_format: Form of times written as text, such as "%d/%m/%Y %H:%M" (strftime). None finds the usual forms.
        items: Table of the items, of which a schema names columns: `path`, a file or a glob, and `key`, its column of
            item ids. `separator` is that of its text files, as above. `vectors` are `.npy` files by the name of the
            column that each gives; row k belongs to row k of the table.
        users: Table of the users, likewise.

    Raises:
        InputError: if the arguments contradict each other.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from seqrec import Table
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "log.csv")
        ...     _ = file.write_text("who,what,when\nana,7,2024-01-01\nbob,9,2024-01-02\n")
        ...     Table(str(file), user="who", item="what", timestamp="when").scan().collect().rows()
        [('ana', 7, 1704067200), ('bob', 9, 1704153600)]
    """

    name = "table"
    later = frozenset({"missing_values", "time_format", "items", "users"})

    def __init__(
        self,
        path: str | list[str],
        user: str = "user_id",
        item: str = "item_id",
        timestamp: str | None = "timestamp",
        separator: str | None = None,
        features: list[str] | None = None,
        header: list[str] | None = None,
        quote: str | None = '"',
        max_bad_share: float = 0.0,
        missing_values: list[str] | None = None,
        time_format: str | None = None,
        items: dict[str, Any] | None = None,
        users: dict[str, Any] | None = None,
    ) -> None:
        if len({user, item, timestamp}) < 3:
            raise InputError(f"{user=}, {item=} and {timestamp=} must be different columns")
        taken = {user, item, timestamp, USER_ID, ITEM_ID, TIMESTAMP}
        if repeated := [feature for feature in features or [] if feature in taken]:
            raise InputError(
                f"features={features}: {repeated[0]!r} is included already; "
                "an event filter calls user, item and time user_id, item_id and timestamp"
            )
        if header is not None and len(set(header)) < len(header):
            raise InputError(f"header={header} names a column twice")
        for argument, character in (("separator", separator), ("quote", quote)):
            if character is not None and (not character.isascii() or len(character) != 1 or character in "\r\n"):
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
        self.missing_values = missing_values
        self.time_format = time_format
        self.items = checked_table("items", items)
        self.users = checked_table("users", users)

    def files(self) -> list[Path]:
        """Return the files in the order of reading."""
        return self._files()[0]

    def table_files(self, group: str) -> list[Path]:
        """Return the files of a table in the order of reading, then those of its vectors."""
        table = getattr(self, group)
        if table is None:
            return []
        path = table["path"]
        refuse_special(path, f"{group}.path={path!r}")
        found = [Path(path)] if Path(path).is_file() else matching_files(path)
        if not found:
            raise MissingInputError(f"{group}.path={path!r}: no such file{from_here(path)}, and no file matches it")
        return [*found, *map(Path, table.get("vectors", {}).values())]

    def tables(self, group: str, progress: Progress | None = None) -> list[SideTable]:
        """Return the table that the argument `items` or `users` names."""
        from seqrec.data.ids import BLANKS, MISSING_VALUES
        from seqrec.data.sources.side_table import read_table

        table = getattr(self, group)
        if table is None:
            return []
        vectors = table.get("vectors", {})
        files = self.table_files(group)[: -len(vectors) or None]
        missing = MISSING_VALUES if self.missing_values is None else tuple(self.missing_values)
        options = {"separator": table.get("separator"), "missing_values": missing, "vectors": vectors}
        return [read_table(files, table["key"].strip(BLANKS), **options)]

    def _files(self) -> tuple[list[Path], list[str]]:
        """Return the files, and in sentences what is skipped."""
        found = [_files_at(path) for path in ([self.path] if isinstance(self.path, str) else self.path)]
        files = [file for files, _ in found for file in files]
        if len(set(files)) < len(files):
            twice = next(file for place, file in enumerate(files) if file in files[:place])
            raise InputError(f"path={self.path!r} has {twice} twice; leave one out")
        return files, [note for _, notes in found for note in notes]

    def scan(self, progress: Progress | None = None) -> pl.LazyFrame:
        """Return the interaction frame. Each file is read once or twice to check it, and again for the events."""
        from seqrec.data.ids import BLANKS, MISSING_VALUES
        from seqrec.data.sources.packed import temporary_folder, unpacked
        from seqrec.data.sources.table_file import Layout, TableFile
        from seqrec.data.sources.table_log import check_tables

        missing = MISSING_VALUES if self.missing_values is None else tuple(self.missing_values)
        found, notes = self._files()
        packed = [file for file in found if file.suffix.lower() in PACKED]
        content: dict[Path, Path] = {}
        if packed:
            folder = temporary_folder(self)
            content = {file: unpacked(file, folder) for file in packed}
        # Blanks around the names in files are cut off, too.
        layout = Layout(
            self.user.strip(BLANKS),
            self.item.strip(BLANKS),
            None if self.timestamp is None else self.timestamp.strip(BLANKS),
            self.features,
            self.separator,
            self.quote,
            self.header,
            missing,
            self.time_format,
        )
        files = [TableFile(file, layout, content.get(file)) for file in found]
        log = check_tables(files, self.max_bad_share, progress, self.tasks)
        return self._accept(replace(log, notes=(*notes, *log.notes)))


def _files_at(given: str) -> tuple[list[Path], list[str]]:
    """Return the files at a path, and in sentences what is skipped: hidden files, and folders with tables."""
    path = Path(given)
    notes = []
    if path.is_file():
        return [path], []
    if path.is_dir():
        found = [file for file in sorted(path.iterdir()) if file.is_file() and _is_table(file)]
        # Folders of partitions, such as dt=2024-01-02/.
        inside = sorted(file for folder in path.glob("*=*") for file in folder.rglob("*") if file.is_file())
        found += [file for file in inside if _is_table(file)]
        folders = [each for each in sorted(path.iterdir()) if each.is_dir() and "=" not in each.name]
        others = [each for each in folders if not _is_hidden(each) and any(map(_is_table, each.iterdir()))]
        if others:
            notes.append(
                f"skipped the tables in {len(others):,} folder(s), first {others[0]}; a glob reads them, such as "
                f"{path / '**' / '*.csv'}"
            )
        if not found:
            raise MissingInputError(f"path={given!r}: no {', '.join(_SUFFIXES)} file in this folder; give another")
    else:
        refuse_special(given, f"path={given!r}", may_be_folder=True)
        found = matching_files(given)
        if not found:
            raise MissingInputError(
                f"path={given!r}: no such file or folder{from_here(given)}, and no file matches it; give the log's path"
            )
    # Names that the user wrote are not hidden.
    depth = len((path if path.is_dir() else Path(given.partition("*")[0])).parts)
    hidden = [file for file in found if any(map(_is_hidden, map(Path, file.parts[depth:])))]
    skipped = set(hidden)
    seen = [file for file in found if file not in skipped]
    if not seen:
        raise MissingInputError(
            f"path={given!r} has only hidden files, such as {hidden[0].name}; give the file itself to read it"
        )
    if hidden:
        names = ", ".join(str(file.relative_to(path) if path.is_dir() else file) for file in hidden[:3])
        notes.append(f"skipped {len(hidden):,} hidden file(s): {names}{', ..' if len(hidden) > 3 else ''}")
    return seen, notes


def checked_table(argument: str, table: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the argument `items` or `users` as a plain dictionary.

    Raises:
        InputError: if it lacks an entry, or has another or one of another type.
    """
    if table is None:
        return None
    if not isinstance(table, dict) or not all(isinstance(table.get(name), str) for name in ("path", "key")):
        raise InputError(f"{argument}={table!r} must have a path and a key, as in {{path: {argument}.csv, key: id}}")
    if unknown := [name for name in table if name not in _OF_TABLE]:
        hint = did_you_mean(str(unknown[0]), _OF_TABLE)
        raise InputError(f"{argument} has {unknown[0]!r}; its entries are {', '.join(_OF_TABLE)}{hint}")
    vectors = table.get("vectors", {})
    if not isinstance(vectors, dict) or not all(isinstance(file, str) for file in vectors.values()):
        raise InputError(f"{argument}.vectors={vectors!r} must be files by name, as in {{text: text.npy}}")
    return dict(table)
