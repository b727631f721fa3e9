"""Prepare an event store from a raw log, once and in bounded memory, or open the store that exists."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from seqrec.data.manifest import MANIFEST, PREPARE_AGAIN, is_store, read_manifest
from seqrec.data.prepare.filters import Filters
from seqrec.data.prepare.memory import MemoryLimit, spoken_bytes
from seqrec.data.progress import Progress, Show
from seqrec.data.schema import EVENTS, GROUPS, Schema
from seqrec.data.sources.source import Source
from seqrec.data.store import EventStore
from seqrec.data.tasks import check_workers, tasks_on
from seqrec.errors import InputError, StoreError
from seqrec.files import exchange, locked, rename

# Manifests contain these filters only if they are set. Stores that are older than the filters thus stay valid.
_SILENT = {
    each.name: each.default for each in fields(Filters) if each.name.startswith(("as_published_", "items_without_"))
}
# Errors of a full disk, an exceeded quota and a file that is too large. Windows has no quota.
_DISK_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
# A part of the names of stores, which stay if a later version reads the stores of this one.
_NAMES_VERSION = 2
# Folder of temporary files, and the mark by which the rest of a store is known.
SPOOL = "spool"
_REMEDY = f"choose another --data.store, or run {PREPARE_AGAIN}"


def fingerprint(source: Source, filters: Filters, schema: Schema = Schema()) -> str:  # noqa: B008  # not changed
    """Return 12 hexadecimal digits that differ if source, filters or schema do."""
    text = json.dumps({"version": _NAMES_VERSION, **settings_of(source, filters, schema)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def prepare(
    source: Source,
    filters: Filters,
    directory: Path | str,
    *,
    schema: Schema = Schema(),  # noqa: B008  # not changed
    memory_limit: int | str | None = None,
    progress: Show | None = None,
    overwrite: bool = False,
    prefix: EventStore | None = None,
    workers: int | str = 1,
) -> EventStore:
    """Read a log and write its event store.

    A user's events are ordered by timestamp, ties by log order; by log order if the log has no times. Users and
    items get internal ids 1.. in ascending order of external id. The same log and filters give the same bytes with
    any memory limit. The store appears at `directory` complete or not at all: it is written to
    `<directory>.partial`, and renamed.

    Memory does not grow with the events: the log is read in batches, and ordered some users at a time, on disk. The
    memory must hold the libraries, the reader's buffers, the events of any one user (up to 100 bytes each), and
    tables of the distinct ids:

    - integers in a small range: 5 bytes for each value of the range;
    - other integers: 36 bytes for each id;
    - text: four times the size of the ids;
    - 10 bytes for each user and item if a filter counts their events;
    - and of the schema: the distinct values of each categorical column, and each column of items and users except
      vectors.

    The disk needs about as much space as the log takes as text.

    Args:
        source: The raw log.
        filters: The filters.
        directory: The new store's folder; its parents are made.
        schema: Columns of events, items and users to keep.
        memory_limit: Most memory that the whole process may hold: bytes, or text such as "3GiB" or "1500MB", 1 GiB
            or more. None is half of the machine's memory, or half of its control group's limit if that is smaller.
        progress: Called with lines of text: at the start of each stage, every few seconds (rows, rows a second, time
            left), at its end, and with notes on rows that were left out.
        overwrite: Whether to replace an existing store.
        prefix: A store of a part of the log. Its ids, and the codes of its columns, come first, in its order. The files
            are then those of `compact` of the store that has grown to the whole log, which this tests.
        workers: Processes that read and order parts of the log: their number, or the address of a dask scheduler
            ("tcp://node1:8786"), whose workers must see the log and the store's folder. `memory_limit` is for each
            process. 1 is this process alone. Any workers write the same bytes. Scripts that give another number need
            `if __name__ == "__main__":`, because the processes import them.

    Returns:
        The store, opened.

    Raises:
        InputError: if the log or a table cannot be read or changes meanwhile, if a column of the schema is missing or
            does not suit its kind, if no event is left, or if the memory limit is too small; or if `prefix` has ids
            that the log has not, or the filters leave events out; or if the scheduler of `workers` does not answer, or
            a worker has other versions or does not see a file.
        StoreError: if `directory` exists, and `overwrite` is False or it is not a store; or if the disk is full.

    Example:
        >>> import tempfile
        >>> from seqrec import Filters, Synthetic, prepare
        >>> source = Synthetic(num_users=20, num_items=30, mean_events=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = prepare(source, Filters(), f"{folder}/store")
        ...     store.num_users, store.item_vocabulary.external_ids([1])
        (20, array([0]))
    """
    directory, limit = Path(directory), MemoryLimit(memory_limit)
    others = filters.as_published_raw_ids or filters.items_without_events
    if prefix is not None and (others or not filters.keeps_every_event):
        raise InputError("prefix needs filters that keep every user and item, because their ids would move otherwise")
    with store_locked(directory):
        how = limit, Progress(progress), workers
        return prepare_unlocked(source, filters, schema, directory, *how, overwrite=overwrite, prefix=prefix)


def ensure_store(
    source: Source,
    filters: Filters,
    directory: Path | str,
    *,
    schema: Schema = Schema(),  # noqa: B008  # not changed
    memory_limit: int | str | None = None,
    progress: Show | None = None,
    workers: int | str = 1,
) -> EventStore:
    """Return the store at `directory`. If it does not exist, prepare it.

    Several processes may call this at once: one prepares while the others wait for it.

    Args:
        source: The raw log. Its files need not exist if the store does.
        filters: The filters.
        directory: The store's folder.
        schema: As for `prepare`.
        memory_limit: As for `prepare`.
        progress: As for `prepare`.
        workers: As for `prepare`.

    Raises:
        InputError: as for `prepare`.
        StoreError: if the store is damaged or has another version, was made with other settings, or was made from a
            file that now has another size.
    """
    directory = Path(directory)
    if not is_store(directory):
        with store_locked(directory):
            finish_exchange(directory)
            if not is_store(directory):
                limit = MemoryLimit(memory_limit)
                return prepare_unlocked(source, filters, schema, directory, limit, Progress(progress), workers)
    manifest = read_manifest(directory)
    check_settings(directory, manifest, settings_of(source, filters, schema))
    _check_source_files(directory, manifest, source, schema)
    return EventStore.open(directory)


def prepare_unlocked(
    source: Source,
    filters: Filters,
    schema: Schema,
    directory: Path,
    limit: MemoryLimit,
    progress: Progress,
    workers: int | str,
    *,
    overwrite: bool = False,
    prefix: EventStore | None = None,
) -> EventStore:
    """Write a store as `prepare` does, while the caller holds the lock."""
    # The only modules of this package that import polars.
    from seqrec.data.prepare.spool import Workspace
    from seqrec.data.prepare.stages import write_store_of

    check_workers(workers)
    finish_exchange(directory)
    occupied = directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
    if occupied and not is_store(directory):
        raise StoreError(f"{directory} exists and is not an event store; choose another --data.store")
    if occupied and not overwrite:
        raise StoreError(f"{directory} already contains an event store; {_REMEDY}")
    # Other processes may have another working folder.
    folder = _partial(directory).absolute() / SPOOL
    workspace = Workspace(folder, filters, schema, limit, progress, prefix=prefix)
    try:
        with replacing(directory) as partial, tasks_on(workers, folder / "tasks", progress) as workspace.tasks:
            write_store_of(source, settings_of(source, filters, schema), partial, workspace)
    except OSError as error:
        if not is_full_disk(error):
            raise
        # The incomplete files are gone, and the free space is that of a new attempt.
        raise StoreError(
            f"writing the store to {directory.parent} failed ({error.strerror}): about "
            f"{spoken_bytes(workspace.needed)} are needed, "
            f"{spoken_bytes(shutil.disk_usage(directory.parent).free)} are free there; free some, or choose another "
            "--data.store"
        ) from error
    return EventStore.open(directory)


def is_full_disk(error: OSError) -> bool:
    """Return whether a write failed because the disk or a quota is full."""
    return not isinstance(error, InputError) and error.errno in _DISK_FULL


@contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """Give a folder to write a store into, which takes its place at the end; an error leaves the old store."""
    partial = _partial(directory)
    leftovers = partial, _replaced(directory)
    for leftover in leftovers:
        delete_own(leftover)
    (partial / SPOOL).mkdir(parents=True)
    try:
        yield partial
        _delete_spool(partial / SPOOL)
        _put_in_place(partial, directory)
    finally:
        finish_exchange(directory)
        for leftover in leftovers:
            with suppress(OSError):
                delete_own(leftover)


def _delete_spool(spool: Path) -> None:
    # A lost attempt of a task, which still runs on a cluster, may write while the folder is deleted.
    shutil.rmtree(spool, ignore_errors=True)
    if spool.exists():
        shutil.rmtree(spool)


def _partial(directory: Path) -> Path:
    return directory.with_name(directory.name + ".partial")


def _replaced(directory: Path) -> Path:
    return directory.with_name(directory.name + ".replaced")


def _put_in_place(partial: Path, directory: Path) -> None:
    """Give a finished store its name, which an older store may have; then that one has the name `partial`."""
    if not directory.exists():
        rename(partial, directory)
        return
    try:
        exchange(partial, directory)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        # Two renames; if the process ends between them, `finish_exchange` undoes the first.
        rename(directory, _replaced(directory))
        rename(partial, directory)


def finish_exchange(directory: Path) -> None:
    """Give a store its name back if the process that replaced it ended without another store in its place."""
    if is_store(_replaced(directory)) and not directory.exists():
        rename(_replaced(directory), directory)


def delete_own(leftover: Path) -> None:
    """Delete what a preparation left; refuse to delete anything else of that name."""
    if not leftover.exists():
        return
    spool = leftover / SPOOL
    if not (leftover.is_dir() and (is_store(leftover) or spool.is_dir() or not any(leftover.iterdir()))):
        raise StoreError(
            f"{leftover} is in the way: preparation uses that name, and it is no store nor the rest of one; rename it, "
            "or choose another --data.store"
        )
    # The marks last, by which the rest is known if the process ends meanwhile.
    for entry in sorted(leftover.iterdir(), key=lambda path: (path.name == MANIFEST, path == spool)):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    leftover.rmdir()


def settings_of(source: Source, filters: Filters, schema: Schema) -> dict[str, Any]:
    """Return what identifies a store, as plain values."""
    # Through JSON, like the manifest, to compare equal with it. Stores that are older than schemas have none.
    shown = {name: value for name, value in asdict(filters).items() if _SILENT.get(name, ...) != value}
    columns = {"schema": named} if (named := schema.named()) else {}
    settings: dict[str, Any] = json.loads(json.dumps({"source": source.describe(), "filters": shown, **columns}))
    return settings


def check_settings(directory: Path, manifest: dict[str, Any], settings: dict[str, Any]) -> None:
    """Compare the settings in a manifest with others.

    Raises:
        StoreError: if there are none, or they differ; the message has the first difference.
    """
    if not {"source", "filters", "source_files"} <= manifest.keys():
        raise StoreError(f"the manifest of {directory} does not name its log; {_REMEDY}")
    stored, wanted = _flatten(manifest), _flatten(settings)
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            raise StoreError(
                f"{directory} was prepared with {name}={stored.get(name)!r}, now it is {wanted.get(name)!r}; {_REMEDY}"
            )


def _flatten(settings: dict[str, Any]) -> dict[str, Any]:
    source, filters, schema = settings["source"], {**_SILENT, **settings["filters"]}, settings.get("schema", {})
    flat = {"source": source["name"]}
    flat |= {f"source.{name}": value for name, value in source["arguments"].items()}
    flat |= {f"schema.{group}": schema.get(group, {}) for group in GROUPS}
    return flat | {f"filters.{name}": value for name, value in filters.items()}


def _check_source_files(directory: Path, manifest: dict[str, Any], source: Source, schema: Schema) -> None:
    # A missing file is not an error: a store outlives its log.
    try:
        files = source.files()
        for group in schema.named().keys() - {EVENTS}:
            files += source.table_files(group)
        found = {file: file.stat().st_size for file in files}
    except FileNotFoundError:
        return
    stored = {os.path.abspath(entry["name"]): entry["bytes"] for entry in manifest["source_files"]}
    for file, size in found.items():
        was = stored.get(os.path.abspath(file))
        if was is None:
            raise StoreError(
                f"{file.as_posix()} has {size} bytes; it did not exist when {directory} was prepared; add it by "
                f"seqrec append --input {file.as_posix()}, {_REMEDY}"
            )
        if was != size:
            raise StoreError(
                f"{file.as_posix()} has {size} bytes; it had {was} bytes when {directory} was prepared; {_REMEDY}"
            )


@contextmanager
def store_locked(directory: Path) -> Iterator[None]:
    """Wait until no other process writes a store, and let none do so meanwhile; name the store in errors."""
    try:
        with locked(directory.with_name(directory.name + ".lock")):
            yield
    except OSError as error:
        if isinstance(error, InputError):
            raise
        place = Path(error.filename or directory).absolute()
        if error.errno in (errno.EACCES, errno.EPERM) and not place.is_relative_to(directory.absolute().parent):
            raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error
        raise StoreError(f"the event store {directory} cannot be written: {error.strerror or error}") from error
