"""Logs of `user item` lines, the form that papers of the SASRec family share theirs in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from seqrec.data.progress import Progress
from seqrec.data.schema import ITEM_ID, USER_ID
from seqrec.data.sources.base import Source
from seqrec.data.sources.lines import LineForm, check_lines, existing_file
from seqrec.data.sources.malformed import check_max_bad_share

if TYPE_CHECKING:
    import polars as pl

_FORM = LineForm(r"^(\S+)\s+(\S+)$", (USER_ID, ITEM_ID), "user item")


class Sequences(Source):
    """A text file with one `user item` pair a line, apart by white space, each user's events in time order.

    There are no timestamps: the order of the lines is the order of the events.

    Args:
        path: The file, plain, `.gz` or `.zst`.
        max_bad_share: Largest share of lines of another form, 0..1, that are left out; more of them are an error.
    """

    name = "sequences"

    def __init__(self, path: str, max_bad_share: float = 0.0) -> None:
        self.path = path
        self.max_bad_share = check_max_bad_share(max_bad_share)

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
            InputError: it is empty, unreadable, or more lines are not `user item` than `max_bad_share` allows.
        """
        (file,) = self.files()
        return self._take(check_lines(file, _FORM, str(file), self.max_bad_share, progress))
