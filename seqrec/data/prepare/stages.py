"""The stages of preparation in their order, from a source to the files of a store. E events, U users."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqrec.data.array_files import ArrayFile, write_arrays
from seqrec.data.manifest import write_manifest
from seqrec.data.prepare.columns import Codes, count_missing
from seqrec.data.prepare.k_core import Core, core_blocks, k_core
from seqrec.data.prepare.memory import MemoryLimit
from seqrec.data.prepare.numbering import Numbering, Prefixed, RawIntegers, WithListed, number_ids
from seqrec.data.prepare.ordering import Block, BlockSpool, DuplicateCount, Ordering, ordered_block, ordering_bytes
from seqrec.data.prepare.partitions import Partitioning, Partitions, bring_together, column_types, largest, user_bounds
from seqrec.data.prepare.reading import read_log
from seqrec.data.prepare.spool import IntegerColumn, RawColumn, Spool, SpooledColumn, TextColumn, Workspace, use_prefix
from seqrec.data.prepare.tables import OpenedTable, listed_ids, open_tables, write_table_columns, write_vocabulary
from seqrec.data.schema import EVENTS, ITEMS, USERS, file_names
from seqrec.data.sources.source import Source
from seqrec.data.tasks import own_name
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError

ORDER = {
    True: "a user's events by timestamp, ties in log order; users and items numbered by external id",
    False: "a user's events in log order; users and items numbered by external id",
}
# Bytes of a user's or item's id, and of a user's offset, in the store; texts may be longer.
_ID_BYTES = 16
# Each worker holds a numbering: a table of a range of integers takes less than 1 GiB then.
_EVENTS_FOR_TABLE = 1 << 24
# Bytes of memory for each user and item while a filter counts its events: the count, and whether it stays.
_COUNT_BYTES = 10


@dataclass(frozen=True)
class _Numbered:
    # A log with numbered users and items, and with its events in partitions.
    users: Numbering
    items: Numbering
    partitioning: Partitioning
    parts: list[Partitions]
    columns: dict[str, SpooledColumn]
    num_events: int
    duplicates: DuplicateCount = field(default_factory=DuplicateCount)
    # Events of the store without a value, by the columns' names in `types`.
    missing: Counter[str] = field(default_factory=Counter)

    @property
    def types(self) -> dict[str, np.dtype[Any]]:
        return self.partitioning.types


def write_store_of(source: Source, settings: dict[str, Any], directory: Path, work: Workspace) -> None:
    """Write the store of a log into `directory`, with `settings` in its manifest."""
    filters = work.filters
    tables = {group: open_tables(source, group, work) for group in (ITEMS, USERS)}
    spools, source_files = read_log(source, work)
    rows_read = sum(spool.rows for spool in spools)
    log = _partition([spool for spool in spools if spool.lengths], tables[ITEMS], work)
    # Which of the listed ids occur is only known when all events are counted.
    write = _write_all if filters.keeps_every_event and log.items.listed is None else _write_core
    core, files = write(log, directory, work)
    files += _write_vocabulary(directory, "user_vocabulary", log.users, core.users)
    files += _write_vocabulary(directory, "item_vocabulary", log.items, core.catalogue[1:])
    described, more = _event_columns(directory, log)
    columns, files = {EVENTS: described}, files + more
    notes = [*source.notes, *_count_notes(source, rows_read, log, work)]
    for group, stem in ((ITEMS, "item_vocabulary"), (USERS, "user_vocabulary")):
        ids = Vocabulary.open(directory, stem)
        columns[group], more, found = write_table_columns(group, tables[group], ids, directory, work)
        files, notes = files + more, notes + found
    has_times = "timestamps" in log.types
    counts = {
        "users": int(np.count_nonzero(core.users)),
        "items": int(np.count_nonzero(core.catalogue)),
        "events": core.num_events,
        "rows_read": rows_read,
        "events_after_filter": log.num_events,
        "duplicates": log.duplicates.count if has_times else None,
    }
    if log.items.listed is not None:
        counts["items_that_occur"] = int(np.count_nonzero(core.items))
    work.progress.note("making the store last on disk ...")
    extra = {
        "columns": {group: entries for group, entries in columns.items() if entries},
        **settings,
        "order": ORDER[has_times],
        "source_files": [*source_files, *_table_files(source, tables)],
        "malformed": [asdict(malformed) for malformed in source.malformed],
        "notes": notes,
    }
    write_manifest(directory, {file.path.name: file.finish() for file in files}, counts, extra)


def _count_notes(source: Source, rows: int, log: _Numbered, work: Workspace) -> list[str]:
    """Return which counts of the log differ from the published ones, in sentences, and show them."""
    counts, filters = source.published, work.filters
    if counts is None:
        return []
    found = {"rows": (rows + sum(left.count for left in source.malformed), counts.rows)}
    if filters.event_filter is None:
        found["users"] = (log.users.size, counts.users)
        if not filters.as_published_raw_ids and not filters.items_without_events:
            found["items"] = (log.items.size, counts.items)
    different = [f"{got:,} {what}, published are {n:,}" for what, (got, n) in found.items() if n not in (None, got)]
    if not different:
        return []
    note = f"{source.name}: {'; '.join(different)} ({counts.origin}): part of the log, or another version of it"
    work.progress.note(note)
    return [note]


def _partition(spools: list[Spool], tables: list[OpenedTable], work: Workspace) -> _Numbered:
    # Number users and items, and write the events of neighbouring users together.
    num_events = sum(spool.num_events for spool in spools)
    columns = spools[0].columns
    use_prefix(work, EVENTS, columns)
    for name, column in columns.items():
        if column.codes is not None and len(spools) > 1:
            Codes.unite([codes for spool in spools if (codes := spool.columns[name].codes) is not None])
    users = _number("users", spools, num_events, work)
    if work.filters.as_published_raw_ids:
        items: Numbering = RawIntegers([spool.items for spool in spools], work.limit)
    else:
        items = _number("items", spools, num_events, work)
    if work.filters.items_without_events:
        items = WithListed(items, listed_ids(tables, work, is_text=items.is_text), work.limit, "items")
    stage = work.progress.stage("counting the users' events", num_events)
    lengths = np.zeros(users.size, np.int64)
    for spool, user_rows in zip(spools, work.tasks.map(stage, _user_rows, users, spools), strict=True):
        spool.user_rows = user_rows
        lengths += user_rows[1].mapped()
    types = column_types(spools[0], items)
    how = Partitioning(work.folder / "partitions", user_bounds(lengths), items, types)
    how.folder.mkdir()
    _require_disk(num_events, users.size + items.size, types, work)
    most, user_row = largest(lengths, how.users)
    work.limit.require(
        most * ordering_bytes(types),
        f"{most:,} events that must be ordered at a time (of user_id={users.external_id(user_row + 1)!r})",
    )
    stage, parts = work.progress.stage("bringing users together", num_events), []
    for spool, part in zip(spools, work.tasks.map(stage, bring_together, how, spools), strict=True):
        shutil.rmtree(spool.folder)
        parts.append(part)
    # The rest is of attempts that were lost.
    shutil.rmtree(work.folder / "log", ignore_errors=True)
    return _Numbered(users, items, how, parts, columns, num_events)


def _number(what: str, spools: list[Spool], num_events: int, work: Workspace) -> Numbering:
    columns = [_ids_of(spool, what) for spool in spools]
    stage = work.progress.stage(f"listing {what}", num_events)
    if len(spools) == 1:
        chunks = (columns[0].values(chunk) for chunk in spools[0].chunks(stage.advance))
        numbering = number_ids(columns, chunks, num_events, work.limit, what)
        stage.end()
    else:
        runs = work.tasks.map(stage, _distinct, (what, work.limit), spools)
        numbering = number_ids(columns, runs, min(num_events, _EVENTS_FOR_TABLE), work.limit, what)
    if work.prefix is None:
        return numbering
    prefix = work.prefix.user_vocabulary if what == "users" else work.prefix.item_vocabulary
    return Prefixed(numbering, prefix, work.limit, what)


def _ids_of(spool: Spool, what: str) -> IntegerColumn | TextColumn:
    return spool.users if what == "users" else spool.items


def _distinct(
    ids: tuple[str, MemoryLimit], spool: Spool, advance: Callable[[int], None]
) -> NDArray[np.int64] | pl.Series:
    # The distinct ids of a part of a log, in ascending order.
    what, limit = ids
    column = _ids_of(spool, what)
    runs = (column.values(chunk) for chunk in spool.chunks(advance))
    numbering = number_ids([column], runs, min(spool.num_events, _EVENTS_FOR_TABLE), limit, what)
    found = pl.concat(pl.Series(block) for block in numbering.blocks(np.ones(numbering.size, np.bool_)))
    return found if numbering.is_text else found.to_numpy()


def _user_rows(users: Numbering, spool: Spool, advance: Callable[[int], None]) -> tuple[RawColumn, RawColumn]:
    # User row of each event in log order, and (U,) events of each user.
    rows = RawColumn(own_name(spool.folder), users.dtype)
    lengths = np.zeros(users.size, np.int64)
    for chunk in spool.chunks(advance):
        of_chunk = users.ids(spool.users, chunk) - users.dtype.type(1)
        np.add.at(lengths, of_chunk, 1)
        rows.append(of_chunk)
    counts = RawColumn(own_name(spool.folder), np.min_scalar_type(spool.num_events))
    counts.append(lengths.astype(counts.dtype))
    return rows, counts


def _require_disk(num_events: int, num_ids: int, types: dict[str, np.dtype[Any]], work: Workspace) -> None:
    # First the spool and the partitions exist. Then the spool is deleted, and the store is written next to the
    # partitions. If events are dropped, the ordered events come before the store, which replaces the partitions.
    spooled = sum(file.stat().st_size for file in work.folder.rglob("*") if file.is_file())
    store = num_events * sum(dtype.itemsize for dtype in types.values())
    partitions = store + num_events * np.dtype(np.uint16).itemsize
    store += _ID_BYTES * num_ids
    more = max(partitions, partitions + store - spooled)
    work.needed = spooled + more
    work.require(more)


def _write_all(log: _Numbered, directory: Path, work: Workspace) -> tuple[Core, list[ArrayFile]]:
    # Ordered events go straight to the store.
    core = Core.of_all(log.users.size, log.items.size, log.num_events)
    blocks = _ordered("ordering and writing", log, work)
    return core, _write_columns(directory, blocks, core, log)


def _write_core(log: _Numbered, directory: Path, work: Workspace) -> tuple[Core, list[ArrayFile]]:
    # A file of the store begins with its length, which is known only when all events are ordered and counted.
    ordered, oldest = BlockSpool(work.folder / "ordered"), work.filters.as_published_oldest_events
    for block in _ordered("ordering", log, work):
        ordered.append(block if oldest is None else block.oldest(oldest))
    if oldest is not None:
        repeated = log.duplicates.count if work.filters.duplicates == "drop" else 0
        newer = log.num_events - repeated - ordered.num_events
        work.progress.note(f"as published: {newer:,} events newer than a user's oldest {oldest:,} dropped")
    work.limit.require(_COUNT_BYTES * (log.users.size + log.items.size), "counts of users and items")
    core = k_core(ordered, log.users.size, log.items.size, work, listed=log.items.listed)
    if core.num_events == 0:
        settings = ", ".join(f"{name}={value!r}" for name, value in asdict(work.filters).items())
        raise InputError(f"no event of {log.num_events:,} is left after the filters {settings}; loosen them")
    blocks = work.progress.track("writing", ordered.blocks(), total=ordered.num_events)
    files = _write_columns(directory, core_blocks(blocks, core), core, log)
    shutil.rmtree(ordered.folder)
    return core, files


def _ordered(name: str, log: _Numbered, work: Workspace) -> Iterator[Block]:
    # The blocks of all partitions, which are deleted after the last one. Then all duplicates are known.
    stage, duplicates = work.progress.stage(name, log.num_events), log.duplicates
    how = Ordering(log.parts, work.filters.duplicates)
    for block, found in work.tasks.map(stage, ordered_block, how, range(len(log.parts[0]))):
        duplicates.add(found)
        yield block
    shutil.rmtree(log.partitioning.folder, ignore_errors=True)
    if work.filters.duplicates == "refuse" and duplicates.example is not None:
        row, item_id, time = duplicates.example
        user, item = log.users.external_id(row + 1), log.items.external_id(item_id)
        raise InputError(
            f"filters.duplicates='refuse': {duplicates.count:,} events repeat user, item and timestamp of an earlier "
            f"one, first user_id={user!r}, item_id={item!r}, timestamp={time}; clean the log, or choose drop or keep"
        )
    if duplicates.count:
        done = "dropped" if work.filters.duplicates == "drop" else "kept"
        work.progress.note(f"{duplicates.count:,} events repeat user, item and timestamp of an earlier one: {done}")


def _write_columns(directory: Path, blocks: Iterator[Block], core: Core, log: _Numbered) -> list[ArrayFile]:
    # Events and offsets of the store. The catalogue determines the type of item ids.
    types = {**log.types, "item_ids": np.min_scalar_type(np.count_nonzero(core.catalogue))}
    widths = {f"{EVENTS}.{name}": column.width for name, column in log.columns.items()}
    types |= {name: np.dtype(np.float32) for name, width in widths.items() if width is not None}
    columns = {
        name: ArrayFile(directory, name, dtype, core.num_events, widths.get(name)) for name, dtype in types.items()
    }
    num_users = int(np.count_nonzero(core.users))
    offsets = ArrayFile(directory, "offsets", np.int64, num_users + 1)
    offsets.append(np.zeros(1, np.int64))
    users = written = 0
    for block in blocks:
        assert block.first == users
        users += len(block.lengths)
        for name, values in block.events.items():
            if (width := widths.get(name)) is not None:
                values = values.view(np.float32).reshape(-1, width)
            columns[name].append(values)
            if name in widths:
                log.missing[name] += count_missing(values)
        ends = written + np.cumsum(block.lengths)
        offsets.append(ends)
        written = int(ends[-1]) if len(ends) else written
    return [*columns.values(), offsets]


def _event_columns(directory: Path, log: _Numbered) -> tuple[dict[str, dict[str, Any]], list[ArrayFile]]:
    # Description of each column of events for the manifest, and the files of their vocabularies.
    described, files = {}, []
    for name, column in log.columns.items():
        described[name] = {"kind": column.kind, "missing": log.missing[f"{EVENTS}.{name}"]}
        if column.codes is not None:
            stems = file_names(EVENTS, name, column.kind)
            files += write_vocabulary(directory, stems["vocabulary"], column.codes)
    return described, files


def _table_files(source: Source, tables: dict[str, list[OpenedTable]]) -> list[dict[str, Any]]:
    # Name and size in bytes of each file of tables.
    files = [file for group, opened in tables.items() if opened for file in source.table_files(group)]
    return [{"name": file.as_posix(), "bytes": file.stat().st_size} for file in files]


def _write_vocabulary(directory: Path, stem: str, numbering: Numbering, kept: NDArray[np.bool_]) -> list[ArrayFile]:
    # The external ids for which `kept` (N,) is True, in the form that `Vocabulary.open` reads.
    if isinstance(numbering, Prefixed):
        return write_arrays(directory, numbering.vocabulary.arrays(stem))
    size = int(np.count_nonzero(kept))
    if not numbering.is_text:
        file = ArrayFile(directory, stem, np.int64, size)
        for integers in numbering.blocks(kept):
            file.append(np.asarray(integers))
        return [file]
    offsets = ArrayFile(directory, f"{stem}.offsets", np.int64, size + 1)
    offsets.append(np.zeros(1, np.int64))
    total = 0
    for texts in map(pl.Series, numbering.blocks(kept)):
        ends = total + np.cumsum(texts.str.len_bytes().to_numpy(), dtype=np.int64)
        offsets.append(ends)
        total = int(ends[-1]) if len(ends) else total
    text_bytes = ArrayFile(directory, f"{stem}.bytes", np.uint8, total)
    for texts in map(pl.Series, numbering.blocks(kept)):
        text_bytes.append(np.frombuffer(texts.str.join("").item().encode(), np.uint8))
    return [text_bytes, offsets]
