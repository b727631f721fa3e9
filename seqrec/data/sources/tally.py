"""Counting rows of a log that meet conditions, in one pass that holds a batch of rows at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from seqrec.data.progress import Stage

if TYPE_CHECKING:
    import polars as pl

# How many rows of a kind are told by number.
PLACES = 5
_ROWS_IN_BATCH = 1 << 18


@dataclass(frozen=True)
class Tally:
    """What one pass over a frame found.

    Attributes:
        rows: Rows of the frame.
        counts: By condition, how many rows meet it.
        first: By condition, numbers from 0 of the first few rows that meet it, ascending.
    """

    rows: int
    counts: dict[str, int]
    first: dict[str, list[int]]


def tally(frame: pl.LazyFrame, conditions: Mapping[str, pl.Expr], stage: Stage) -> Tally:
    """Count the rows of a frame, and those that meet each condition.

    Args:
        frame: Any frame; only the columns that the conditions need are read.
        conditions: Boolean expressions by name, of which one at least depends on a column.
        stage: Told of every batch.
    """
    import polars as pl

    rows = 0
    counts = dict.fromkeys(conditions, 0)
    first: dict[str, list[int]] = {name: [] for name in conditions}
    flags = frame.select(**{name: condition.fill_null(False) for name, condition in conditions.items()})
    for batch in flags.collect_batches(chunk_size=_ROWS_IN_BATCH, engine="streaming", lazy=True):
        for name, found in batch.sum().row(0, named=True).items():
            # The sum of no rows is None.
            if found and len(first[name]) < PLACES:
                numbers = batch.select(pl.arg_where(pl.col(name))).to_series().head(PLACES - len(first[name]))
                first[name] += [rows + number for number in numbers]
            counts[name] += found or 0
        rows += len(batch)
        stage.advance(len(batch))
    return Tally(rows, counts, first)
