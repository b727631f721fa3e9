"""MovieLens 1M, from the GroupLens archive."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from seqrec.data.progress import Progress
from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID
from seqrec.data.sources.download import download
from seqrec.data.sources.source import Source, check_max_bad_share, from_here
from seqrec.errors import InputError, MissingInputError

if TYPE_CHECKING:
    import polars as pl

URL = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
MD5 = "c4d9eecfca2ab87c1945afe126590906"
_ARCHIVE = "ml-1m.zip"
_RATINGS = "ratings.dat"
_LINE = r"^([0-9]+)::([0-9]+)::([0-9]+(?:\.[0-9]+)?)::([0-9]{1,18})$"
# Exceptions of zipfile for a zip that is damaged, encrypted or of an unknown kind (NotImplementedError).
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError)


class ML1M(Source):
    r"""MovieLens 1M: 1,000,209 ratings of 3,706 films by 6,040 users, with times in seconds since 1970.

    Every rating is an event, also a low one; the event filter may use the column `rating`. More than half of
    neighbouring events share a timestamp; such ties keep the order of `ratings.dat`.

    Args:
        path: The zip file of GroupLens, its extracted folder, or `ratings.dat` itself. None is `ml-1m.zip` in
            `download_dir`, which is downloaded (6 MB) if it does not exist.
        download_dir: Folder for the download.
        max_bad_share: Largest share of lines of another form, 0..1, that are left out; more of them are an error.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from seqrec import ML1M
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "ratings.dat").write_text("1::1193::5::978300760\n1::661::3::978302109\n")
        ...     ML1M(folder).scan().collect().rows()
        [(1, 1193, 5.0, 978300760), (1, 661, 3.0, 978302109)]
    """

    name = "ml-1m"
    incidental = frozenset({"download_dir"})

    def __init__(self, path: str | None = None, download_dir: str = "downloads", max_bad_share: float = 0.0) -> None:
        self.path = path
        self.download_dir = download_dir
        self.max_bad_share = check_max_bad_share(max_bad_share)

    def files(self) -> list[Path]:
        """Return the zip or `ratings.dat`; none before the download."""
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
            raise MissingInputError(
                f"path={self.path!r}: no such file{from_here(self.path)}; leave path out to download {URL}"
            )
        return [path]

    def scan(self, progress: Progress | None = None) -> pl.LazyFrame:
        """Return the interaction frame with `timestamp` and the feature `rating`."""
        from seqrec.data.sources.lines import LineForm, check_lines

        columns = (USER_ID, ITEM_ID, "rating", TIMESTAMP)
        form = LineForm(_LINE, columns, "user::item::rating::timestamp", (TIMESTAMP,), ("rating",))
        file = self._file(progress)
        text: Path | bytes = file
        origin = str(file)
        if file.suffix == ".zip":
            text, member = _ratings_in(file)
            origin = f"{file}/{member}"
        return self._accept(check_lines(text, form, origin, self.max_bad_share, progress))

    def _file(self, progress: Progress | None) -> Path:
        for file in self.files():
            return file
        target = Path(self.download_dir) / _ARCHIVE
        download(URL, target, MD5, progress)
        return target


def _ratings_in(archive: Path) -> tuple[bytes, str]:
    # Content (25 MB) and name of the ratings in a zip file.
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [name for name in opened.namelist() if name.split("/")[-1] == _RATINGS]
            if not members:
                raise InputError(f"{archive} contains no {_RATINGS}; expected the ml-1m.zip of {URL}")
            return opened.read(members[0]), members[0]
    except _ZIP_ERRORS as error:
        raise InputError(f"{archive} is not a readable zip file ({error}); download it again: {URL}") from error
