"""MovieLens 1M, from the GroupLens archive."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from seqrec.data.progress import Progress
from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID
from seqrec.data.sources.base import Source
from seqrec.data.sources.download import download
from seqrec.data.sources.lines import LineForm, check_lines
from seqrec.data.sources.malformed import check_max_bad_share
from seqrec.errors import InputError, MissingInputError

if TYPE_CHECKING:
    import polars as pl

URL = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
MD5 = "c4d9eecfca2ab87c1945afe126590906"
_ARCHIVE = "ml-1m.zip"
_RATINGS = "ratings.dat"
_FORM = LineForm(
    r"^([0-9]+)::([0-9]+)::([0-9]+(?:\.[0-9]+)?)::([0-9]{1,18})$",
    (USER_ID, ITEM_ID, "rating", TIMESTAMP),
    "user::item::rating::timestamp",
)
# What zipfile raises for a zip that is damaged, encrypted or of a kind unknown to it (NotImplementedError).
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError)


class ML1M(Source):
    """MovieLens 1M: 1,000,209 ratings of 3,706 films by 6,040 users, with times in seconds since 1970.

    Every rating is an event, whatever its value; the column `rating` is there for the event filter. More than
    half of neighbouring events share a timestamp; such ties keep the order of `ratings.dat`.

    Args:
        path: The zip file as GroupLens serves it, its extracted folder, or `ratings.dat` itself. None takes
            `ml-1m.zip` from `download_dir`, and downloads it (6 MB) where it is not there yet.
        download_dir: Folder that a download goes to.
        max_bad_share: Largest share of lines of another form, 0..1, that are left out; more of them are an error.
    """

    name = "ml-1m"
    incidental = frozenset({"download_dir"})

    def __init__(
        self, path: str | None = None, download_dir: str = "downloads", max_bad_share: float = 0.0
    ) -> None:
        self.path = path
        self.download_dir = download_dir
        self.max_bad_share = check_max_bad_share(max_bad_share)

    def files(self) -> list[Path]:
        """Return the zip or `ratings.dat`; none before the download.

        Raises:
            MissingInputError: there is nothing at `path`.
        """
        if self.path is None:
            archive = Path(self.download_dir) / _ARCHIVE
            return [archive] if archive.is_file() else []
        path = Path(self.path)
        if path.is_dir():
            for file in (path / _RATINGS, path / "ml-1m" / _RATINGS, path / "ml-1m.zip"):
                if file.is_file():
                    return [file]
            raise MissingInputError(f"path={self.path!r}: no {_RATINGS} and no ml-1m.zip in this folder")
        if not path.is_file():
            raise MissingInputError(f"path={self.path!r}: no such file; leave path out to download {URL}")
        return [path]

    def scan(self, progress: Progress | None = None) -> pl.LazyFrame:
        """Return the interaction frame with `timestamp` and the feature `rating`.

        Raises:
            MissingInputError: there is nothing at `path`, or the download failed.
            InputError: the file is no zip, holds no `ratings.dat`, or more lines of that are of another form than
                `max_bad_share` allows.
        """
        import polars as pl

        file = self._file(progress)
        text: Path | bytes = file
        origin = str(file)
        if file.suffix == ".zip":
            text, member = _ratings_in(file)
            origin = f"{file}/{member}"
        frame = self._take(check_lines(text, _FORM, origin, self.max_bad_share, progress))
        return frame.with_columns(pl.col("rating").cast(pl.Float64), pl.col(TIMESTAMP).cast(pl.Int64))

    def _file(self, progress: Progress | None) -> Path:
        for file in self.files():
            return file
        target = Path(self.download_dir) / _ARCHIVE
        download(URL, target, MD5, progress)
        return target


def _ratings_in(archive: Path) -> tuple[bytes, str]:
    # Content (25 MB) and name of the ratings in a zip.
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [name for name in opened.namelist() if name.split("/")[-1] == _RATINGS]
            if not members:
                raise InputError(f"{archive} holds no {_RATINGS}; expected the ml-1m.zip of {URL}")
            return opened.read(members[0]), members[0]
    except _ZIP_ERRORS as error:
        raise InputError(f"{archive} is no readable zip file ({error}); download it again: {URL}") from error
