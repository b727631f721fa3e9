"""The contract of a source of logs, and the table of those that have a name."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from seqrec.registry import Registry

if TYPE_CHECKING:
    import polars as pl


class Source(ABC):
    """A raw log: where it is and how it is read. A new one is a subclass, registered under its name.

    The constructor takes plain values and keeps each as the attribute of the same name; they describe the
    source in a store's manifest, so that a store made from another source is told apart.

    Attributes:
        name: The registered name, as in `SOURCES[name]`; the import path where a class has none.
    """

    name: ClassVar[str] = ""

    @abstractmethod
    def scan(self) -> pl.LazyFrame:
        """Return the interaction frame (see `seqrec.data.schema`); every row of it has been checked.

        Raises:
            MissingInputError: an input file is not there.
            InputError: a file or row cannot be read; the message names the file and the line or row.
        """

    @abstractmethod
    def files(self) -> list[Path]:
        """Return the input files, in the order they are read; none where the log is generated.

        Raises:
            MissingInputError: there is nothing at the given path.
        """

    def describe(self) -> dict[str, Any]:
        """Return name and arguments as plain values: equal descriptions mean the same log."""
        arguments = list(inspect.signature(type(self)).parameters)
        return {
            "name": self.name or f"{type(self).__module__}.{type(self).__qualname__}",
            "arguments": {argument: getattr(self, argument) for argument in arguments},
        }


SOURCES: Registry[Source] = Registry("source")
