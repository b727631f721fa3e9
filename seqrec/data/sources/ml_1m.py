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
from seqrec.data.sources.source import SideTable, Source, check_max_bad_share, from_here
from seqrec.errors import InputError, MissingInputError

if TYPE_CHECKING:
    import polars as pl

URL = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
MD5 = "c4d9eecfca2ab87c1945afe126590906"
_ARCHIVE = "ml-1m.zip"
_RATINGS = "ratings.dat"
# Table of items and of users -> its file, and the names of its fields.
_TABLES = {
    "items": ("movies.dat", ("item_id", "title", "genres")),
    "users": ("users.dat", ("user_id", "gender", "age", "occupation", "zip")),
}
_LINE = r"^([0-9]+)::([0-9]+)::([0-9]+(?:\.[0-9]+)?)::([0-9]{1,18})$"
# Exceptions of zipfile for a zip that is damaged, encrypted or of an unknown kind (NotImplementedError).
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError)


class ML1M(Source):
    r"""MovieLens 1M: 1,000,209 ratings of 3,706 films by 6,040 users, with times in seconds since 1970.

    Every rating is an event, also a low one; the event filter may use the column `rating`. More than half of
    neighbouring events share a timestamp; such ties keep the order of `ratings.dat`.

    A schema may name the event column `rating`, the item columns `title`, `year` and `genres`, and the user columns
    `gender`, `age`, `occupation` (numbers of groups) and `zip`.

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
    licence = "research, non-commercial, no redistribution"
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
            text, member = _content(file, _RATINGS)
            origin = f"{file}/{member}"
        return self._accept(check_lines(text, form, origin, self.max_bad_share, progress))

    def tables(self, group: str, progress: Progress | None = None) -> list[SideTable]:
        """Return the films of `movies.dat` or the users of `users.dat`, which are next to `ratings.dat`."""
        import polars as pl

        file, (name, columns) = self._file(progress), _TABLES[group]
        if file.suffix == ".zip":
            content, member = _content(file, name)
            origin = f"{file}/{member}"
        else:
            place = file.with_name(name)
            if not place.is_file():
                raise MissingInputError(f"{place} does not exist; it has the columns of schema.{group}")
            content, origin = place.read_bytes(), str(place)
        rows = [line.split("::") for line in content.decode("latin-1").splitlines() if line]
        for number, row in enumerate(rows, start=1):
            if len(row) != len(columns):
                raise InputError(f"{origin} line {number}: expected {'::'.join(columns)}, got {'::'.join(row)!r}")
        frame = pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row").lazy()
        if group == "items":
            year = pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Int64)
            frame = frame.with_columns(pl.col("genres").str.split("|"), year=year)
        else:
            frame = frame.with_columns(pl.col("age", "occupation").cast(pl.Int64))
        return [SideTable(origin, columns[0], frame)]

    def table_files(self, group: str) -> list[Path]:
        """Return the file of the table, unless it is in the zip of the log."""
        files = self.files()
        return [] if not files or files[0].suffix == ".zip" else [files[0].with_name(_TABLES[group][0])]

    def _file(self, progress: Progress | None) -> Path:
        for file in self.files():
            return file
        target = Path(self.download_dir) / _ARCHIVE
        download(URL, target, MD5, progress)
        return target


def _content(archive: Path, file: str) -> tuple[bytes, str]:
    # Content (25 MB for the ratings) of a file in the zip file, and its name there.
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [name for name in opened.namelist() if name.split("/")[-1] == file]
            if members:
                return opened.read(members[0]), members[0]
    except _ZIP_ERRORS as error:
        raise InputError(f"{archive} is not a readable zip file ({error}); download it again: {URL}") from error
    raise InputError(
        f"{archive} contains no {file}; expected the ml-1m.zip of {URL}; PublicLog reads the other logs of MovieLens"
    )
