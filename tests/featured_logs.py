"""A generated log whose events have columns, also missing ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars

from seqrec.data.schema import Schema
from seqrec.data.sources import Synthetic, Table

SCHEMA = Schema(events={"tab": "categorical", "watched": "numeric", "looks": "vector"})
NAMES = list(SCHEMA.events)


def featured_log(file: Path, **settings: Any) -> Table:
    """Write the events of `Synthetic` with columns that depend on item and time, and return their table."""
    item, time = polars.col("item_id"), polars.col("timestamp")
    tabs = polars.Series(["home", "search", None, "share"])
    columns = {
        "tab": polars.lit(tabs).gather((item + time) % len(tabs)),
        "watched": polars.when(item % 7 > 0).then((item * 31 + time) % 100),
        "looks": polars.concat_list((item % 5).cast(polars.Float32), (time % 3).cast(polars.Float32)),
    }
    Synthetic(**settings).scan().with_columns(**columns).collect().write_parquet(file)
    return Table(str(file))
