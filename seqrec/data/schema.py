"""The interaction frame, which every source yields and `prepare` reads.

A polars LazyFrame, one event a row:

| column | type | meaning |
|---|---|---|
| `user_id` | Int64 or String, never null | the log's own id of the user |
| `item_id` | Int64 or String, never null | the log's own id of the item |
| `timestamp` | Int64, never null | time in the log's unit; the column is absent where the log has no times |
| any other | any | features: the event filter sees them, and the store keeps those of `Filters.event_features` |

Row order is log order: it orders a user's events where there are no timestamps, and where timestamps tie.
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
    """Refuse a frame whose columns are not those of an interaction frame.

    Args:
        frame: What a source yielded.
        origin: The source's name, for the message.

    Raises:
        InputError: a column is missing or of another type.
    """
    import polars as pl

    schema = frame.collect_schema()
    for column in (USER_ID, ITEM_ID):
        if column not in schema:
            raise InputError(f"source {origin} yields no column {column!r}; it yields {', '.join(schema)}")
        if schema[column] not in (pl.Int64, pl.String):
            raise InputError(f"source {origin}: {column} is {schema[column]}; it must be Int64 or String")
    if TIMESTAMP in schema and schema[TIMESTAMP] != pl.Int64:
        raise InputError(f"source {origin}: {TIMESTAMP} is {schema[TIMESTAMP]}; it must be Int64")
