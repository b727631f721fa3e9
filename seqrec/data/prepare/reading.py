"""The first stage: read a source's log, batch after batch, to the spool."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqrec.data.prepare.filters import Filters
from seqrec.data.prepare.spool import EVENT_BYTES, IntegerColumn, RawColumn, Spool, TextColumn, Workspace
from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID, check_interactions
from seqrec.data.sources.checking import reading
from seqrec.data.sources.source import Source
from seqrec.errors import InputError

# Rows of a batch: enough to spend the time in numpy, and few enough for a processor's cache.
CHUNK_EVENTS = 1 << 20
# Memory that polars needs to stream a table, measured with 1 to 32 threads: a base, plus an amount per thread.
_POLARS_BYTES = 256 << 20
_POLARS_BYTES_PER_THREAD = 32 << 20
# Name of the condition's column. The log's own columns have no line break in their names.
_KEPT = "kept\nby the event filter"


def read_log(source: Source, work: Workspace) -> tuple[Spool, list[dict[str, Any]]]:
    """Spool the events that meet the event filter.

    Returns:
        The spool, and name and size in bytes of each of the source's files.

    Raises:
        InputError: if the log cannot be read, changes while it is read, lacks a column that the filters need, or has
            no event.
    """
    filters, progress = work.filters, work.progress
    buffers = _POLARS_BYTES + _POLARS_BYTES_PER_THREAD * pl.thread_pool_size()
    work.limit.require(buffers, "the buffers of polars (fewer with a smaller POLARS_MAX_THREADS)")
    title = source.name or type(source).__name__
    origin = f"source {title}"
    before = _state(source.files())
    with reading(origin, "an interaction log"):
        frame = source.scan(progress)
        check_interactions(frame, title)
        schema = frame.collect_schema()
    # A source that downloads its files has none before.
    before = before or _state(source.files())
    _check_filters(filters, schema)
    _refuse_lacking_columns(filters, source)
    for note in source.notes:
        progress.note(note)
    for left_out in source.malformed:
        progress.note(
            f"{left_out.file}: left out {left_out.count:,} malformed of {left_out.rows:,} rows: "
            + "; ".join(left_out.places)
        )
    total = sum(size for size, *_ in before.values())
    work.needed = total if source.num_rows is None else EVENT_BYTES * source.num_rows
    spool = _new_spool(work.folder / "log", schema, filters)
    first, *others = [*before, title]
    name = f"reading {first}" + (f" and {len(others) - 1} more" if len(others) > 1 else "")
    try:
        for batch in progress.track(name, _batches(frame, schema, filters, origin), total=source.num_rows):
            _append(spool, batch, filters, origin)
    except InputError:
        # If a file has changed, that is the cause of any error of polars.
        _refuse_change(before, source)
        raise
    _refuse_change(before, source)
    _check_rows(spool, source, filters, origin)
    return spool, [{"name": file, "bytes": size} for file, (size, *_) in before.items()]


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


def _check_filters(filters: Filters, schema: pl.Schema) -> None:
    if filters.duplicates != "keep" and TIMESTAMP not in schema:
        raise InputError(f"filters.duplicates={filters.duplicates!r} needs timestamps, but this log has none; use keep")
    for name in filters.event_features:
        if name not in schema:
            raise InputError(f"filters.event_features: no column {name!r}; columns: {', '.join(schema)}")
        if _numpy_type(schema[name]) is None:
            raise InputError(
                f"filters.event_features: {name!r} is {schema[name]}; "
                "it must be integers of at most 64 bits, floats or booleans"
            )


def _refuse_lacking_columns(filters: Filters, source: Source) -> None:
    """Refuse filters that need a column which only some files have; the events of the others would be dropped."""
    needed = dict.fromkeys(filters.event_features, "filters.event_features")
    if filters.event_filter is not None:
        with suppress(pl.exceptions.PolarsError):  # `_event_condition` refuses it with the reason
            names = pl.sql_expr(filters.event_filter).meta.root_names()
            needed |= dict.fromkeys(names, f"filters.event_filter={filters.event_filter!r}")
    for name, argument in needed.items():
        if name in source.lacking:
            raise InputError(
                f"{argument} needs the column {name!r}, which {source.lacking[name]} does not have though other files "
                "of the log do; give the column one name in all files, or leave that file out"
            )


def _numpy_type(dtype: pl.DataType) -> np.dtype[Any] | None:
    kinds: dict[Any, Any] = {pl.Boolean: np.bool_, pl.Float32: np.float32, pl.Float64: np.float64}
    kinds |= {pl.Int8: np.int8, pl.Int16: np.int16, pl.Int32: np.int32, pl.Int64: np.int64}
    kinds |= {pl.UInt8: np.uint8, pl.UInt16: np.uint16, pl.UInt32: np.uint32, pl.UInt64: np.uint64}
    return np.dtype(kinds[dtype]) if dtype in kinds else None


def _new_spool(folder: Path, schema: pl.Schema, filters: Filters) -> Spool:
    folder.mkdir()
    users, items = (
        (TextColumn if schema[name] == pl.String else IntegerColumn)(folder / name) for name in (USER_ID, ITEM_ID)
    )
    times = IntegerColumn(folder / TIMESTAMP) if TIMESTAMP in schema else None
    features = {}
    for place, name in enumerate(filters.event_features):
        dtype = _numpy_type(schema[name])
        assert dtype is not None
        features[name] = RawColumn(folder / f"feature_{place}", dtype)
    return Spool(folder, users, items, times, features)


def _batches(frame: pl.LazyFrame, schema: pl.Schema, filters: Filters, origin: str) -> Iterator[pl.DataFrame]:
    # All rows of the log. A column shows whether they meet the event filter, so all rows can be counted.
    columns: list[Any] = [name for name in (USER_ID, ITEM_ID, TIMESTAMP) if name in schema]
    columns += filters.event_features
    if filters.event_filter is not None:
        columns.append(_event_condition(frame, filters.event_filter).alias(_KEPT))
    with _collecting(origin, filters):
        batches = frame.select(columns).collect_batches(
            chunk_size=CHUNK_EVENTS, maintain_order=True, engine="streaming"
        )
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
            raise _filter_error(filters.event_filter, error) from error


def _event_condition(frame: pl.LazyFrame, event_filter: str) -> pl.Expr:
    # Refuses a condition that is not SQL, that names an unknown column, or that is not true or false.
    try:
        condition = pl.sql_expr(event_filter)
        kind = frame.select(condition.alias("condition")).collect_schema()["condition"]
    except pl.exceptions.PolarsError as error:
        raise _filter_error(event_filter, error, frame.collect_schema().names()) from error
    if kind != pl.Boolean:
        raise InputError(
            f"filters.event_filter={event_filter!r} gives {kind}; it must be true or false, as in rating >= 4"
        )
    return condition


def _filter_error(event_filter: str, error: Exception, columns: list[str] | None = None) -> InputError:
    reason = str(error).strip().split("\n")[0].split("; valid columns")[0]
    known = f"; columns: {', '.join(columns)}" if columns else ""
    return InputError(f"filters.event_filter={event_filter!r}: {reason}{known}")


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
    for name, feature in spool.features.items():
        feature.append(_feature(batch[name], name))
    spool.lengths.append(len(batch))


def _feature(values: pl.Series, name: str) -> NDArray[Any]:
    if values.null_count() and not values.dtype.is_float():
        raise InputError(
            f"filters.event_features: {name!r} ({values.dtype}) has an event without a value; "
            f"keep events that have one, as in event_filter: {name} IS NOT NULL"
        )
    return values.to_numpy()


def _check_rows(spool: Spool, source: Source, filters: Filters, origin: str) -> None:
    if source.num_rows is not None and source.num_rows != spool.rows:
        raise InputError(
            f"{origin}: {source.num_rows:,} rows were counted first, {spool.rows:,} were read then; "
            "prepare again when the log is complete"
        )
    if spool.num_events == 0:
        asked = filters.event_filter
        raise InputError(
            "the log has no events" if asked is None else f"filters.event_filter={asked!r} keeps no event; loosen it"
        )
