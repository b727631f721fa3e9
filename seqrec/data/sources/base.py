"""The contract of a source of logs, and the table of those that have a name."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from seqrec.data.progress import Progress
from seqrec.registry import Registry

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Malformed:
    """Rows of a file that are no events, which a scan left out.

    Attributes:
        file: The file.
        count: How many rows.
        rows: Rows of the file, malformed ones included, blank lines not.
        places: The first few of them: "line 7: expected an id, got nothing".
    """

    file: str
    count: int
    rows: int
    places: tuple[str, ...]


@dataclass(frozen=True)
class CheckedLog:
    """A log that has been read once to check it.

    Attributes:
        frame: Its events; for a source's `scan` the interaction frame, or what that is made of.
        num_rows: Rows of the frame.
        malformed: What was left out of it, by file.
    """

    frame: pl.LazyFrame
    num_rows: int
    malformed: tuple[Malformed, ...]


class Source(ABC):
    """A raw log: where it is and how it is read. A new one is a subclass, registered under its name.

    The constructor takes plain values and keeps each as the attribute of the same name; they describe the
    source in a store's manifest, so that a store made from another source is told apart.

    Attributes:
        name: The registered name, as in `SOURCES[name]`; the import path where a class has none.
        incidental: Arguments that do not change the log, such as where a download goes.
        malformed: What the last scan left out, by file; empty where nothing was.
        num_rows: Rows of the frame that the last scan returned; None where it did not count them.
    """

    name: ClassVar[str] = ""
    incidental: ClassVar[frozenset[str]] = frozenset()
    malformed: tuple[Malformed, ...] = ()
    num_rows: int | None = None

    @abstractmethod
    def scan(self, progress: Progress | None = None) -> pl.LazyFrame:
        """Return the interaction frame (see `seqrec.data.schema`); every row of it has been checked.

        The frame is collected in batches by polars' streaming engine, so it must not hold the log in memory.

        Args:
            progress: Told what a first pass over the log, where there is one, does; None tells nobody.

        Raises:
            MissingInputError: an input file is not there.
            InputError: a file or row cannot be read, or more rows are malformed than are allowed; the message
                names the file and the line or row.
        """

    @abstractmethod
    def files(self) -> list[Path]:
        """Return the input files, in the order they are read; none where the log is generated.

        Raises:
            MissingInputError: there is nothing at the given path.
        """

    def _take(self, log: CheckedLog) -> pl.LazyFrame:
        """Remember what checking found, and return the frame."""
        self.num_rows, self.malformed = log.num_rows, log.malformed
        return log.frame

    def describe(self) -> dict[str, Any]:
        """Return name and arguments, but incidental ones, as plain values: equal descriptions mean the same log."""
        arguments = [name for name in inspect.signature(type(self)).parameters if name not in self.incidental]
        return {
            "name": self.name or f"{type(self).__module__}.{type(self).__qualname__}",
            "arguments": {argument: getattr(self, argument) for argument in arguments},
        }


SOURCES: Registry[Source] = Registry("source", Source)  # type: ignore[type-abstract]
