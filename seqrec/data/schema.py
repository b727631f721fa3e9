"""The interaction frame, which every source returns and `prepare` reads.

A polars LazyFrame, one event a row:

| column | type | meaning |
|---|---|---|
| `user_id` | Int64 or String, never null | the log's own id of the user |
| `item_id` | Int64 or String, never null | the log's own id of the item |
| `timestamp` | Int64, never null | time in the log's unit; the column is absent if the log has no times |
| any other | any | features for the event filter; the store keeps those in `Filters.event_features` |

Row order is log order. It orders a user's events if the log has no timestamps, and if timestamps tie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqrec.errors import InputError

if TYPE_CHECKING:
    import polars as pl

USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"


def check_interactions(frame: pl.LazyFrame, origin: str) -> None:
    """Refuse a frame without the columns of an interaction frame.

    Raises:
        InputError: if a column is missing or has another type.
    """
    schema = {name: str(dtype) for name, dtype in frame.collect_schema().items()}
    for column in (USER_ID, ITEM_ID):
        if column not in schema:
            raise InputError(f"source {origin} yields no column {column!r}; it yields {', '.join(schema)}")
        if schema[column] not in ("Int64", "String"):
            raise InputError(f"source {origin}: {column} is {schema[column]}; it must be Int64 or String")
    if schema.get(TIMESTAMP, "Int64") != "Int64":
        raise InputError(f"source {origin}: {TIMESTAMP} is {schema[TIMESTAMP]}; it must be Int64")
