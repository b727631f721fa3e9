"""MovieLens 1M, from the GroupLens archive."""

from __future__ import annotations

import os
import sys
import urllib.request
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqrec.data.progress import Progress
from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID
from seqrec.data.sources.base import SOURCES, Source
from seqrec.data.sources.lines import scan_lines
from seqrec.errors import InputError, MissingInputError

if TYPE_CHECKING:
    import polars as pl

URL = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
_RATINGS = "ratings.dat"
_PATTERN = r"^([0-9]+)::([0-9]+)::([0-9]+(?:\.[0-9]+)?)::([0-9]{1,18})$"


@SOURCES.register("ml-1m")
class ML1M(Source):
    """MovieLens 1M: 1,000,209 ratings of 3,706 films by 6,040 users, with times in seconds since 1970.

    Every rating is an event, whatever its value; the column `rating` is there for the event filter. More than
    half of neighbouring events share a timestamp; such ties keep the order of `ratings.dat`.

    Args:
        path: The zip file as GroupLens serves it, its extracted folder, or `ratings.dat` itself. None takes
            `ml-1m.zip` from `download_dir`, and downloads it (6 MB) where it is not there yet.
        download_dir: Folder that a download goes to.
    """

    name = "ml-1m"

    def __init__(self, path: str | None = None, download_dir: str = "downloads") -> None:
        self.path = path
        self.download_dir = download_dir

    def describe(self) -> dict[str, Any]:
        """Return name and `path`; where a download lies does not change the log."""
        return {"name": self.name, "arguments": {"path": self.path}}

    def files(self) -> list[Path]:
        """Return the zip or `ratings.dat`; none before the download.

        Raises:
            MissingInputError: there is nothing at `path`.
        """
        if self.path is None:
            archive = Path(self.download_dir) / "ml-1m.zip"
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
            InputError: the file is no zip, holds no `ratings.dat`, or a line of that cannot be parsed.
        """
        import polars as pl

        file = (self.files() or [_download(Path(self.download_dir))])[0]
        text: Path | bytes = file
        origin = str(file)
        if file.suffix == ".zip":
            text, member = _ratings_in(file)
            origin = f"{file}/{member}"
        columns = (USER_ID, ITEM_ID, "rating", TIMESTAMP)
        frame = scan_lines(text, _PATTERN, columns, origin, "user::item::rating::timestamp")
        return frame.with_columns(pl.col("rating").cast(pl.Float64), pl.col(TIMESTAMP).cast(pl.Int64))


def _ratings_in(archive: Path) -> tuple[bytes, str]:
    # Content and name of the ratings in a zip.
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [name for name in opened.namelist() if name.split("/")[-1] == _RATINGS]
            if not members:
                raise InputError(f"{archive} holds no {_RATINGS}; expected the ml-1m.zip of {URL}")
            return opened.read(members[0]), members[0]
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{archive} is no readable zip file ({error}); download it again: {URL}") from error


def _download(directory: Path) -> Path:
    # The archive, fetched into a file of another name first, so that a broken download leaves none.
    target = directory / "ml-1m.zip"
    partial = directory / f"ml-1m.zip.{os.getpid()}.part"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(URL, timeout=30) as response, partial.open("wb") as out:
            total = int(response.headers.get("Content-Length") or 0)
            print(f"downloading {URL} ({total / 1e6:.1f} MB) to {target}", file=sys.stderr)
            reported = 0
            while block := response.read(1 << 18):
                out.write(block)
                if total and out.tell() * 10 // total > reported:
                    reported = out.tell() * 10 // total
                    print(f"downloaded {reported * 10} %", file=sys.stderr)
            complete = not total or out.tell() == total
        if not complete:
            raise OSError("the connection ended early")
        partial.replace(target)
    except (OSError, ValueError) as error:
        partial.unlink(missing_ok=True)
        raise MissingInputError(
            f"ml-1m.zip is not in download_dir={str(directory)!r} and downloading it failed ({error}); "
            f"fetch {URL} by other means and give its place as path"
        ) from error
    return target
