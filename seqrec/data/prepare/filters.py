"""Which events, users and items of a log are kept, and what is kept of an event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID
from seqrec.errors import InputError

if TYPE_CHECKING:
    import polars as pl

Duplicates = Literal["keep", "drop", "refuse"]
# Features become files of their names, on any system.
_NOT_IN_FILE_NAMES = set('/\\:*?"<>|') | {chr(code) for code in range(32)}


@dataclass(frozen=True)
class Filters:
    """What to keep of a log, applied in the order: event filter, duplicates, oldest events, k-core, minimum history.

    The arguments `as_published_..` bring back flaws of the study that seqrec replaces, so that its numbers can be
    understood. Nothing else should be prepared with them.

    Args:
        min_user_events: Fewest events a user may have. Users and items with fewer are dropped in turn until
            none is left to drop (k-core).
        min_item_events: Fewest events an item may have, likewise.
        event_filter: SQL condition that an event must meet, over the log's columns: "is_click = 1 AND rating
            >= 4". Where it is neither true nor false (a null), the event is dropped. None keeps all. A
            condition on the log as a whole, such as "rating > AVG(rating)", may hold the columns in memory.
        min_history: Fewest events a user may have after the k-core; users with fewer are dropped once, and
            items that thereby fall under min_item_events stay.
        event_features: Numeric columns kept with each event: integers, floats (a null becomes NaN), booleans.
        duplicates: What becomes of an event whose user, item and timestamp are those of an earlier one in
            the log: "keep" it, "drop" it, or "refuse" the log. They are counted in any case. Logs without
            timestamps have none, as a repeated item is a repeated event there.
        as_published_oldest_events: Keep so many of each user's oldest events and drop the newer ones, so that users are
            judged by events of long ago. None keeps all.
        as_published_raw_ids: Leave item ids as they are: the catalogue is every integer from 1 to the largest item id
            of the events that meet the event filter. Items that never occur, or not after the k-core, then have
            vectors and are drawn as negatives, in training and in evaluation, where any model ranks them low.

    Raises:
        InputError: a number is out of range, the event filter is blank, an event feature is named twice, is
            no file name or one of the three columns that are kept anyway, or `duplicates` is another word.
    """

    min_user_events: int = 1
    min_item_events: int = 1
    event_filter: str | None = None
    min_history: int = 0
    event_features: tuple[str, ...] = ()
    duplicates: Duplicates = "keep"
    as_published_oldest_events: int | None = None
    as_published_raw_ids: bool = False

    def __post_init__(self) -> None:
        for name, least in {"min_user_events": 1, "min_item_events": 1, "min_history": 0}.items():
            if getattr(self, name) < least:
                raise InputError(f"filters.{name}={getattr(self, name)} must be at least {least}")
        oldest = self.as_published_oldest_events
        if oldest is not None and oldest < 1:
            raise InputError(
                f"filters.as_published_oldest_events={oldest} must be at least 1; leave it out (null) to keep all"
            )
        if self.event_filter is not None and not self.event_filter.strip():
            raise InputError("filters.event_filter is blank; leave it out (null) to keep all events")
        if isinstance(self.event_features, str):
            raise InputError(
                f"filters.event_features={self.event_features!r} must be a list of names, "
                f"as in [{self.event_features}]"
            )
        # Lists come from Python and JSON; a tuple keeps the filters hashable.
        object.__setattr__(self, "event_features", tuple(self.event_features))
        self._check_event_features()
        if self.duplicates not in get_args(Duplicates):
            raise InputError(
                f"filters.duplicates={self.duplicates!r} must be one of {', '.join(get_args(Duplicates))}"
            )

    def _check_event_features(self) -> None:
        names = self.event_features
        for place, name in enumerate(names):
            if name in (USER_ID, ITEM_ID, TIMESTAMP):
                raise InputError(f"filters.event_features: {name!r} is kept anyway; leave it out")
            if name in names[:place]:
                raise InputError(f"filters.event_features names {name!r} twice")
            if not name or _NOT_IN_FILE_NAMES & set(name):
                raise InputError(
                    f"filters.event_features: {name!r} is no name of a file, which it must become; "
                    "rename the log's column"
                )

    @property
    def keeps_every_event(self) -> bool:
        """Whether nothing is dropped of the events that meet the event filter."""
        is_core = self.min_user_events <= 1 and self.min_item_events <= 1 and self.min_history <= 1
        return is_core and self.duplicates != "drop" and self.as_published_oldest_events is None


def event_condition(frame: pl.LazyFrame, event_filter: str) -> pl.Expr:
    """Return the expression of an SQL condition.

    Args:
        frame: Interaction frame.
        event_filter: SQL condition over its columns.

    Raises:
        InputError: the condition is no SQL, names an unknown column, or is not true or false.
    """
    import polars as pl

    try:
        condition = pl.sql_expr(event_filter)
        kind = frame.select(condition.alias("condition")).collect_schema()["condition"]
    except pl.exceptions.PolarsError as error:
        raise filter_refused(event_filter, error, frame.collect_schema().names()) from error
    if kind != pl.Boolean:
        raise InputError(
            f"filters.event_filter={event_filter!r} gives {kind}; it must be true or false, as in rating >= 4"
        )
    return condition


def filter_refused(event_filter: str, error: Exception, columns: list[str] | None = None) -> InputError:
    """Return the error to raise for a condition that polars does not take.

    Args:
        event_filter: The condition.
        error: What polars said.
        columns: Columns that there are, where that may help.
    """
    reason = str(error).strip().split("\n")[0].split("; valid columns")[0]
    known = f"; columns: {', '.join(columns)}" if columns else ""
    return InputError(f"filters.event_filter={event_filter!r}: {reason}{known}")
