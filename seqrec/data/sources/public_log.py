"""The source of published logs by name: `PublicLog(log="ml-32m")`."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from seqrec.data.progress import Progress
from seqrec.data.sources.download import download
from seqrec.data.sources.public_logs import PUBLIC_LOGS, Files
from seqrec.data.sources.source import SideTable, Source, check_max_bad_share, from_here, matching_files
from seqrec.data.user_files import refuse_special
from seqrec.errors import InputError, MissingInputError
from seqrec.registry import did_you_mean

if TYPE_CHECKING:
    import polars as pl

# Ends of names of files.
COMPRESSED = ("", ".gz", ".zst")
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
_UNREAD_ARCHIVES = (".7z", ".rar")


class PublicLog(Source):
    r"""A published log by its name, read from the files that its publisher offers.

    The guide lists the logs with their sizes, licences, units of time and tables. `ML1M`, `KuaiRand` and `LFM1b` are
    sources of their own.

    The event filter and a schema may name the files' other columns, under the names that they have there, and those of
    the tables of items and users. A file without the published columns is refused. If a whole log has other counts than
    the published ones, the preparation reports it.

    Args:
        log: `ml-20m`, `ml-25m`, `ml-32m`, `ml-latest`, `amazon-2014`, `amazon-2014-ratings`, `amazon-2023`,
            `amazon-2023-ratings`, `steam`, `yelp`, `gowalla`, `lastfm-1k`, `lastfm-1k-artists`, `yambda-50m`,
            `yambda-500m`, `yambda-5b`, `vk-lsvd`, `yoochoose`, `yoochoose-buys` or `diginetica`.
        path: A file, a glob, the folder of the files, or an archive (`.zip`, `.tar`, `.tar.gz`). In a folder, the files
            with the publisher's names are read; `.gz` and `.zst` may follow these names. None downloads MovieLens.
        download_dir: Folder for the download.
        max_bad_share: Largest share of malformed rows, 0..1, that are left out; more of them are an error.

    Raises:
        InputError: if the log is unknown, if it has no download and no `path` is given, or if `max_bad_share` is
            invalid.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from seqrec import PublicLog
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "ratings.csv")
        ...     _ = file.write_text("userId,movieId,rating,timestamp\n1,296,5.0,1147880044\n1,306,3.5,1147868817\n")
        ...     PublicLog("ml-32m", folder).scan().collect().rows()
        [(1, 296, 1147880044, 5.0), (1, 306, 1147868817, 3.5)]
    """

    incidental = frozenset({"download_dir"})

    def __init__(
        self, log: str, path: str | None = None, download_dir: str = "downloads", max_bad_share: float = 0.0
    ) -> None:
        if log not in PUBLIC_LOGS:
            raise InputError(f"log={log!r} must be one of {', '.join(PUBLIC_LOGS)}{did_you_mean(log, PUBLIC_LOGS)}")
        self.declared = PUBLIC_LOGS[log]
        if path is None and not self.declared.md5:
            raise InputError(f"log={log!r} has no download: get its files at {self.declared.place} and give their path")
        self.log = self.name = log
        self.licence = self.declared.licence
        self.path = path
        self.download_dir = download_dir
        self.max_bad_share = check_max_bad_share(max_bad_share)
        self._folder: Path | None = None

    def files(self) -> list[Path]:
        """Return the files of events in the order of reading, or the archive; none before the download."""
        if self.path is None:
            return [self._downloaded] if self._downloaded.is_file() else []
        folder = Path(self.path)
        if folder.suffix.lower() in _UNREAD_ARCHIVES:
            raise InputError(f"path={self.path!r} is an archive that is not read: unpack it, and give the folder")
        if folder.is_file():
            return [folder]
        if not folder.is_dir():
            refuse_special(self.path, f"path={self.path!r}", may_be_folder=True)
            if found := matching_files(self.path):
                return found
            raise MissingInputError(f"path={self.path!r}: no such file{from_here(self.path)}; {self._get_it}")
        found = self._in_folder(folder)
        if not found and self.declared.archive:
            found = matching_files(str(folder / self.declared.archive))
        if not found:
            expected = " or ".join(self.declared.events.names)
            raise MissingInputError(f"path={self.path!r}: no {expected} in this folder; {self._get_it}")
        return found

    def scan(self, progress: Progress | None = None) -> pl.LazyFrame:
        """Return the interaction frame, with the files' other columns as features.

        Keep the source until the frame is collected: what it unpacked is deleted with it.
        """
        from seqrec.data.ids import MISSING_VALUES
        from seqrec.data.sources.table_file import Layout, TableFile
        from seqrec.data.sources.table_log import check_tables

        declared, events = self.declared, self.declared.events
        layout = Layout(
            declared.user,
            declared.item,
            declared.timestamp,
            separator=events.separator,
            quote=events.quote,
            header=list(events.header) or None,
            missing_values=MISSING_VALUES if events.missing_values is None else events.missing_values,
            log=self.log,
            keys=events.keys,
            texts=events.texts,
            needs=events.needs,
            derive=events.derive,
        )
        progress = progress or Progress()
        files = self._log_files(progress)
        opened = self._opened(events, files, progress)
        if not opened:
            raise InputError(f"{files[0]} contains no {' or '.join(events.names)}; {self._get_it}")
        found = check_tables(
            [TableFile(name, layout, file) for name, file in opened], self.max_bad_share, progress, self.tasks
        )
        is_whole = all(_star(name.name, events) is not None for name, _ in opened)
        self.published = declared.counts if is_whole else None
        return self._accept(found)

    def tables(self, group: str, progress: Progress | None = None) -> list[SideTable]:
        """Return the tables of items or users that the publisher offers; they are next to the log or in its archive."""
        from seqrec.data.sources.side_table import read_table

        progress = progress or Progress()
        parts = self._parts(group)
        files, found = self._log_files(progress), []
        for part in parts:
            near = files if is_archive(files[0]) else self._near(part, files)
            if not (opened := self._opened(part, near, progress)):
                continue
            side = read_table(
                [file for _, file in opened],
                part.key,
                separator=part.separator,
                quote=part.quote,
                header=part.header,
                keys=part.keys,
                missing_values=part.missing_values,
                texts=part.texts,
                derive=part.derive,
                names=[str(name) for name, _ in opened],
            )
            found.append(side)
        if parts and not found:
            expected = " or ".join(name for part in parts for name in part.names)
            raise MissingInputError(f"schema.{group} needs {expected}, next to {files[0]} or in it; {self._get_it}")
        return found

    def table_files(self, group: str) -> list[Path]:
        """Return the files of these tables, unless they are in the archive of the log."""
        files = self.files()
        if not files or is_archive(files[0]):
            return []
        return [file for part in self._parts(group) for file in self._near(part, files) if file not in files]

    def _parts(self, group: str) -> tuple[Files, ...]:
        return self.declared.items if group == "items" else self.declared.users

    @property
    def _downloaded(self) -> Path:
        return Path(self.download_dir) / self.declared.archive

    @property
    def _get_it(self) -> str:
        if self.declared.md5:
            return f"leave path out to download {self.declared.place}"
        return f"get the files of {self.log} at {self.declared.place}"

    def _log_files(self, progress: Progress) -> list[Path]:
        if not (files := self.files()):
            download(self.declared.place, self._downloaded, self.declared.md5, progress)
            files = [self._downloaded]
        return files

    def _opened(self, part: Files, files: list[Path], progress: Progress) -> list[tuple[Path, Path]]:
        """Return the name for messages and the content of each file, unpacked and as JSON lines if need be."""
        from seqrec.data.sources.json_rows import write_json_of_literals
        from seqrec.data.sources.packed import temporary_folder, unpacked_members

        if self._folder is None and (part.literals or any(map(is_archive, files))):
            self._folder = temporary_folder(self)
        found: list[tuple[Path, Path]] = []
        for file in files:
            if not is_archive(file):
                found.append((file, file))
                continue
            assert self._folder is not None
            progress.note(f"unpacking {' or '.join(part.names)} of {file}")
            members = unpacked_members(file, lambda name: self._is_of(part, name), self._folder)
            found += [(file / name, content) for name, content in members]
        if not part.literals:
            return found
        assert self._folder is not None
        return [(name, write_json_of_literals(file, part.keys, self._folder, progress)) for name, file in found]

    def _is_of(self, part: Files, name: str) -> bool:
        """Return whether a member of an archive is a file of `part`, and not of a table whose names are narrower."""
        if part is self.declared.events and self._is_of_tables(name):
            return False
        return any(PurePosixPath(name).match(f"{each}{end}") for each in part.names for end in COMPRESSED)

    def _is_of_tables(self, name: str) -> bool:
        of_tables = [part for part in (*self.declared.items, *self.declared.users) if part.names != self._names]
        return any(self._is_of(part, name) for part in of_tables)

    @property
    def _names(self) -> tuple[str, ...]:
        return self.declared.events.names

    def _near(self, part: Files, files: list[Path]) -> list[Path]:
        """Return the files of a table of the files of a log, in their folders or above."""
        found: dict[Path, None] = {}
        for file in files:
            star = _star(file.name, self.declared.events)
            names = part.names if star is None else [name.replace("*", glob.escape(star)) for name in part.names]
            # `parents` of a relative path end at the working folder.
            for folder in [file.parent, *file.resolve().parents[1 : part.up + 1]]:
                if matched := _matches(folder, names):
                    found |= dict.fromkeys(matched)
                    break
        return list(found)

    def _in_folder(self, folder: Path) -> list[Path]:
        """Return the files of events in a folder or in the folders in it, in the order of their names."""
        events = self.declared.events
        for name in events.names:
            for pattern in (name, f"*/{name}"):
                matched = _matches(folder, [pattern])
                if found := [file for file in matched if not self._is_of_tables(file.name)]:
                    found.sort(key=lambda file: file.name)
                    if events.numbered:
                        _refuse_gaps(found)
                    return found
        return []


def is_archive(file: Path) -> bool:
    """Return whether a file is an archive, by its name."""
    return file.name.lower().endswith(_ARCHIVES)


def _matches(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the files in a folder that match the first of some globs that any matches.

    Of a file that is there compressed, too, the other one is returned.
    """
    for name in names:
        found: dict[str, Path] = {}
        for end in COMPRESSED:
            for file in folder.glob(f"{name}{end}"):
                if file.is_file():
                    found.setdefault(str(file).removesuffix(end), file)
        if found:
            return sorted(found.values())
    return []


def _star(name: str, part: Files) -> str | None:
    """Return the text at the star in the name of a published file, "" if there is no star; None if it is renamed."""
    for end in COMPRESSED:
        for pattern in part.names:
            form = re.escape(pattern.split("/")[-1] + end).replace(r"\*", "(.*)")
            if match := re.fullmatch(form, name):
                return match[1] if match.re.groups else ""
    return None


def _refuse_gaps(files: list[Path]) -> None:
    """Refuse files whose numbers do not follow one another.

    Raises:
        MissingInputError: if a number is missing.
        InputError: if one occurs twice.
    """
    numbers = [int(re.findall(r"\d+", file.name)[-1]) for file in files]
    for before, (number, file) in zip(numbers, zip(numbers[1:], files[1:], strict=True), strict=False):
        if number == before:
            raise InputError(f"{file} is not the only {file.name}; give the folder of one of them as path")
        if number > before + 1:
            raise MissingInputError(
                f"{file.parent}: the part before {file.name} is missing, as parts {before} and {number} are there; get "
                "it, or name the files to read by a glob"
            )
