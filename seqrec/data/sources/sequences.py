"""Logs of `user item` lines, the form of the logs that papers of the SASRec family share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from seqrec.data.progress import Progress
from seqrec.data.schema import ITEM_ID, USER_ID
from seqrec.data.sources.source import Source, check_max_bad_share, existing_file

if TYPE_CHECKING:
    import polars as pl


class Sequences(Source):
    r"""A text file with one `user item` pair a line, separated by white space, each user's events in time order.

    The log has no timestamps: the order of the lines is the order of the events.

    Args:
        path: The file, plain, `.gz` or `.zst`.
        max_bad_share: Largest share of lines of another form, 0..1, that are left out; more of them are an error.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from seqrec import Sequences
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "log.txt")
        ...     _ = file.write_text("1 30\n1 20\n2 30\n")
        ...     Sequences(str(file)).scan().collect().rows()
        [(1, 30), (1, 20), (2, 30)]
    """

    name = "sequences"

    def __init__(self, path: str, max_bad_share: float = 0.0) -> None:
        self.path = path
        self.max_bad_share = check_max_bad_share(max_bad_share)

    def files(self) -> list[Path]:
        """Return the one file."""
        return [existing_file(self.path)]

    def scan(self, progress: Progress | None = None) -> pl.LazyFrame:
        """Return the interaction frame, without timestamps."""
        from seqrec.data.sources.lines import LineForm, check_lines

        (file,) = self.files()
        form = LineForm(r"^(\S+)\s+(\S+)$", (USER_ID, ITEM_ID), "user item")
        return self._accept(check_lines(file, form, str(file), self.max_bad_share, progress))
