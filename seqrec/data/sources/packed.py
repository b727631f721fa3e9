"""Unpack compressed tables that polars does not read, and files of archives."""

from __future__ import annotations

import bz2
import lzma
import shutil
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from seqrec.errors import InputError

_BLOCK_BYTES = 1 << 20
# Exceptions for an archive that is damaged, encrypted or of an unknown kind (NotImplementedError).
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError),
    *(RuntimeError, NotImplementedError),
)


def temporary_folder(owner: object) -> Path:
    """Return a new folder that stays as long as `owner`, whose frames read its files when they are collected."""
    folder = tempfile.mkdtemp(prefix="seqrec-")
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def unpacked_members(archive: Path, wanted: Callable[[str], bool], folder: Path) -> list[tuple[str, Path]]:
    """Unpack files of an archive, a block at a time, into a new folder in `folder`, and return names and files.

    Args:
        archive: A `.zip`, or a `.tar` that may be compressed.
        wanted: Whether to unpack a file, given its name in the archive, such as "ml-20m/ratings.csv".
        folder: The folder.

    Raises:
        InputError: if the archive is damaged, or the disk has no room.
    """
    place, found = Path(tempfile.mkdtemp(dir=folder)), []
    with _naming(archive):
        for name, stream in _members(archive, wanted):
            # A folder each: two files may have one name.
            target = Path(tempfile.mkdtemp(dir=place)) / Path(name).name
            found.append((name, _written(stream, target, archive)))
    return sorted(found)


def _members(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, IO[bytes]]]:
    if archive.suffix.lower() == ".zip":
        with zipfile.ZipFile(archive) as opened:
            for each in opened.infolist():
                if not each.is_dir() and _is_content(each.filename) and wanted(each.filename):
                    with opened.open(each) as stream:
                        yield each.filename, stream
        return
    with tarfile.open(archive, "r|*") as opened_tar:
        for member in opened_tar:
            content = opened_tar.extractfile(member) if member.isfile() and wanted(member.name) else None
            if content is not None and _is_content(member.name):
                yield member.name, content


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    # Turn what fails in unpacking into an error with the file.
    try:
        yield
    except _DAMAGED as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} cannot be unpacked: {error}") from error


def unpacked(file: Path, folder: Path) -> Path:
    """Unpack the one table in a `.zip`, `.bz2` or `.xz` file, a block at a time, into a new folder in `folder`.

    Raises:
        InputError: if the file is damaged, a zip has no or several files, or the disk has no room.
    """
    place = Path(tempfile.mkdtemp(dir=folder))
    with _naming(file):
        if file.suffix.lower() == ".zip":
            with zipfile.ZipFile(file) as archive:
                members = [each for each in archive.infolist() if not each.is_dir() and _is_content(each.filename)]
                if len(members) != 1:
                    names = ", ".join(each.filename for each in members[:5]) or "no file"
                    raise InputError(f"{file} has {names}; give a zip with one table, or unpack it and give the folder")
                target = place / Path(members[0].filename).name
                with archive.open(members[0]) as stream:
                    return _written(stream, target, file)
        target = place / file.stem
        with bz2.open(file) if file.suffix.lower() == ".bz2" else lzma.open(file) as stream:
            return _written(stream, target, file)


def require_room(target: Path, file: Path) -> None:
    """Refuse to unpack more of `file` to `target` if the disk is nearly full: a small file can unpack to any size.

    Raises:
        InputError: if it is.
    """
    if shutil.disk_usage(target.parent).free < 4 * _BLOCK_BYTES:
        raise InputError(f"{file} does not fit into {target.parent} when it is unpacked; unpack it elsewhere")


def _is_content(name: str) -> bool:
    return not name.startswith("__MACOSX/") and not Path(name).name.startswith(".")


def _written(stream: IO[bytes], target: Path, file: Path) -> Path:
    with target.open("wb") as out:
        while block := stream.read(_BLOCK_BYTES):
            out.write(block)
            require_room(target, file)
    return target
