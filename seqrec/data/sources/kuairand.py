"""KuaiRand: videos that a short-video app showed, and the users' reactions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from seqrec.data.progress import Progress
from seqrec.data.sources.download import download, extract
from seqrec.data.sources.source import (
    SideTable,
    Source,
    check_max_bad_share,
    from_here,
    matching_files,
    suffix,
)
from seqrec.errors import InputError, MissingInputError

if TYPE_CHECKING:
    import polars as pl

URL = "https://zenodo.org/records/10439422/files/{archive}"
MD5 = {
    "27K": "3e3c799a24e2d23a4d2c757fbf9adf59",
    "1K": "6b0b9c8222d67fcd4c676218edca3f1f",
    "Pure": "0820331067a3784d9691136f772b35a7",
}
_STANDARD_DATES = ("4_08_to_4_21", "4_22_to_5_08")


class KuaiRand(Source):
    """KuaiRand, a log of videos shown: user, video, time in milliseconds since 1970, and the user's reaction.

    The event filter may use the flags `is_click`, `is_like`, `is_follow`, `is_comment`, `is_forward`, `is_hate` and
    `long_view` (0 or 1), `is_rand`, `tab` and the times played and stayed (milliseconds), as in `is_click = 1`.
    A schema may name these columns of events too, and `hourmin` (the hour, as 1700). Its columns of items are those of
    `video_features_basic_..csv`, such as `video_duration`, `music_id` and `tag` (categories), and of
    `video_features_statistic_..csv`; those of users are in `user_features_..csv`. The files lie next to the log's. The
    statistics are counts over all days of the log, so a model that reads them sees the future of the events that judge
    it.

    Without a filter every video shown is an event. 27K has 322 M of them, from 27,285 users; 1K has 11.7 M from 1,000
    users; Pure has 1.4 M from 27,285 users over a small pool of videos.

    Paper: KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos, 2022.

    Args:
        path: The downloaded archive `KuaiRand-27K.tar.gz`, which is extracted once, into its own folder; the
            folder in that archive, or the `data` folder inside; or a log file or a glob of some, read in the order
            of their names. None is the archive in `download_dir`, which is downloaded if it does not exist.
        version: "27K", "1K" or "Pure"; unused if `path` names log files.
        random: Whether to include the videos that were shown at random, which are in a file of their own. Leave it
            out if `path` names log files.
        download_dir: Folder for the download.
        max_bad_share: Largest share of malformed rows, 0..1, that are left out; more of them are an error.

    Raises:
        InputError: if `version` or `max_bad_share` is invalid.

    Example:
        >>> from seqrec import Filters, KuaiRand
        >>> source = KuaiRand(version="1K")
        >>> source.describe()["arguments"]
        {'path': None, 'version': '1K', 'random': False, 'max_bad_share': 0.0}
        >>> clicks = Filters(event_filter="is_click = 1")
    """

    name = "kuairand"
    licence = "CC BY-SA 4.0"
    incidental = frozenset({"download_dir"})

    def __init__(
        self,
        path: str | None = None,
        version: str = "27K",
        random: bool = False,
        download_dir: str = "downloads",
        max_bad_share: float = 0.0,
    ) -> None:
        if version not in MD5:
            raise InputError(f"version={version!r} must be one of {', '.join(MD5)}")
        self.path = path
        self.version = version
        self.random = random
        self.download_dir = download_dir
        self.max_bad_share = check_max_bad_share(max_bad_share)

    def files(self) -> list[Path]:
        """Return the log files in the order of reading, or the archive at `path`; none before the download."""
        if self.path is None:
            folder = self._data_folder(self._downloaded)
            parts = [folder / name for name in self._parts()]
            return parts if all(part.is_file() for part in parts) else []
        path = Path(self.path)
        if path.is_dir():
            return self._parts_in(path)
        named = [path] if path.is_file() else matching_files(self.path)
        if not named:
            raise MissingInputError(
                f"path={self.path!r}: no such file or folder{from_here(self.path)}; leave path out to download "
                f"{self._url}"
            )
        if self.random and not _is_archive(named[0]):
            raise InputError(
                f"random={self.random}: path={self.path!r} names log files, which are all that is read; "
                "leave random out, or name the folder or archive"
            )
        return named

    def scan(self, progress: Progress | None = None) -> pl.LazyFrame:
        """Return the interaction frame with the log's other columns as features."""
        from seqrec.data.sources.table_file import SEPARATORS, Layout, TableFile
        from seqrec.data.sources.table_log import check_tables

        files = []
        for file in self._extracted(progress):
            separator = SEPARATORS.get(suffix(file), ",")
            files.append(TableFile(file, Layout("user_id", "video_id", "time_ms", separator=separator)))
            if set(files[-1].names) != set(files[0].names):
                differing = set(files[-1].names) ^ set(files[0].names)
                raise InputError(
                    f"{file} does not have the columns of {files[0].path}: only one of them has "
                    f"{', '.join(sorted(differing))}; both must be files of KuaiRand as they are published"
                )
        return self._accept(check_tables(files, self.max_bad_share, progress, self.tasks))

    def tables(self, group: str, progress: Progress | None = None) -> list[SideTable]:
        """Return the tables of videos or of users that are in the folder of the log."""
        import polars as pl

        from seqrec.data.sources.side_table import read_table

        archive = self._packed(progress)
        if archive is None and self.path is None and self._downloaded.is_file():
            archive = self._downloaded
        if archive is not None:
            # The log's parts too: reading the archive takes long.
            names = [name for table in self._table_names(group) for name in table]
            extract(archive, self._parts(everything=True) + names, self._data_folder(archive), progress)
        found = []
        for table in self._found_tables(group):
            side = read_table(table, "user_id" if group == "users" else "video_id")
            if "tag" in side.frame.collect_schema():
                tags = pl.col("tag").cast(pl.String).str.split(",")
                side = replace(side, frame=side.frame.with_columns(tags))
            found.append(side)
        return found

    def table_files(self, group: str) -> list[Path]:
        """Return the files of the tables in the folder of the log; none before they are extracted."""
        return [file for table in self._found_tables(group) for file in table]

    def _found_tables(self, group: str) -> list[list[Path]]:
        files = self.files()
        packed = (files or [self._downloaded])[0]
        folder = packed.parent if files and not _is_archive(packed) else self._data_folder(packed)
        tables = [[folder / name for name in names] for names in self._table_names(group)]
        return [table for table in tables if all(file.is_file() for file in table)]

    def _table_names(self, group: str) -> list[list[str]]:
        # Names of the files of each table.
        ending = self.version.lower()
        if group == "users":
            return [[f"user_features_{ending}.csv"]]
        numbers = [f"_part{number}" for number in (1, 2, 3)] if self.version == "27K" else [""]
        statistics = [f"video_features_statistic_{ending}{number}.csv" for number in numbers]
        return [[f"video_features_basic_{ending}.csv"], statistics]

    def _extracted(self, progress: Progress | None) -> list[Path]:
        # The log files, extracted if they are still in the archive.
        archive = self._packed(progress)
        if archive is None:
            return self.files()
        # All parts at once: reading the archive takes long.
        extract(archive, self._parts(everything=True), self._data_folder(archive), progress)
        return [self._data_folder(archive) / name for name in self._parts()]

    def _packed(self, progress: Progress | None) -> Path | None:
        # The archive, downloaded if it does not exist; None if the log files are there.
        files = self.files()
        if files:
            return files[0] if _is_archive(files[0]) else None
        download(self._url, self._downloaded, MD5[self.version], progress)
        return self._downloaded

    @property
    def _downloaded(self) -> Path:
        return Path(self.download_dir) / self._archive

    @property
    def _archive(self) -> str:
        return f"KuaiRand-{self.version}.tar.gz"

    @property
    def _url(self) -> str:
        return URL.format(archive=self._archive)

    def _data_folder(self, archive: Path) -> Path:
        return archive.parent / f"KuaiRand-{self.version}" / "data"

    def _parts(self, *, everything: bool = False) -> list[str]:
        # Names of the log files in the archive.
        ending = self.version.lower()
        numbers = ("_part1", "_part2") if self.version == "27K" else ("",)
        names = [f"log_standard_{dates}_{ending}{number}.csv" for dates in _STANDARD_DATES for number in numbers]
        shown_at_random = [f"log_random_4_22_to_5_08_{ending}.csv"]
        return names + (shown_at_random if self.random or everything else [])

    def _parts_in(self, folder: Path) -> list[Path]:
        candidates = (folder, folder / "data", folder / f"KuaiRand-{self.version}" / "data")
        # The folder with most of them, to name the missing ones.
        found = max(candidates, key=lambda place: sum((place / name).is_file() for name in self._parts()))
        missing = [name for name in self._parts() if not (found / name).is_file()]
        if missing:
            raise MissingInputError(
                f"path={self.path!r}: no {', '.join(missing)} in {found}; give the version of that folder, or name "
                "the files to read by a glob"
            )
        return [found / name for name in self._parts()]


def _is_archive(file: Path) -> bool:
    return file.name.endswith((".tar.gz", ".tgz"))
