"""Rows with lists of events as one row an event, a slice at a time."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl
from polars.io.plugins import register_io_source

_EVENTS_IN_SLICE = 1 << 20


def exploded(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Return a row for each element of the lists of a frame, in their order, with the other columns repeated.

    polars' own `explode` holds the elements of many rows in memory when it streams a Parquet file; this one holds those
    of some rows, about a million elements, or the elements of one row if it has more.

    Args:
        frame: A scan of which slices are cheap. All list columns have equally long lists in each row.
    """
    types = frame.collect_schema()
    schema = {name: dtype.inner if isinstance(dtype, pl.List) else dtype for name, dtype in types.items()}
    lists = [name for name, dtype in types.items() if isinstance(dtype, pl.List)]
    lengths = pl.col(lists[0]).list.len().cast(pl.Int64)

    def slices(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        names = list(schema) if with_columns is None else with_columns
        rows, elements = frame.select(pl.len(), elements=lengths.sum()).collect(engine="streaming").row(0)
        size = max(rows * _EVENTS_IN_SLICE // max(elements or 0, 1), 1)
        # Without a list the other columns would not be repeated.
        read = names if set(names) & set(lists) else [*names, lists[0]]
        for start in range(0, rows, size):
            # An empty list has no elements, but `explode` makes a null of it.
            part = frame.slice(start, size).filter((lengths > 0).fill_null(True)).select(read)
            found = part.explode([name for name in read if name in lists]).collect()
            found = found.select(names).head(len(found) if n_rows is None else n_rows)
            n_rows = None if n_rows is None else n_rows - len(found)
            yield found if predicate is None else found.filter(predicate)
            if n_rows == 0:
                return

    return register_io_source(slices, schema=schema)
