"""Which events, users and items of a log are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID
from seqrec.errors import InputError

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Filters:
    """What to keep of a log, applied in the order: event filter, k-core, minimum history.

    Args:
        min_user_events: Fewest events a user may have. Users and items with fewer are dropped in turn until
            none is left to drop (k-core).
        min_item_events: Fewest events an item may have, likewise.
        event_filter: SQL condition that an event must meet, over the log's columns: "is_click = 1 AND rating
            >= 4". Where it is neither true nor false (a null), the event is dropped. None keeps all.
        min_history: Fewest events a user may have after the k-core; users with fewer are dropped once, and
            items that thereby fall under min_item_events stay.

    Raises:
        InputError: a number is out of range, or the event filter is blank.
    """

    min_user_events: int = 1
    min_item_events: int = 1
    event_filter: str | None = None
    min_history: int = 0

    def __post_init__(self) -> None:
        for name, least in {"min_user_events": 1, "min_item_events": 1, "min_history": 0}.items():
            if getattr(self, name) < least:
                raise InputError(f"filters.{name}={getattr(self, name)} must be at least {least}")
        if self.event_filter is not None and not self.event_filter.strip():
            raise InputError("filters.event_filter is blank; leave it out (null) to keep all events")


def filter_events(frame: pl.LazyFrame, event_filter: str | None) -> pl.DataFrame:
    """Return the ids and times of the events that meet a condition, in log order.

    Args:
        frame: Interaction frame.
        event_filter: SQL condition over its columns; None keeps all.

    Raises:
        InputError: the condition is no SQL, names an unknown column, is not true or false for each event on
            its own, or no event meets it.
    """
    import polars as pl

    if event_filter is not None:
        frame = frame.filter(_condition(frame, event_filter))
    present = frame.collect_schema()
    columns = [name for name in (USER_ID, ITEM_ID, TIMESTAMP) if name in present]
    try:
        events = frame.select(columns).collect()
    except pl.exceptions.PolarsError as error:
        if event_filter is None:
            raise
        raise InputError(_refusal(event_filter, error)) from error
    if len(events) == 0:
        reason = (
            f"filters.event_filter={event_filter!r} keeps no event"
            if event_filter
            else "the log has no events"
        )
        raise InputError(reason)
    return events


def k_core(
    user_codes: NDArray[np.int64], item_codes: NDArray[np.int64], filters: Filters
) -> NDArray[np.int64]:
    """Return the rows (N,) ascending that k-core and minimum history keep.

    Args:
        user_codes: (E,) users as numbers from 0.
        item_codes: (E,) items as numbers from 0.
        filters: The thresholds.
    """
    rows = np.arange(len(user_codes))
    while True:
        before = len(rows)
        rows = _frequent(rows, user_codes, filters.min_user_events)
        rows = _frequent(rows, item_codes, filters.min_item_events)
        if len(rows) == before:
            return _frequent(rows, user_codes, filters.min_history)


def _frequent(rows: NDArray[np.int64], codes: NDArray[np.int64], least: int) -> NDArray[np.int64]:
    # The rows whose code stands in at least `least` of the rows.
    if least <= 1 or len(rows) == 0:
        return rows
    enough = np.bincount(codes[rows]) >= least
    return rows[enough[codes[rows]]]


def _condition(frame: pl.LazyFrame, event_filter: str) -> pl.Expr:
    import polars as pl

    try:
        condition = pl.sql_expr(event_filter)
        kind = frame.select(condition.alias("condition")).collect_schema()["condition"]
    except pl.exceptions.PolarsError as error:
        raise InputError(_refusal(event_filter, error, frame.collect_schema().names())) from error
    if kind != pl.Boolean:
        raise InputError(
            f"filters.event_filter={event_filter!r} gives {kind}; it must be true or false, as in rating >= 4"
        )
    return condition


def _refusal(event_filter: str, error: Exception, columns: list[str] | None = None) -> str:
    reason = str(error).strip().split("\n")[0].split("; valid columns")[0]
    known = f"; columns: {', '.join(columns)}" if columns else ""
    return f"filters.event_filter={event_filter!r}: {reason}{known}"
