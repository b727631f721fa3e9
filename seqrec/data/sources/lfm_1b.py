"""LFM-1b: what listeners of Last.fm heard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from seqrec.data.progress import Progress
from seqrec.data.sources.base import Source
from seqrec.data.sources.lines import existing_file
from seqrec.data.sources.malformed import check_max_bad_share
from seqrec.data.sources.table_file import Columns, Form, TableFile
from seqrec.data.sources.table_log import check_tables
from seqrec.errors import InputError, MissingInputError

if TYPE_CHECKING:
    import polars as pl

ITEMS = ("track", "album", "artist")
_EVENTS = "LFM-1b_LEs.txt"
_FORM = Form("\t", quote=None, header=["user_id", "artist_id", "album_id", "track_id", "timestamp"])


class LFM1b(Source):
    """LFM-1b: 1.09 B listening events of 120,322 users and 31.6 M tracks, with times in seconds since 1970.

    Those of `artist_id`, `album_id` and `track_id` that are not the item are there for the event filter.

    Paper: The LFM-1b Dataset for Music Retrieval and Recommendation, 2016.

    Args:
        path: The file `LFM-1b_LEs.txt`, plain, `.gz` or `.zst`, or the folder that it is in.
        item: What the items are: "track", "album" or "artist".
        max_bad_share: Largest share of malformed rows, 0..1, that are left out; more of them are an error.

    Raises:
        InputError: `item` or `max_bad_share` is none.
    """

    name = "lfm-1b"

    def __init__(self, path: str, item: str = "track", max_bad_share: float = 0.0) -> None:
        if item not in ITEMS:
            raise InputError(f"item={item!r} must be one of {', '.join(ITEMS)}")
        self.path = path
        self.item = item
        self.max_bad_share = check_max_bad_share(max_bad_share)

    def files(self) -> list[Path]:
        """Return the one file.

        Raises:
            MissingInputError: it is not there.
        """
        folder = Path(self.path)
        if not folder.is_dir():
            return [existing_file(self.path, "path")]
        for file in (folder / f"{_EVENTS}{compressed}" for compressed in ("", ".gz", ".zst")):
            if file.is_file():
                return [file]
        raise MissingInputError(
            f"path={self.path!r}: no {_EVENTS} in this folder; put the file of LFM-1b there"
        )

    def scan(self, progress: Progress | None = None) -> pl.LazyFrame:
        """Return the interaction frame with the ids that are not the item's as features.

        Raises:
            MissingInputError: the file is not there.
            InputError: it is unreadable or empty, or more rows are malformed than `max_bad_share` allows.
        """
        (file,) = self.files()
        columns = Columns("user_id", f"{self.item}_id", "timestamp")
        return self._take(check_tables([TableFile(file, columns, _FORM)], self.max_bad_share, progress))
