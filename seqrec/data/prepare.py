"""From a raw log to an event store: filter, number, order, write; done once."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from seqrec.data.filters import Filters, filter_events, k_core
from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID, check_interactions
from seqrec.data.sources.base import Source
from seqrec.data.sources.lines import reading
from seqrec.data.store import MANIFEST, VERSION, EventStore, read_manifest, write_store
from seqrec.errors import InputError, MissingInputError, StoreError

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Filters", "ensure_store", "fingerprint", "prepare"]

Progress = Callable[[str], None]
ORDER = {
    True: "a user's events by timestamp, ties in log order; users and items numbered by external id",
    False: "a user's events in log order; users and items numbered by external id",
}
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
    progress: Progress | None = None,
    overwrite: bool = False,
) -> EventStore:
    """Read a log and write its event store.

    A user's events are ordered by timestamp, ties by log order; by log order where the log has no times.
    Users and items get internal ids 1.. in ascending order of external id. The same log and filters give
    the same bytes. The store appears at `directory` whole or not at all: it is written beside it, under
    `<directory>.partial`, and renamed.

    Args:
        source: The raw log.
        filters: What to keep.
        directory: Where the store goes; its parents are made.
        progress: Called with a line for each stage: what was done, rows, seconds.
        overwrite: Replace a store that is there.

    Returns:
        The store, opened.

    Raises:
        InputError: the log cannot be read, or nothing of it is left.
        StoreError: something is at `directory` already, and `overwrite` is False or it is no store.
    """
    directory = Path(directory)
    with _locked(directory):
        return _prepare(source, filters, directory, progress or _silent, overwrite)


def ensure_store(
    source: Source, filters: Filters, directory: Path | str, *, progress: Progress | None = None
) -> EventStore:
    """Return the store at `directory`, made now if there is none.

    Several processes may call this at once: one prepares while the others wait for it.

    Args:
        source: The raw log; its files need not be there where the store is.
        filters: What to keep.
        directory: Where the store is or goes.
        progress: As for `prepare`.

    Raises:
        InputError: the log cannot be read, or nothing of it is left.
        StoreError: the store there is damaged or of another version, was made from other settings, or from a
            file that has changed in size since.
    """
    directory = Path(directory)
    if not (directory / MANIFEST).is_file():
        with _locked(directory):
            if not (directory / MANIFEST).is_file():
                return _prepare(source, filters, directory, progress or _silent, False)
    manifest = read_manifest(directory)
    if not {"source", "filters", "source_files"} <= manifest.keys():
        raise StoreError(f"{directory} does not say what log it was prepared from; {_REMEDY}")
    _check_settings(directory, manifest, _settings(source, filters))
    _check_source_files(directory, manifest, source)
    return EventStore.open(directory)


def _prepare(
    source: Source, filters: Filters, directory: Path, progress: Progress, overwrite: bool
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
    partial.mkdir()
    try:
        _write(source, filters, partial, progress)
        if directory.exists():
            directory.rename(replaced)
        partial.rename(directory)
    finally:
        if replaced.exists() and not directory.exists():
            replaced.rename(directory)
        for leftover in (partial, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
    return EventStore.open(directory)


def _write(source: Source, filters: Filters, directory: Path, progress: Progress) -> None:
    stage = _Stages(progress)
    origin = source.name or type(source).__name__
    stage.begin(f"reading {', '.join(map(str, source.files())) or origin}")
    with reading(f"source {origin}", "an interaction log"):
        frame = source.scan()
        check_interactions(frame, origin)
        events = filter_events(frame, filters.event_filter)
    stage.end(len(events))
    users, user_codes = _encode(events[USER_ID])
    items, item_codes = _encode(events[ITEM_ID])
    stage.begin("filtering")
    keep = k_core(user_codes, item_codes, filters)
    stage.end(len(keep))
    if len(keep) == 0:
        raise InputError(
            f"no event of {len(events):,} is left after the filters {_spoken(filters)}; loosen them"
        )
    times = events[TIMESTAMP].to_numpy()[keep] if TIMESTAMP in events.columns else None
    stage.begin("ordering")
    user_rows, user_kept = _compact(user_codes[keep], len(users))
    item_rows, item_kept = _compact(item_codes[keep], len(items))
    order = _order(user_rows, times)
    counts = np.bincount(user_rows, minlength=len(user_kept))
    stage.end(len(order))
    stage.begin("writing")
    write_store(
        directory,
        item_rows[order] + 1,
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        None if times is None else times[order],
        _external(users, user_kept),
        _external(items, item_kept),
        {
            **_settings(source, filters),
            "order": ORDER[times is not None],
            "source_files": _sizes(source.files()),
        },
    )
    stage.end(len(order))


def _encode(ids: pl.Series) -> tuple[pl.Series, NDArray[np.int64]]:
    # Distinct ids in ascending order, and where among them each row's id stands.
    import polars as pl

    distinct = ids.unique().sort()
    # Ranking text sorts it, which is many times slower than hashing it.
    ranks = ids.cast(pl.Enum(distinct)).to_physical() if ids.dtype == pl.String else ids.rank("dense") - 1
    return distinct, ranks.to_numpy().astype(np.int64)


def _compact(codes: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    # Codes renumbered to 0.. without gaps, and the old codes in their new order.
    kept = np.flatnonzero(np.bincount(codes, minlength=size))
    renumbered = np.zeros(size, np.int64)
    renumbered[kept] = np.arange(len(kept))
    return renumbered[codes], kept


def _order(user_rows: NDArray[np.int64], times: NDArray[np.int64] | None) -> NDArray[np.int64]:
    # Both sorts are stable, so ties keep log order.
    if times is None:
        return np.argsort(user_rows, kind="stable")
    return np.lexsort((times, user_rows))


def _external(distinct: pl.Series, kept: NDArray[np.int64]) -> NDArray[np.int64] | list[str]:
    ids = distinct.gather(kept)
    return ids.to_numpy() if ids.dtype.is_integer() else ids.to_list()


def _settings(source: Source, filters: Filters) -> dict[str, Any]:
    # Through JSON, as the manifest goes, so that both compare equal.
    settings: dict[str, Any] = json.loads(
        json.dumps({"source": source.describe(), "filters": asdict(filters)})
    )
    return settings


def _sizes(files: list[Path]) -> list[dict[str, Any]]:
    return [{"name": file.as_posix(), "bytes": file.stat().st_size} for file in files]


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
    source, filters = settings["source"], settings["filters"]
    flat = {"source": source["name"]}
    flat |= {f"source.{name}": value for name, value in source["arguments"].items()}
    return flat | {f"filters.{name}": value for name, value in filters.items()}


def _check_source_files(directory: Path, manifest: dict[str, Any], source: Source) -> None:
    # Files that are gone are no fault: a store outlives its log.
    try:
        found = {entry["name"]: entry["bytes"] for entry in _sizes(source.files())}
    except MissingInputError:
        return
    stored = {entry["name"]: entry["bytes"] for entry in manifest["source_files"]}
    for name, size in found.items():
        if stored.get(name) != size:
            was = f"had {stored[name]} bytes" if name in stored else "was not there"
            raise StoreError(f"{name} has {size} bytes; it {was} when {directory} was prepared; {_REMEDY}")


def _spoken(filters: Filters) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in asdict(filters).items())


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


def _silent(_: str) -> None:
    pass


class _Stages:
    # Says what is being done and, when it is done, how many events came out and how long it took.

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._name = ""
        self._began = 0.0

    def begin(self, name: str) -> None:
        self._name, self._began = name, time.perf_counter()
        self._progress(f"{name} ...")

    def end(self, events: int) -> None:
        seconds = time.perf_counter() - self._began
        self._progress(f"{self._name}: {events:,} events, {seconds:.1f} s")
