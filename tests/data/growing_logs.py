"""A small log that grows: its files, and what a store has of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from seqrec import EventStore, Schema

SCHEMA = Schema(events={"kind": "categorical", "score": "numeric"})
Row = tuple[Any, Any, int, str, float | None]
OLD: list[Row] = [(1, 1, 5, "a", 1.0), (1, 2, 7, "b", 2.0), (1, 3, 9, "b", 2.0), (2, 2, 5, "a", None)]
NEW: list[Row] = [(1, 9, 8, "c", 3.0), (1, 3, 9, "b", 2.0), (3, 1, 10, "a", 1.0), (2, 1, 11, "a", None)]


def write(folder: Path, name: str, rows: list[Row], others: dict[str, Any] | None = None) -> str:
    """Write rows as a file, and before them columns that the schema does not know, each of one value."""
    columns = ["user_id", "item_id", "timestamp", "kind", "score"]
    types = {} if rows else {"user_id": pl.Int64, "item_id": pl.Int64}
    types |= {"timestamp": pl.Int64, "kind": pl.String, "score": pl.Float64}
    frame = pl.DataFrame(rows, schema=columns, orient="row", schema_overrides=types)
    frame.select(*(pl.lit(value).alias(name) for name, value in (others or {}).items()), *columns).write_parquet(
        folder / name
    )
    return str(folder / name)


def events(store: EventStore) -> dict[Any, list[tuple[Any, ...]]]:
    """Each user's events in order, in the log's own ids and values."""
    frame = store.frame(None, 0, store.num_events)
    return {user: part.rows() for (user,), part in frame.group_by("user_id", maintain_order=True)}


def files_of(store: EventStore) -> dict[str, bytes]:
    """All files of a store but those that it does not know."""
    names = ["manifest.json", *store.manifest["files"]]
    return {name: (store.directory / name).read_bytes() for name in names}
