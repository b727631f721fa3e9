"""The filters of a log: events, users and items to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from seqrec.errors import InputError

Duplicates = Literal["keep", "drop", "refuse"]
# Treatment of new events that are older than the newest of their user in a store.
Late = Literal["merge", "refuse"]
# Treatment of other values of items and users that a store knows.
Changed = Literal["refuse", "keep"]


@dataclass(frozen=True)
class Filters:
    """Filters of a log, applied in the order: event filter, duplicates, oldest events, k-core, minimum history.

    The arguments `as_published_..` reproduce flaws of the study that seqrec replaces, to explain its numbers. Use
    them for nothing else.

    Args:
        min_user_events: Fewest events a user may have. Users and items with fewer are dropped in turn until all that
            remain have enough (k-core).
        min_item_events: Fewest events an item may have, likewise.
        event_filter: SQL condition that an event must meet, over the log's columns: "is_click = 1 AND rating
            >= 4". If it is null for an event, the event is dropped. None keeps all. A condition on the log as a
            whole, such as "rating > AVG(rating)", may hold the columns in memory.
        min_history: Fewest events a user may have after the k-core. Users with fewer are dropped once, and items
            that then have fewer than `min_item_events` stay.
        event_features: Former name of `Schema.events`; configs that are older have it, as an empty list.
        duplicates: Treatment of an event with the user, item and timestamp of an earlier one: "keep" it, "drop" it,
            or "refuse" the log. Duplicates are counted in any case. A log without timestamps has none: a repeated
            item is a repeated event.
        as_published_oldest_events: Number of each user's oldest events to keep. Newer ones are dropped, so users are
            judged by events of long ago. None keeps all.
        as_published_raw_ids: Whether to keep item ids unchanged: the catalogue is every integer from 1 to the largest
            item id of the events that meet the event filter. Items that never occur, or not after the k-core, then
            have vectors and are drawn as negatives, in training and in evaluation; any model ranks them low.
        items_without_events: Whether the items of the source's tables are in the catalogue even if they occur in
            no event that is kept. A model whose `ItemTable.content` reads their columns recommends them as cold items.

    Raises:
        InputError: if a number is out of range, if the event filter is blank, if `duplicates` is another word, if
            `event_features` has names, or if both `items_without_events` and `as_published_raw_ids` are set.

    Example:
        >>> import tempfile
        >>> from seqrec import Filters, Synthetic, prepare
        >>> source = Synthetic(num_users=20, num_items=30, mean_events=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = prepare(source, Filters(min_user_events=9, event_filter="item_id < 20"), f"{folder}/store")
        ...     store.num_users < 20, store.num_items <= 20
        (True, True)
    """

    min_user_events: int = 1
    min_item_events: int = 1
    event_filter: str | None = None
    min_history: int = 0
    event_features: tuple[str, ...] = ()
    duplicates: Duplicates = "keep"
    as_published_oldest_events: int | None = None
    as_published_raw_ids: bool = False
    items_without_events: bool = False

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
        if self.event_features:
            names = [self.event_features] if isinstance(self.event_features, str) else list(self.event_features)
            raise InputError(
                f"filters.event_features={names} is now part of the schema; leave it out, and write "
                f"schema: {{events: {{{', '.join(f'{name}: numeric' for name in names)}}}}}"
            )
        # Configs and JSON pass lists; a tuple keeps the filters hashable.
        object.__setattr__(self, "event_features", ())
        if self.items_without_events and self.as_published_raw_ids:
            raise InputError("filters.items_without_events and as_published_raw_ids both choose the catalogue; set one")
        if self.duplicates not in get_args(Duplicates):
            raise InputError(f"filters.duplicates={self.duplicates!r} must be one of {', '.join(get_args(Duplicates))}")

    @property
    def keeps_every_event(self) -> bool:
        """True if all events that meet the event filter are kept."""
        is_core = self.min_user_events <= 1 and self.min_item_events <= 1 and self.min_history <= 1
        return is_core and self.duplicates != "drop" and self.as_published_oldest_events is None
