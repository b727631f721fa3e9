"""The stages of preparation in their order, from a source to the files of a store. E events, U users."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seqrec.data.prepare.disk import Workspace
from seqrec.data.prepare.filters import Filters
from seqrec.data.prepare.k_core import Core, core_blocks, k_core
from seqrec.data.prepare.memory import MemoryLimit
from seqrec.data.prepare.numbering import Numbering, RawIntegers, number_ids
from seqrec.data.prepare.ordering import (
    BlockSpool,
    DuplicateCount,
    ordered_blocks,
    ordering_bytes,
    refuse_duplicates,
)
from seqrec.data.prepare.partitions import Partitions, column_types
from seqrec.data.prepare.reading import read_log
from seqrec.data.prepare.spool import RawColumn, Spool
from seqrec.data.prepare.writing import write_columns, write_vocabulary
from seqrec.data.progress import Progress
from seqrec.data.sources.source import Source
from seqrec.data.store import ArrayFile, write_manifest
from seqrec.errors import InputError

ORDER = {
    True: "a user's events by timestamp, ties in log order; users and items numbered by external id",
    False: "a user's events in log order; users and items numbered by external id",
}
# Bytes of a user's or item's id, and of a user's offset, in the store; texts may be longer.
_ID_BYTES = 16
# Bytes of memory for each user and item while a filter counts its events: the count, and whether it stays.
_COUNT_BYTES = 10


@dataclass(frozen=True)
class _Work:
    # What every stage needs.
    filters: Filters
    directory: Path
    workspace: Workspace
    limit: MemoryLimit
    progress: Progress


@dataclass(frozen=True)
class _Numbered:
    # A log whose users and items have numbers, and whose events lie in partitions.
    users: Numbering
    items: Numbering
    types: dict[str, np.dtype[Any]]
    partitions: Partitions
    num_events: int


def write_store_of(
    source: Source,
    filters: Filters,
    directory: Path,
    workspace: Workspace,
    limit: MemoryLimit,
    progress: Progress,
    settings: dict[str, Any],
) -> None:
    """Write the store of a log into an empty folder.

    Args:
        source: The log.
        filters: What to keep of it.
        directory: Where the store goes.
        workspace: Where everything else goes; its folder is left empty.
        limit: Memory.
        progress: Told stages.
        settings: What the manifest says of source and filters.

    Raises:
        InputError: the log cannot be read, nothing of it is left, or the memory does not suffice.
        StoreError: the disk is too small.
    """
    work = _Work(filters, directory, workspace, limit, progress)
    spool, source_files = read_log(source, filters, workspace, limit, progress)
    log = _partition(spool, work)
    duplicates = DuplicateCount()
    # Of raw ids only counting tells which occur.
    write = _write_all if filters.keeps_every_event and not filters.as_published_raw_ids else _write_core
    core, files = write(log, duplicates, work)
    files += write_vocabulary(directory, "user_vocabulary", log.users, core.users)
    files += write_vocabulary(directory, "item_vocabulary", log.items, core.catalogue[1:])
    has_times = "timestamps" in log.types
    counts = {
        "users": int(np.count_nonzero(core.users)),
        "items": int(np.count_nonzero(core.catalogue)),
        "events": core.num_events,
        "rows_read": spool.rows,
        "events_after_filter": log.num_events,
        "duplicates": duplicates.count if has_times else None,
    }
    if filters.as_published_raw_ids:
        counts["items_that_occur"] = int(np.count_nonzero(core.items))
    progress.note("making the store last on disk ...")
    extra = {
        "features": list(filters.event_features),
        **settings,
        "order": ORDER[has_times],
        "source_files": source_files,
        "malformed": [asdict(malformed) for malformed in source.malformed],
    }
    write_manifest(directory, files, counts, extra)


def _partition(spool: Spool, work: _Work) -> _Numbered:
    num_events = spool.num_events
    with work.progress.stage("listing users", num_events) as stage:
        users = number_ids(spool.users, spool.lengths, work.limit, "users", stage)
    if work.filters.as_published_raw_ids:
        items: Numbering = RawIntegers(spool.items, work.limit)
    else:
        with work.progress.stage("listing items", num_events) as stage:
            items = number_ids(spool.items, spool.lengths, work.limit, "items", stage)
    rows = RawColumn(work.workspace.folder / "user_rows", users.dtype)
    lengths = np.zeros(users.size, np.int64)
    with work.progress.stage("counting the users' events", num_events) as stage:
        for chunk, length in enumerate(spool.lengths):
            of_chunk = users.ids(chunk) - users.dtype.type(1)
            np.add.at(lengths, of_chunk, 1)
            rows.append(of_chunk)
            stage.advance(length)
    types = column_types(spool, items)
    _require_disk(num_events, users.size, items.size, types, work)
    partitions = Partitions(work.workspace.folder, lengths, types)
    largest, user_row = partitions.largest()
    work.limit.require(
        largest * ordering_bytes(types),
        f"{largest:,} events that must be ordered at a time (of user_id={users.external_id(user_row + 1)!r})",
    )
    with work.progress.stage("bringing users together", num_events) as stage:
        partitions.fill(spool, rows, items, stage)
    spool.delete()
    rows.delete()
    return _Numbered(users, items, types, partitions, num_events)


def _require_disk(
    num_events: int, num_users: int, num_items: int, types: dict[str, np.dtype[Any]], work: _Work
) -> None:
    # Partitions come beside the spool, which then makes room for the store or, where events are dropped, for the
    # ordered events, beside which the store comes when the partitions are gone.
    folder = work.workspace.folder
    spooled = sum(file.stat().st_size for file in folder.iterdir())
    store = num_events * sum(dtype.itemsize for dtype in types.values())
    partitions = store + num_events * np.dtype(np.uint16).itemsize
    store += _ID_BYTES * (num_users + num_items)
    more = max(partitions, partitions + store - spooled)
    work.workspace.needed = spooled + more
    work.workspace.require(more)


def _write_all(log: _Numbered, duplicates: DuplicateCount, work: _Work) -> tuple[Core, list[ArrayFile]]:
    # Ordered events go straight to the store.
    core = Core.of_all(log.users.size, log.items.size, log.num_events)
    with work.progress.stage("ordering and writing", log.num_events) as stage:
        blocks = ordered_blocks(log.partitions, work.filters.duplicates, duplicates, stage)
        files = write_columns(work.directory, blocks, core, log.types)
    log.partitions.delete()
    _tell_duplicates(log, duplicates, work)
    return core, files


def _write_core(log: _Numbered, duplicates: DuplicateCount, work: _Work) -> tuple[Core, list[ArrayFile]]:
    # How many events stay, which a file of the store says first, is known only when all are ordered and counted.
    ordered, oldest = BlockSpool(work.workspace.folder, "ordered"), work.filters.as_published_oldest_events
    with work.progress.stage("ordering", log.num_events) as stage:
        for block in ordered_blocks(log.partitions, work.filters.duplicates, duplicates, stage):
            ordered.append(block if oldest is None else block.oldest(oldest))
    log.partitions.delete()
    _tell_duplicates(log, duplicates, work)
    if oldest is not None:
        repeated = duplicates.count if work.filters.duplicates == "drop" else 0
        newer = log.num_events - repeated - ordered.num_events
        work.progress.note(f"as published: {newer:,} events newer than a user's oldest {oldest:,} dropped")
    work.limit.require(_COUNT_BYTES * (log.users.size + log.items.size), "counts of users and items")
    core = k_core(ordered, log.users.size, log.items.size, work.filters, work.workspace.folder, work.progress)
    if core.num_events == 0:
        spoken = ", ".join(f"{name}={value!r}" for name, value in asdict(work.filters).items())
        raise InputError(f"no event of {log.num_events:,} is left after the filters {spoken}; loosen them")
    with work.progress.stage("writing", ordered.num_events) as stage:
        files = write_columns(work.directory, core_blocks(ordered, core, stage), core, log.types)
    ordered.delete()
    return core, files


def _tell_duplicates(log: _Numbered, duplicates: DuplicateCount, work: _Work) -> None:
    if work.filters.duplicates == "refuse":
        refuse_duplicates(duplicates, log.users.external_id, log.items.external_id)
    if duplicates.count:
        done = "dropped" if work.filters.duplicates == "drop" else "kept"
        work.progress.note(
            f"{duplicates.count:,} events repeat user, item and timestamp of an earlier one: {done}"
        )
