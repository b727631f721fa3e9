"""LFM-1b: listening events of Last.fm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from seqrec.data.progress import Progress
from seqrec.data.sources.source import Source, check_max_bad_share, existing_file
from seqrec.errors import InputError, MissingInputError

if TYPE_CHECKING:
    import polars as pl

ITEMS = ("track", "album", "artist")
_EVENTS = "LFM-1b_LEs.txt"
_HEADER = ["user_id", "artist_id", "album_id", "track_id", "timestamp"]


class LFM1b(Source):
    r"""LFM-1b: 1.09 B listening events of 120,322 users and 31.6 M tracks, with times in seconds since 1970.

    The event filter may use `artist_id`, `album_id` and `track_id`, except the one that is the item.

    Paper: The LFM-1b Dataset for Music Retrieval and Recommendation, 2016.

    Args:
        path: The file `LFM-1b_LEs.txt`, plain, `.gz` or `.zst`, or its folder.
        item: Kind of the items: "track", "album" or "artist".
        max_bad_share: Largest share of malformed rows, 0..1, that are left out; more of them are an error.

    Raises:
        InputError: if `item` or `max_bad_share` is invalid.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from seqrec import LFM1b
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "LFM-1b_LEs.txt").write_text("31\t77\t5\t9\t1400000000\n")
        ...     LFM1b(folder, item="artist").scan().collect().rows(named=True)
        [{'user_id': 31, 'item_id': 77, 'timestamp': 1400000000, 'album_id': 5, 'track_id': 9}]
    """

    name = "lfm-1b"
    licence = "the terms of Last.fm's API, which it is derived from"

    def __init__(self, path: str, item: str = "track", max_bad_share: float = 0.0) -> None:
        if item not in ITEMS:
            raise InputError(f"item={item!r} must be one of {', '.join(ITEMS)}")
        self.path = path
        self.item = item
        self.max_bad_share = check_max_bad_share(max_bad_share)

    def files(self) -> list[Path]:
        """Return the one file."""
        folder = Path(self.path)
        if not folder.is_dir():
            return [existing_file(self.path)]
        for file in (folder / f"{_EVENTS}{compressed}" for compressed in ("", ".gz", ".zst")):
            if file.is_file():
                return [file]
        raise MissingInputError(f"path={self.path!r}: no {_EVENTS} in this folder; put the file of LFM-1b there")

    def scan(self, progress: Progress | None = None) -> pl.LazyFrame:
        """Return the interaction frame with the ids that are not the item's as features."""
        from seqrec.data.sources.table_file import Layout, TableFile
        from seqrec.data.sources.table_log import check_tables

        (file,) = self.files()
        layout = Layout("user_id", f"{self.item}_id", "timestamp", separator="\t", quote=None, header=_HEADER)
        return self._accept(check_tables([TableFile(file, layout)], self.max_bad_share, progress, self.tasks))
