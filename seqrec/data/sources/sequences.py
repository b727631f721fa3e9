"""Logs of `user item` lines, the form that papers of the SASRec family share theirs in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from seqrec.data.progress import Progress
from seqrec.data.schema import ITEM_ID, USER_ID
from seqrec.data.sources.base import SOURCES, Source
from seqrec.data.sources.lines import existing_file, scan_lines

if TYPE_CHECKING:
    import polars as pl


@SOURCES.register("sequences")
class Sequences(Source):
    """A text file with one `user item` pair a line, apart by white space, each user's events in time order.

    There are no timestamps: the order of the lines is the order of the events.

    Args:
        path: The file, plain or `.gz`.
    """

    name = "sequences"

    def __init__(self, path: str) -> None:
        self.path = path

    def files(self) -> list[Path]:
        """Return the one file.

        Raises:
            MissingInputError: it is not there.
        """
        return [existing_file(self.path, "path")]

    def scan(self, progress: Progress | None = None) -> pl.LazyFrame:
        """Return the interaction frame, without timestamps.

        Raises:
            MissingInputError: the file is not there.
            InputError: it is empty, unreadable, or a line is not `user item`.
        """
        (file,) = self.files()
        return scan_lines(file, r"^(\S+)\s+(\S+)$", (USER_ID, ITEM_ID), str(file), "user item")
