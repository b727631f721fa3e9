"""The contract of a source of logs, the registry of sources, and the checks of their arguments."""

from __future__ import annotations

import glob
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from seqrec.data.progress import Progress
from seqrec.data.tasks import Tasks
from seqrec.data.user_files import refuse_special
from seqrec.errors import InputError, MissingInputError
from seqrec.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Malformed:
    """Rows of a file that are not events, which a scan left out: `count` of its `rows`, without blank lines.

    `places` describes the first few of them: "line 7: expected an id, got nothing".
    """

    file: str
    count: int
    rows: int
    places: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """A part of a log: consecutive rows, how many they are, and whether slices of the frame are cheap to read."""

    frame: pl.LazyFrame
    num_rows: int
    can_slice: bool


@dataclass(frozen=True)
class CheckedLog:
    """A log that was read once to check it: the interaction frame, its rows, and the rows that were left out.

    `notes` and `lacking` are as in `Source`. `parts` are frames of its files, in order, which several processes can
    read at the same time; none if its rows can only be read one after the other.
    """

    frame: pl.LazyFrame
    num_rows: int
    malformed: tuple[Malformed, ...]
    notes: tuple[str, ...] = ()
    lacking: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class SideTable:
    """A table of items or of users, one a row, next to the log.

    Attributes:
        origin: Its file, for messages.
        key: Name of the column of ids, Int64 or String: the log's `item_id` or `user_id`.
        frame: Its columns. It is collected in batches, so it must not hold the table in memory.
        vectors: Further columns of the kind `vector`, most often memory-mapped, by name: (rows, W) float16, float32 or
            float64. Row k belongs to row k of the frame.
    """

    origin: str
    key: str
    frame: pl.LazyFrame
    vectors: Mapping[str, NDArray[np.floating[Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Counts:
    """Published counts of a log; None if unknown. `origin` is who counted."""

    rows: int | None = None
    users: int | None = None
    items: int | None = None
    origin: str = ""


class Source(ABC):
    """A raw log: its place and how to read it.

    The constructor takes plain values and keeps each as the attribute of the same name. They describe the source in a
    store's manifest, so a store of another source is recognized.

    Attributes:
        name: Short name in manifests and in the folder names of stores. If empty, manifests contain the import path.
        incidental: Arguments that do not change the log, such as the folder of a download.
        malformed: Rows that the last scan left out, by file.
        num_rows: Number of rows of the frame that the last scan returned; None if it did not count them.
        notes: What the last scan did with the log's text, in sentences: blanks that were cut, files that were skipped.
        lacking: Columns that some files of the last scan have and others lack, each with the first file without it.
        checked: The checked log of the last scan, with its parts; None before a scan, or if the source checks nothing.
        published: Published counts of the log that the last scan read, which the preparation compares with its own.
            None if there are none, or if the files are not known to be the whole log.
        licence: Licence of the log in its publisher's words, shortened; empty if the source does not know it.
        tasks: Runs the checks of the files; `prepare` sets it during a scan.
        later: Arguments that are newer than stores which exist; they are described only if they are set.

    Example:
        >>> from seqrec import Source, Synthetic
        >>> source: Source = Synthetic(num_users=2, num_items=9, mean_events=6)
        >>> source.describe()["arguments"]["num_users"]
        2
        >>> source.scan().collect().columns
        ['user_id', 'item_id', 'timestamp']
    """

    name: str = ""
    incidental: ClassVar[frozenset[str]] = frozenset()
    malformed: tuple[Malformed, ...] = ()
    num_rows: int | None = None
    notes: tuple[str, ...] = ()
    lacking: Mapping[str, str] = MappingProxyType({})
    checked: CheckedLog | None = None
    published: Counts | None = None
    licence: str = ""
    tasks: Tasks = Tasks()
    later: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def scan(self, progress: Progress | None = None) -> pl.LazyFrame:
        """Return the interaction frame (see `seqrec.data.schema`), with every row checked.

        The frame is collected in batches by polars' streaming engine, so it must not hold the log in memory. `progress`
        shows a first pass over the log, if the source makes one.

        Raises:
            MissingInputError: if an input file does not exist.
            InputError: if a file or row cannot be read, or if more rows are malformed than are allowed. The message
                names the file and the line or row.
        """

    @abstractmethod
    def files(self) -> list[Path]:
        """Return the input files in the order of reading. The list is empty if the log is generated.

        Raises:
            MissingInputError: if nothing exists at the given path.
        """

    def tables(self, group: str, progress: Progress | None = None) -> list[SideTable]:
        """Return the tables of "items" or of "users", of which a `Schema` names columns; none if the log has none.

        Raises:
            MissingInputError: if an input file does not exist.
            InputError: if a file cannot be read. The message names it.
        """
        return []

    def table_files(self, group: str) -> list[Path]:
        """Return the files of these tables that are no files of the log.

        Raises:
            MissingInputError: if nothing exists at a given path.
        """
        return []

    def _accept(self, log: CheckedLog) -> pl.LazyFrame:
        """Keep the results of the check as attributes, and return the frame."""
        self.num_rows, self.malformed, self.notes, self.lacking = log.num_rows, log.malformed, log.notes, log.lacking
        self.checked = log
        return log.frame

    def describe(self) -> dict[str, Any]:
        """Return name and arguments as plain values, without incidental ones: equal descriptions mean the same log."""
        names = [name for name in inspect.signature(type(self)).parameters if name not in self.incidental]
        arguments = {name: getattr(self, name) for name in names}
        return {
            "name": self.name or f"{type(self).__module__}.{type(self).__qualname__}",
            "arguments": {
                name: value for name, value in arguments.items() if not (name in self.later and value is None)
            },
        }


SOURCES: Registry[Source] = Registry("source", Source)  # type: ignore[type-abstract]


def check_max_bad_share(max_bad_share: float) -> float:
    """Return `max_bad_share` if it is a share.

    Raises:
        InputError: if it is not in 0..1.
    """
    # A NaN is refused too.
    if not 0 <= max_bad_share <= 1:
        raise InputError(f"max_bad_share={max_bad_share} must be a share of the rows, from 0 to 1")
    return max_bad_share


def existing_file(path: str) -> Path:
    """Return `path` as a Path if it is a file."""
    file = Path(path)
    if not file.is_file():
        refuse_special(path, f"path={path!r}")
        raise MissingInputError(f"path={path!r}: no such file{from_here(path)}")
    return file


def from_here(path: str) -> str:
    """Return where a path that does not exist was looked for, for a message; empty if it is absolute."""
    return "" if Path(path).is_absolute() else f" in {Path.cwd()}, the working folder"


def matching_files(pattern: str) -> list[Path]:
    """Return the files that match a glob, in the order of their names."""
    return [Path(match) for match in sorted(glob.glob(pattern, recursive=True)) if Path(match).is_file()]


def suffix(path: Path) -> str:
    """Return a file's suffix in lower case, without that of compression."""
    name = path.name.lower()
    for compressed in (".gz", ".zst"):
        name = name.removesuffix(compressed)
    return Path(name).suffix
