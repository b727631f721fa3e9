"""From a raw log to an event store: filter, number, order, write; done once, in bounded memory."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from filelock import FileLock

from seqrec.data.prepare.disk import Workspace, disk_full, is_full
from seqrec.data.prepare.filters import Filters
from seqrec.data.prepare.memory import MemoryLimit
from seqrec.data.prepare.stages import write_store_of
from seqrec.data.progress import Progress, Show
from seqrec.data.sources.source import Source
from seqrec.data.store import MANIFEST, VERSION, EventStore, read_manifest, synchronise
from seqrec.errors import InputError, MissingInputError, StoreError

__all__ = ["Filters", "ensure_store", "fingerprint", "prepare"]

# Manifests name these only where they are set, so that stores from before there were any stay what they are.
_SILENT = {each.name: each.default for each in fields(Filters) if each.name.startswith("as_published_")}
_REMEDY = "choose another --data.store, or run seqrec prepare --overwrite true"


def fingerprint(source: Source, filters: Filters) -> str:
    """Return 12 hexadecimal digits that differ where source, filters or the store's version do."""
    text = json.dumps({"version": VERSION, **_settings(source, filters)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def prepare(
    source: Source,
    filters: Filters,
    directory: Path | str,
    *,
    memory_limit: int | str | None = None,
    progress: Show | None = None,
    overwrite: bool = False,
) -> EventStore:
    """Read a log and write its event store.

    A user's events are ordered by timestamp, ties by log order; by log order where the log has no times.
    Users and items get internal ids 1.. in ascending order of external id. The same log and filters give
    the same bytes, whatever the memory limit. The store appears at `directory` whole or not at all: it is written
    beside it, under `<directory>.partial`, and renamed.

    Memory does not grow with the events: the log is read in batches, and ordered some users at a time, on disk.
    Beside the libraries and the reader's buffers it must hold tables of the distinct ids (5 bytes for each value
    of their range where they are integers of a small range, 36 for each id where they are other integers, four
    times their own size where they are text, 10 for each user and item where a filter counts them) and the events
    of any one user, at up to 100 bytes each. The disk must hold about as much as the log does as text.

    Args:
        source: The raw log.
        filters: What to keep.
        directory: Where the store goes; its parents are made.
        memory_limit: Most that the process may hold in memory, all included: bytes, or text such as "3GiB" or
            "1500MB", 1 GiB or more. None takes half of the machine's memory, or of its control group's limit
            where that is smaller.
        progress: Called with a line for each stage, at its begin, now and then (rows, rows a second, time left)
            and at its end, and with notes on what was left out.
        overwrite: Replace a store that is there.

    Returns:
        The store, opened.

    Raises:
        InputError: the log cannot be read or changes meanwhile, nothing of it is left, or the memory limit is too
            small for it.
        StoreError: something is at `directory` already, and `overwrite` is False or it is no store; or the disk is
            full.
    """
    directory, limit = Path(directory), MemoryLimit(memory_limit)
    with _locked(directory):
        return _prepare(source, filters, directory, limit, Progress(progress), overwrite)


def ensure_store(
    source: Source,
    filters: Filters,
    directory: Path | str,
    *,
    memory_limit: int | str | None = None,
    progress: Show | None = None,
) -> EventStore:
    """Return the store at `directory`, made now if there is none.

    Several processes may call this at once: one prepares while the others wait for it.

    Args:
        source: The raw log; its files need not be there where the store is.
        filters: What to keep.
        directory: Where the store is or goes.
        memory_limit: As for `prepare`.
        progress: As for `prepare`.

    Raises:
        InputError: `prepare` raises it.
        StoreError: the store there is damaged or of another version, was made from other settings, or from a
            file that has changed in size since.
    """
    directory = Path(directory)
    if not (directory / MANIFEST).is_file():
        with _locked(directory):
            if not (directory / MANIFEST).is_file():
                limit = MemoryLimit(memory_limit)
                return _prepare(source, filters, directory, limit, Progress(progress), False)
    manifest = read_manifest(directory)
    if not {"source", "filters", "source_files"} <= manifest.keys():
        raise StoreError(f"{directory} does not say what log it was prepared from; {_REMEDY}")
    _check_settings(directory, manifest, _settings(source, filters))
    _check_source_files(directory, manifest, source)
    return EventStore.open(directory)


def _prepare(
    source: Source, filters: Filters, directory: Path, limit: MemoryLimit, progress: Progress, overwrite: bool
) -> EventStore:
    occupied = directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
    if occupied and not (directory / MANIFEST).is_file():
        raise StoreError(f"{directory} exists and is no event store; choose another --data.store")
    if occupied and not overwrite:
        raise StoreError(f"{directory} holds an event store already; {_REMEDY}")
    partial = directory.with_name(directory.name + ".partial")
    replaced = directory.with_name(directory.name + ".replaced")
    for leftover in (partial, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    workspace = Workspace(partial / "spool")
    workspace.folder.mkdir(parents=True)
    full: OSError | None = None
    try:
        settings = _settings(source, filters)
        write_store_of(source, filters, partial, workspace, limit, progress, settings)
        workspace.folder.rmdir()
        if directory.exists():
            directory.rename(replaced)
        partial.rename(directory)
        synchronise(directory.parent)
    except OSError as error:
        if isinstance(error, InputError) or not is_full(error):
            raise
        full = error
    finally:
        if replaced.exists() and not directory.exists():
            replaced.rename(directory)
        for leftover in (partial, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
    if full is not None:
        # Told only now that what was half-written is gone, so that the free space is what a new try would have.
        raise disk_full(directory.parent, workspace.needed, full) from full
    return EventStore.open(directory)


def _settings(source: Source, filters: Filters) -> dict[str, Any]:
    # Through JSON, as the manifest goes, so that both compare equal.
    told = {name: value for name, value in asdict(filters).items() if _SILENT.get(name, ...) != value}
    settings: dict[str, Any] = json.loads(json.dumps({"source": source.describe(), "filters": told}))
    return settings


def _check_settings(directory: Path, manifest: dict[str, Any], settings: dict[str, Any]) -> None:
    stored, wanted = _flatten(manifest), _flatten(settings)
    for name in sorted(stored.keys() | wanted.keys()):
        if name.split(".")[0] not in settings or stored.get(name) == wanted.get(name):
            continue
        raise StoreError(
            f"{directory} was prepared with {name}={stored.get(name)!r}, "
            f"now it is {wanted.get(name)!r}; {_REMEDY}"
        )


def _flatten(settings: dict[str, Any]) -> dict[str, Any]:
    source, filters = settings["source"], {**_SILENT, **settings["filters"]}
    flat = {"source": source["name"]}
    flat |= {f"source.{name}": value for name, value in source["arguments"].items()}
    return flat | {f"filters.{name}": value for name, value in filters.items()}


def _check_source_files(directory: Path, manifest: dict[str, Any], source: Source) -> None:
    # Files that are gone are no fault: a store outlives its log.
    try:
        found = {file.as_posix(): file.stat().st_size for file in source.files()}
    except MissingInputError:
        return
    stored = {entry["name"]: entry["bytes"] for entry in manifest["source_files"]}
    for name, size in found.items():
        if stored.get(name) != size:
            was = f"had {stored[name]} bytes" if name in stored else "was not there"
            raise StoreError(f"{name} has {size} bytes; it {was} when {directory} was prepared; {_REMEDY}")


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    # Of several processes that want to write this store, one is inside at a time.
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(directory.with_name(directory.name + ".lock")):
            yield
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise StoreError(f"the event store {directory} cannot be written: {error}") from error
