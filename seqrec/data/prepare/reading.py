"""The first stage: read a source's log, batch after batch, to the spool."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from seqrec.data.conditions import condition_error, event_condition
from seqrec.data.prepare.columns import check_type, width_of
from seqrec.data.prepare.filters import Filters
from seqrec.data.prepare.spool import EVENT_BYTES, IntegerColumn, Spool, TextColumn, Workspace, spooled_column
from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID, VECTOR, check_interactions
from seqrec.data.sources.checking import reading
from seqrec.data.sources.source import Part, Source
from seqrec.data.tasks import Tasks, own_name, require_seen
from seqrec.errors import InputError

# Rows of a batch: enough to spend the time in numpy, and few enough for a processor's cache.
CHUNK_EVENTS = 1 << 20
# Memory that polars needs to stream a table, measured with 1 to 32 threads: a base, plus an amount per thread.
_POLARS_BYTES = 256 << 20
_POLARS_BYTES_PER_THREAD = 32 << 20
# Most and least rows of a part of a log that a task reads; between them, each of several workers has so many parts.
PART_ROWS, LEAST_ROWS = 1 << 26, 1 << 20
_PARTS_EACH = 4
# Words in front of a bracket in conditions that look at one row at a time.
_OF_A_ROW = ("in", "and", "or", "not", "when", "then", "else", "abs", "round", "lower", "upper", "length", "coalesce")
# Name of the condition's column. The log's own columns have no line break in their names.
_KEPT = "kept\nby the event filter"
_FILTER = "filters.event_filter"


@dataclass(frozen=True)
class _Reading:
    # Settings of all parts of a log: the types of columns and the widths of vectors are those of the whole log. A part
    # with more than `most` rows makes several spools.
    work: Workspace
    origin: str
    files: tuple[tuple[Path, int], ...]  # with their sizes in bytes
    types: dict[str, pl.DataType]
    widths: dict[str, int]
    most: float


def read_log(source: Source, work: Workspace) -> tuple[list[Spool], list[dict[str, Any]]]:
    """Spool the events that meet the event filter.

    Returns:
        The spools, one after the other in log order, and name and size in bytes of each of the source's files.

    Raises:
        InputError: if the log cannot be read, changes while it is read, lacks a column that the filters or the schema
            need, or has no event.
    """
    filters, progress, wanted = work.filters, work.progress, work.schema.events
    buffers = _POLARS_BYTES + _POLARS_BYTES_PER_THREAD * pl.thread_pool_size()
    work.limit.require(buffers, "the buffers of polars (fewer with a smaller POLARS_MAX_THREADS)")
    title = source.name or type(source).__name__
    origin = f"source {title}"
    before = _state(source.files())
    with reading(origin, "an interaction log"), _checked_by(source, work.tasks):
        frame = source.scan(progress)
        check_interactions(frame, title)
        schema = frame.collect_schema()
    # A source that downloads its files has none before.
    before = before or _state(source.files())
    first, *others = [*before, title]
    files = first + (f" and {len(others) - 1} more" if len(others) > 1 else "")
    _check_columns(filters, wanted, schema, files)
    _refuse_lacking_columns(filters, wanted, source)
    for note in source.notes:
        progress.note(note)
    for left_out in source.malformed:
        progress.note(
            f"{left_out.file}: left out {left_out.count:,} malformed of {left_out.rows:,} rows: "
            + "; ".join(left_out.places)
        )
    total = sum(size for size, *_ in before.values())
    work.needed = total if source.num_rows is None else EVENT_BYTES * source.num_rows
    with reading(origin, "an interaction log"):
        vectors = [name for name, kind in wanted.items() if kind == VECTOR]
        widths = {name: width_of(frame, name, f"schema.events: {name!r}") for name in vectors}
    (work.folder / "log").mkdir()
    parts, most = _parts(source, frame, work)
    source.checked = None
    seen = tuple((Path(name).absolute(), size) for name, (size, *_) in before.items())
    shared = _Reading(replace(work, tasks=Tasks(), prefix=None), origin, seen, dict(schema), widths, most)
    tasks, stage = work.tasks if len(parts) > 1 else Tasks(), progress.stage(f"reading {files}", source.num_rows)
    try:
        spools = [spool for found in tasks.map(stage, _read_part, shared, parts) for spool in found]
    except InputError:
        # If a file has changed, that is the cause of any error of polars.
        _refuse_change(before, source)
        raise
    _refuse_change(before, source)
    _check_rows(spools, source, filters, origin)
    return spools, [{"name": file, "bytes": size} for file, (size, *_) in before.items()]


@contextmanager
def _checked_by(source: Source, tasks: Tasks) -> Iterator[None]:
    source.tasks = tasks
    try:
        yield
    finally:
        del source.tasks


def _state(files: list[Path]) -> dict[str, tuple[int, int, int]]:
    # By name, the size of each file, its time of modification and its number, which differs if it was replaced.
    stats = {file.as_posix(): file.stat() for file in files}
    return {name: (stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats.items()}


def _refuse_change(before: dict[str, tuple[int, int, int]], source: Source) -> None:
    try:
        after = _state(source.files())
    except FileNotFoundError:
        after = {}
    for file in sorted(before.keys() | after.keys()):
        if before.get(file) != after.get(file):
            was = "was removed" if file not in after else "was added" if file not in before else "has changed"
            raise InputError(f"{file} {was} while it was read; prepare again when the log is complete")


def _check_columns(filters: Filters, wanted: dict[str, str], schema: pl.Schema, files: str) -> None:
    if filters.duplicates != "keep" and TIMESTAMP not in schema:
        raise InputError(f"filters.duplicates={filters.duplicates!r} needs timestamps, but this log has none; use keep")
    for name, kind in wanted.items():
        if name not in schema:
            raise InputError(f"schema.events: no column {name!r} in {files}; columns: {', '.join(schema)}")
        check_type(kind, schema[name], f"schema.events: {name!r} of {files}")


def _refuse_lacking_columns(filters: Filters, wanted: dict[str, str], source: Source) -> None:
    """Refuse to need a column that only some files have; the events of the others would be dropped, or lack it."""
    needed = dict.fromkeys(wanted, "schema.events")
    if filters.event_filter is not None:
        with suppress(pl.exceptions.PolarsError):  # `event_condition` refuses it with the reason
            names = pl.sql_expr(filters.event_filter).meta.root_names()
            needed |= dict.fromkeys(names, f"filters.event_filter={filters.event_filter!r}")
    for name, argument in needed.items():
        if name in source.lacking:
            raise InputError(
                f"{argument} needs the column {name!r}, which {source.lacking[name]} does not have though other files "
                "of the log do; give the column one name in all files, or leave that file out"
            )


def _parts(source: Source, frame: pl.LazyFrame, work: Workspace) -> tuple[list[pl.LazyFrame], float]:
    """Return parts of a log for the tasks that read it, and the most rows of a spool; this process alone needs one."""
    if work.tasks.width == 1:
        return [frame], math.inf
    size = PART_ROWS
    if source.num_rows is not None:
        size = min(size, max(LEAST_ROWS, math.ceil(source.num_rows / (_PARTS_EACH * work.tasks.width))))
    # A source of one's own may have changed the frame.
    found = source.checked.parts if source.checked is not None and source.checked.frame is frame else ()
    parts: list[list[pl.LazyFrame]] = []
    rows = size
    for part in found if _is_by_row(work.filters.event_filter) and _can_pickle(found) else ():
        step = size if part.can_slice else max(part.num_rows, 1)
        for start in range(0, part.num_rows, step):
            piece = part.frame.slice(start, step) if part.can_slice else part.frame
            length = min(step, part.num_rows - start)
            # Neighbours that are small together are one part.
            if rows + length <= size:
                parts[-1].append(piece)
                rows += length
            else:
                parts.append([piece])
                rows = length
    if len(parts) < 2:
        work.progress.note("the log is one stream of rows, which this process reads alone")
        return [frame], size
    return [pl.concat(pieces, how="diagonal_relaxed") if len(pieces) > 1 else pieces[0] for pieces in parts], size


def _can_pickle(parts: tuple[Part, ...]) -> bool:
    # A frame that calls Python needs cloudpickle for it, which dask brings.
    try:
        pickle.dumps([part.frame for part in parts])
    except pl.exceptions.ComputeError:
        return False
    return True


def _is_by_row(event_filter: str | None) -> bool:
    """Return whether an event filter needs no other row, which is known of few functions of SQL."""
    return all(name.lower() in _OF_A_ROW for name in re.findall(r"(\w+)\s*\(", event_filter or ""))


def _read_part(shared: _Reading, frame: pl.LazyFrame, advance: Callable[[int], None]) -> list[Spool]:
    work, origin = shared.work, shared.origin
    for file, size in shared.files:
        require_seen(file, size)
    with reading(origin, "an interaction log"):
        # A file may have other types than the log as a whole.
        others = [name for name, dtype in frame.collect_schema().items() if dtype != shared.types[name]]
        frame = frame.with_columns(pl.col(name).cast(shared.types[name]) for name in others)
    spools = [_new_spool(shared)]
    for batch in _batches(frame, work.schema.events, _chunk_events(spools[0]), work.filters, origin):
        if spools[-1].rows >= shared.most:
            spools.append(_new_spool(shared))
        _append(spools[-1], batch, work.filters, origin)
        advance(len(batch))
    return spools


def _new_spool(shared: _Reading) -> Spool:
    folder = own_name(shared.work.folder / "log")
    folder.mkdir()
    users, items = (
        (TextColumn if shared.types[name] == pl.String else IntegerColumn)(folder / name) for name in (USER_ID, ITEM_ID)
    )
    times = IntegerColumn(folder / TIMESTAMP) if TIMESTAMP in shared.types else None
    columns = {}
    for place, (name, kind) in enumerate(shared.work.schema.events.items()):
        file, where = folder / f"column_{place}", f"schema.events: {name!r}"
        width = shared.widths.get(name)
        columns[name] = spooled_column(kind, file, shared.types[name], width, where, shared.work.limit)
    return Spool(folder, users, items, times, columns)


def _chunk_events(spool: Spool) -> int:
    # Vectors take more memory than other columns.
    numbers = sum(column.width or 0 for column in spool.columns.values())
    return max(CHUNK_EVENTS * EVENT_BYTES // (EVENT_BYTES + 4 * numbers), 1)


def _batches(
    frame: pl.LazyFrame, wanted: dict[str, str], chunk: int, filters: Filters, origin: str
) -> Iterator[pl.DataFrame]:
    # All rows of the log. A column shows whether they meet the event filter, so all rows can be counted.
    schema = frame.collect_schema()
    columns: list[Any] = [*(name for name in (USER_ID, ITEM_ID, TIMESTAMP) if name in schema), *wanted]
    if filters.event_filter is not None:
        columns.append(event_condition(frame, filters.event_filter, _FILTER).alias(_KEPT))
    with _collecting(origin, filters):
        batches = frame.select(columns).collect_batches(chunk_size=chunk, maintain_order=True, engine="streaming")
        batch = next(batches, None)
    while batch is not None:
        # Outside of `_collecting`, because an error in writing the spool is not one in reading the log.
        yield batch
        with _collecting(origin, filters):
            batch = next(batches, None)


@contextmanager
def _collecting(origin: str, filters: Filters) -> Iterator[None]:
    # Turn an error of polars into one about the event filter, if the log has one, else about the log.
    with reading(origin, "an interaction log"):
        try:
            yield
        except pl.exceptions.PolarsError as error:
            if filters.event_filter is None:
                raise
            raise condition_error(filters.event_filter, _FILTER, error) from error


def _append(spool: Spool, batch: pl.DataFrame, filters: Filters, origin: str) -> None:
    spool.rows += len(batch)
    if filters.event_filter is not None:
        batch = batch.filter(batch[_KEPT])
    if len(batch) == 0:
        return
    for name, column in ((USER_ID, spool.users), (ITEM_ID, spool.items), (TIMESTAMP, spool.timestamps)):
        if column is None:
            continue
        values = batch[name]
        if values.null_count():
            raise InputError(f"{origin} yields a null in {name}; every event must have one")
        if isinstance(column, TextColumn):
            column.append(values)
        else:
            column.append(values.to_numpy())
    for name, kept in spool.columns.items():
        kept.append(batch[name])
    spool.lengths.append(len(batch))


def _check_rows(spools: list[Spool], source: Source, filters: Filters, origin: str) -> None:
    rows = sum(spool.rows for spool in spools)
    if source.num_rows is not None and source.num_rows != rows:
        raise InputError(
            f"{origin}: {source.num_rows:,} rows were counted first, {rows:,} were read then; "
            "prepare again when the log is complete"
        )
    if not any(spool.num_events for spool in spools):
        asked = filters.event_filter
        raise InputError(
            "the log has no events" if asked is None else f"filters.event_filter={asked!r} keeps no event; loosen it"
        )
