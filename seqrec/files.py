"""Files and folders that are complete on disk, or not there: the only module that renames.

A file is written next to its place, flushed to disk, renamed, and then its folder is flushed. Without the first flush a
loss of power can leave an empty file under the new name; without the second, the old file.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

PARTIAL = ".partial"
_AT_FDCWD, _EXCHANGE_LINUX, _EXCHANGE_MACOS = -100, 2, 2


def synchronise(path: Path) -> None:
    """Flush a file's content, or a folder's list of files, to disk, to survive a loss of power."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        # Windows cannot open folders, and flushes their changes by itself.
        return
    writable = os.name == "nt"  # Windows flushes only files that are open for writing
    descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def synchronise_tree(folder: Path) -> None:
    """Flush every file and folder below a folder, and the folder itself."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            synchronise(Path(place, name))
        synchronise(Path(place))


@contextmanager
def replacing(path: Path, *, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """Open a file that takes its place at `path` when the block ends, complete and flushed.

    If the block raises, the file is deleted, and what was at `path` is still there.

    Args:
        path: Place of the file. Its folder must exist.
        mode: Permissions of the file, which the process's mask reduces: 0o600 for the owner alone.

    Yields:
        An unbuffered binary file.

    Raises:
        OSError: if the disk is full or refuses.
    """
    partial = path.with_name(path.name + PARTIAL)
    partial.unlink(missing_ok=True)  # its permissions would stay
    try:
        with open(partial, "wb", buffering=0, opener=lambda name, flags: os.open(name, flags, mode)) as stream:
            yield stream
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk refuses a stream, which has no name
        raise
    synchronise(path.parent)


def write_bytes(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write a whole file, replacing one that exists; see `replacing`."""
    with replacing(path, mode=mode) as stream:
        left = memoryview(content)
        while left:
            left = left[stream.write(left) :]


def write_text(path: Path, text: str, *, mode: int = 0o666) -> None:
    """Write a whole text file in UTF-8, replacing one that exists; see `replacing`."""
    write_bytes(path, text.encode(), mode=mode)


def write_json(path: Path, content: Any, *, mode: int = 0o666) -> None:
    """Write plain data as indented JSON, replacing a file that exists; see `replacing`."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n", mode=mode)


def write_parquet(frame: Any, path: Path, **options: Any) -> None:
    """Write a polars frame, a lazy one in parts. The file is not flushed; see `move`.

    Raises:
        OSError: if the disk is full. polars itself reports an error of the format.
    """
    try:
        (frame.write_parquet if hasattr(frame, "write_parquet") else frame.sink_parquet)(path, **options)
    except Exception as error:
        if re.search(r"os error 28|thrift: transport error", str(error)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def create(path: Path, content: bytes) -> None:
    """Write a whole file, unless there is one: of several processes exactly one succeeds.

    Raises:
        FileExistsError: if there is a file at `path`; it is unchanged.
    """
    own = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        write_bytes(own, content)
        os.link(own, path)
    finally:
        own.unlink(missing_ok=True)
    synchronise(path.parent)


def move(source: Path, target: Path) -> None:
    """Flush a finished file or folder with all that it contains, and rename it.

    A file replaces the file at `target`, a folder only an empty folder.
    """
    if source.is_dir():
        synchronise_tree(source)
    else:
        synchronise(source)
    rename(source, target)


def rename(source: Path, target: Path) -> None:
    """Rename what is on disk already, and flush the folders; `move` also flushes the content."""
    os.replace(source, target)
    synchronise(target.parent)
    if source.parent != target.parent:
        synchronise(source.parent)


def exchange(first: Path, second: Path) -> None:
    """Exchange two names of one file system, at once: at no time is either absent.

    Raises:
        OSError: with `errno.ENOSYS`, if this system or file system cannot do it; nothing has changed.
    """
    library: Any = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    names = os.fsencode(first), os.fsencode(second)
    if hasattr(library, "renameat2"):
        failed = library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE_LINUX)
    elif hasattr(library, "renamex_np"):
        failed = library.renamex_np(*names, _EXCHANGE_MACOS)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(first))
    if failed:
        number = ctypes.get_errno()
        unsupported = number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)
        number = errno.ENOSYS if unsupported else number
        raise OSError(number, os.strerror(number), str(first))
    synchronise(first.parent)
    if first.parent != second.parent:
        synchronise(second.parent)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file while a block runs: other processes wait. The file is deleted at the end.

    A process that waited for the deleted file notices it, and makes a new one. (filelock before 4.0 deletes the file,
    too, and then perhaps another process's, so two would hold the lock.) Folders above the file are made; if the
    block raises, those that are empty then are deleted again.
    """
    from filelock import FileLock  # most commands need none

    made = [folder for folder in path.absolute().parents if not folder.exists()]
    lock = FileLock(path)
    try:
        while not lock.is_locked:
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # another process has just deleted the empty folder
                lock.acquire()
        try:
            yield
        finally:
            # Windows deletes no open file; it stays there.
            with suppress(OSError):
                path.unlink()
            lock.release()
    except BaseException:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise
