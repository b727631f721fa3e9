"""Append new events to the store of a log, and compact a store that has grown."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from seqrec.data.array_files import ArrayFile, write_arrays
from seqrec.data.manifest import BEFORE, MANIFEST, read_manifest, segment_folder, segments_of, write_manifest
from seqrec.data.pieces import pieces_of
from seqrec.data.prepare.filters import Changed, Duplicates, Filters, Late
from seqrec.data.prepare.memory import MemoryLimit
from seqrec.data.prepare.prepare import (
    SPOOL,
    check_settings,
    delete_own,
    finish_exchange,
    is_full_disk,
    prepare_unlocked,
    replacing,
    settings_of,
    store_locked,
)
from seqrec.data.progress import Progress, Show
from seqrec.data.schema import ITEMS, USERS, Schema, file_names
from seqrec.data.segments import Layout
from seqrec.data.sources.source import Source
from seqrec.data.sources.table import checked_table
from seqrec.data.store import EventStore
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError, StoreError
from seqrec.files import rename, write_bytes

if TYPE_CHECKING:
    from seqrec.data.prepare.new_segment import Appended

# Events to copy at a time.
COPIED_EVENTS = 1 << 20


def append(
    source: Source,
    filters: Filters,
    directory: Path | str,
    input: str | Sequence[str],
    *,
    schema: Schema = Schema(),  # noqa: B008  # not changed
    duplicates: Duplicates | None = None,
    late: Late = "merge",
    items: str | Mapping[str, Any] | None = None,
    users: str | Mapping[str, Any] | None = None,
    changed: Changed = "refuse",
    memory_limit: int | str | None = None,
    progress: Show | None = None,
    workers: int | str = 1,
) -> EventStore:
    r"""Add new events to a store. They become a segment of it: no file of the store changes.

    - New users and items get the ids after the last. Old ids never move.
    - Filters: the event filter applies to new events. What an earlier count has let in stays. A new user or item is let
      in if it has `min_user_events`, `min_item_events` or `min_history` events among the new ones alone.
    - Events that are older than the newest of their user are merged in the order of time, after the events of equal
      time that the store has.
    - Duplicates are counted, and treated as by `duplicates`.
    - New items and users get their rows of the tables of items and users. Rows of known ones stay. Numbers of columns
      keep the mean and the standard deviation by which they are standardised.

    The store switches when its manifest is replaced, which is the last step: an append that is killed at any moment
    leaves it as before. Whoever has the store open keeps on reading it as it was. Another append, or a preparation,
    waits for this one.

    Time and memory do not grow with the store's events, only with its users and ids, some 40 bytes each. Columns of
    items and users are written anew, whole, if there are new ones. Ids and these columns are hashed before that, so no
    damage gets into the new segment; the events are hashed when the store is opened for training.

    Args:
        source: The log that the store was prepared from, a `Table`; only its path is not read.
        filters: Those of the store.
        directory: The store's folder.
        input: Files with new events: a file, a glob, a folder, or a list of them, with the columns of the log.
        schema: Schema of the store.
        duplicates: Treatment of an event with the user, item and timestamp of an earlier one: "keep", "drop" or
            "refuse"; None is that of the filters.
        late: Treatment of events that are older than the newest of their user in the store: "merge" or "refuse".
        items: Table with the rows of new items: its path, or `path` and `vectors` as in the source's argument of that
            name, the other entries of which stay. None reads the source's table, which may have grown.
        users: Table with the rows of new users, likewise.
        changed: Treatment of other values of known items and users in these tables: "refuse", or "keep" those of the
            store. Missing values are no others.
        memory_limit: As for `prepare`.
        progress: As for `prepare`.
        workers: As for `prepare`; they prepare the new events, which this process merges into the store.

    Returns:
        The store with the new events, opened.

    Raises:
        InputError: if the input cannot be read, was appended before, does not suit the store, or has no event that is
            new; or if an argument is out of range.
        StoreError: if `directory` is not a store of this log, if ids or columns of it are damaged, or if the disk is
            full.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from seqrec import Filters, Table, prepare
        >>> from seqrec.data.prepare import append
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     old, new = Path(folder, "old.csv"), Path(folder, "new.csv")
        ...     _ = old.write_text("user_id,item_id,timestamp\n1,7,10\n2,9,11\n")
        ...     _ = new.write_text("user_id,item_id,timestamp\n2,3,12\n")
        ...     _ = prepare(Table(str(old)), Filters(), f"{folder}/store")
        ...     store = append(Table(str(old)), Filters(), f"{folder}/store", str(new))
        ...     store.num_events, store.item_vocabulary.lookup([7, 9, 3]).tolist()
        (3, [1, 2, 3])
    """
    directory, limit = Path(directory), MemoryLimit(memory_limit)
    inputs = [input] if isinstance(input, str) else list(input)
    kinds = ("duplicates", duplicates, Duplicates), ("late", late, Late), ("changed", changed, Changed)
    for name, value, known in kinds:
        if value is not None and value not in get_args(known):
            raise InputError(f"{name}={value!r} must be one of {', '.join(get_args(known))}")
    _refuse_unsupported(source, filters, schema, inputs)
    treatment = filters.duplicates if duplicates is None else duplicates
    with store_locked(directory):
        finish_exchange(directory)
        # Its ids go into the new segment, with a new digest. To hash the events would take time with the store's size.
        store = EventStore.open(directory, events=False)
        check_settings(directory, store.manifest, settings_of(source, filters, schema))
        fresh = _reading(source, inputs, {ITEMS: items, USERS: users})
        _refuse_known_files(store.manifest["source_files"], fresh, directory)
        with _work_folder(directory) as work:
            kept = Filters(event_filter=filters.event_filter, duplicates=treatment)
            delta = prepare_unlocked(fresh, kept, schema, work / "new", limit, Progress(progress), workers)
            treatments = treatment, late, changed
            _append(store, delta, work, filters, treatments, Progress(progress))
        return EventStore.open_unchecked(directory)


def compact(directory: Path | str, *, progress: Show | None = None) -> EventStore:
    """Rewrite a store that has grown as one segment, with the same ids.

    The new store is written next to the old one, and takes its place at once. Processes that have the old one open keep
    on reading its files.

    Args:
        directory: The store's folder.
        progress: As for `prepare`.

    Returns:
        The store, opened; unchanged if it has one segment.

    Raises:
        StoreError: if `directory` is not a store, if a file of it is damaged, or if the disk is full.
    """
    directory = Path(directory)
    with store_locked(directory):
        finish_exchange(directory)
        store = EventStore.open_unchecked(directory)
        if len(segments_of(store.manifest)) > 1:
            store.verify()
            with _naming_full_disk(directory), replacing(directory) as partial:
                _write_compact(store, partial, Progress(progress))
    return EventStore.open(directory)


def _refuse_unsupported(source: Source, filters: Filters, schema: Schema, inputs: Sequence[str]) -> None:
    if not inputs or not all(inputs):
        raise InputError("input is empty; give the files with new events")
    if source.name != "table":
        raise InputError(f"data.source={type(source).__name__} cannot grow; append needs the source Table")
    for name in ("as_published_oldest_events", "as_published_raw_ids", "items_without_events"):
        if getattr(filters, name):
            raise InputError(f"filters.{name} is set, so the store cannot grow; prepare the whole log again")


def _reading(source: Source, inputs: list[str], tables: Mapping[str, str | Mapping[str, Any] | None]) -> Source:
    """Return a `Table` that reads other files of events, and other tables of items and users if they are given."""
    fresh = copy.copy(source)
    fresh.path = inputs[0] if len(inputs) == 1 else inputs  # type: ignore[attr-defined]  # a Table
    for group, given in tables.items():
        own = getattr(source, group)
        if given is None:
            continue
        if own is None:
            raise InputError(f"{group}={given!r}: the store has no table of {group}; leave it out")
        entries = {"path": given} if isinstance(given, str) else given
        if "vectors" in own and "vectors" not in entries:
            raise InputError(
                f"{group}={given!r} has no vectors, which belong to the rows of the table: give both, as in "
                f"{{path: .., vectors: {{{', '.join(own['vectors'])}: ..}}}}"
            )
        setattr(fresh, group, checked_table(group, {**own, **entries}))
    return fresh


def _refuse_known_files(known: Sequence[dict[str, object]], source: Source, directory: Path) -> None:
    there = {os.path.abspath(str(each["name"])) for each in known}
    for file in source.files():
        if os.path.abspath(file) in there:
            raise InputError(
                f"input: {file} is in {directory} already; give files that are new. A file that has grown is a new "
                "log: prepare the store again, or write its new rows to a file of their own"
            )


def _append(
    store: EventStore,
    delta: EventStore,
    work: Path,
    filters: Filters,
    treatments: tuple[Duplicates, Late, Changed],
    progress: Progress,
) -> None:
    from seqrec.data.prepare.new_segment import write_segment

    with _naming_full_disk(store.directory):
        files, columns, counts = write_segment(store, delta, work, filters, *treatments)
        number = len(segments_of(store.manifest)) + 1
        place = store.directory / segment_folder(number)
        # An append that was killed before it replaced the manifest left it.
        if place.exists():
            shutil.rmtree(place)
        write_bytes(work / "segment" / BEFORE, (store.directory / MANIFEST).read_bytes())
        rename(work / "segment", place)
        try:
            _switch(store, files, columns, counts, delta, number)
        except BaseException:
            # The manifest may have been replaced, and the error have come after that.
            if len(segments_of(read_manifest(store.directory))) < number:
                shutil.rmtree(place)
            raise
    progress.note(
        f"appended {counts.events:,} events; {counts.late:,} were older than the newest of their user, "
        f"{counts.duplicates:,} repeat user, item and timestamp of an earlier one"
        f"{' and were dropped' if counts.duplicates and treatments[0] == 'drop' else ''}"
    )


def _switch(
    store: EventStore, files: dict[str, Any], columns: dict[str, Any], counts: Appended, delta: EventStore, number: int
) -> None:
    """Replace the manifest of a store by one with a further segment, the files of which are in their place."""
    old = store.manifest
    names = [each["name"] for each in delta.manifest["source_files"]]
    segments = [*segments_of(old), {**asdict(counts), "input": names}]
    all_files = {**old["files"], **{f"{segment_folder(number)}/{name}": entry for name, entry in files.items()}}
    layout = Layout(store.directory, {"files": all_files, "segments": segments})
    users, items = (
        len(Vocabulary.open(layout.folder_of(stem), stem)) for stem in ("user_vocabulary", "item_vocabulary")
    )
    read = {name: old["counts"].get(name) for name in ("rows_read", "events_after_filter")}
    added = {name: count + delta.manifest["counts"][name] for name, count in read.items() if count is not None}
    before = old["counts"].get("duplicates")
    if before is not None:
        added["duplicates"] = before + counts.duplicates
    new_counts = {**old["counts"], **added, "users": users, "items": items, "events": store.num_events + counts.events}
    sources = {each["name"]: each for each in (*old["source_files"], *delta.manifest["source_files"])}
    extra = {name: value for name, value in old.items() if name not in ("format", "version", "counts", "files")}
    extra |= {
        "segments": segments,
        "source_files": list(sources.values()),
        "malformed": [*old.get("malformed", []), *delta.manifest["malformed"]],
    }
    if described := {group: entries for group, entries in columns.items() if entries}:
        extra["columns"] = {**old.get("columns", {}), **described}
    write_manifest(store.directory, all_files, new_counts, extra)


def _write_compact(store: EventStore, partial: Path, progress: Progress) -> None:
    files = []
    sources: dict[str, tuple[NDArray[Any], int]] = {"item_ids": (store.item_ids, store.num_items)}
    if store.timestamps is not None:
        sources["timestamps"] = store.timestamps, 0
    columns = [
        (file_names(group, name, column.kind), column)
        for group, own in store.columns.items()
        for name, column in own.items()
    ]
    for stems, column in columns:
        sources[stems["values"]] = column.values, column.num_codes - 1
    for name, (values, largest) in sources.items():
        dtype = np.min_scalar_type(largest) if values.dtype.kind == "u" else values.dtype
        width = values.shape[1] if len(values.shape) > 1 else None
        files.append(ArrayFile(partial, name, dtype, len(values), width))
        for piece in progress.track(f"writing {name}", pieces_of(values, COPIED_EVENTS), total=len(values)):
            files[-1].append(piece)
    arrays: dict[str, NDArray[Any]] = {"offsets": np.asarray(store.offsets)}
    arrays |= store.item_vocabulary.arrays("item_vocabulary") | store.user_vocabulary.arrays("user_vocabulary")
    for stems, column in columns:
        if column.vocabulary is not None:
            arrays |= column.vocabulary.arrays(stems["vocabulary"])
        if column.offsets is not None:
            arrays[stems["offsets"]] = column.offsets
    files += write_arrays(partial, arrays)
    left_out = ("format", "version", "counts", "files", "segments")
    extra = {name: value for name, value in store.manifest.items() if name not in left_out}
    counts = store.manifest["counts"]
    write_manifest(partial, {file.path.name: file.finish() for file in files}, counts, extra)


@contextmanager
def _work_folder(directory: Path) -> Iterator[Path]:
    """Make a folder of temporary files next to a store; it is removed at the end."""
    work = directory.with_name(f"{directory.name}.append")
    delete_own(work)
    (work / SPOOL).mkdir(parents=True)
    try:
        yield work
    finally:
        with suppress(OSError):
            delete_own(work)


@contextmanager
def _naming_full_disk(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        raise StoreError(
            f"writing to {directory.parent} failed ({error.strerror}); the store is as it was: free some space"
        ) from error
