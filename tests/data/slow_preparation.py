"""Preparation of a log in memory, slowly and plainly: what the fast one is compared with."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from seqrec.data.prepare.filters import Filters
from seqrec.data.schema import Schema
from seqrec.data.sources import Source
from seqrec.data.sources.source import SideTable
from seqrec.data.store import EventStore


class Frame(Source):
    """A log held in memory, and its tables of items and users."""

    def __init__(self, label: str = "frame", **columns: Any) -> None:
        self.label = label
        self.columns = columns
        self.side: dict[str, list[SideTable]] = {}

    def tables(self, group: str, progress: object = None) -> list[SideTable]:
        return self.side.get(group, [])

    def describe(self) -> dict[str, Any]:
        return {"name": self.label, "arguments": {}}

    def files(self) -> list[Path]:
        return []

    def scan(self, progress: object = None) -> pl.LazyFrame:
        return pl.LazyFrame(self.columns)


class Event(NamedTuple):
    """One event of a log; `time` is None in all of them where the log has no times."""

    user: int | str
    item: int | str
    time: int | None
    weight: float


# Columns of `frame_of`.
WEIGHT = Schema(events={"weight": "numeric", "mark": "categorical"})


def mark_of(weight: float) -> str | None:
    """The value of the categorical column, of which some are missing."""
    return None if weight % 3 == 0 else f"mark {weight % 7:g}"


def frame_of(events: list[Event]) -> Frame:
    """The events as a source, with the columns `weight` and `mark`."""
    columns: dict[str, Any] = {
        "user_id": [event.user for event in events],
        "item_id": [event.item for event in events],
        "timestamp": [event.time for event in events],
        "weight": [event.weight for event in events],
        "mark": pl.Series([mark_of(event.weight) for event in events], dtype=pl.String),
    }
    if events[0].time is None:
        del columns["timestamp"]
    return Frame(**columns)


def small(**changes: Any) -> Frame:
    """Five events of three users."""
    columns = {"user_id": [2, 1, 2, 1, 3], "item_id": ["b", "a", "a", "b", "c"], "timestamp": [5, 2, 5, 1, 9]}
    return Frame(**{**columns, **changes})


def slow_histories(events: list[Event], filters: Filters) -> dict[Any, list[Event]]:
    """Each kept user's kept events, in order."""
    if filters.duplicates == "drop":
        events = [event for k, event in enumerate(events) if event[:3] not in {e[:3] for e in events[:k]}]
    oldest = filters.as_published_oldest_events
    kept_first = [event for user in {e.user for e in events} for event in in_order(events, user)[:oldest]]
    events = [event for event in events if event in kept_first]
    while True:
        users, items = Counter(e.user for e in events), Counter(e.item for e in events)
        kept = [
            e for e in events if users[e.user] >= filters.min_user_events and items[e.item] >= filters.min_item_events
        ]
        if len(kept) == len(events):
            break
        events = kept
    result: dict[Any, list[Event]] = {}
    for user in sorted({e.user for e in events}):
        history = in_order(events, user)
        if len(history) >= filters.min_history:
            result[user] = history
    return result


def in_order(events: list[Event], user: int | str) -> list[Event]:
    """The events of a user, oldest first."""
    return sorted((e for e in events if e.user == user), key=lambda e: e.time or 0)


def slow_duplicates(events: list[Event]) -> int:
    """How many events repeat user, item and time of an earlier one."""
    return len(events) - len({event[:3] for event in events})


def stored_histories(store: EventStore) -> dict[Any, list[Event]]:
    """The events of a store as `slow_histories` gives them. Each has the mark of its weight."""
    items = list(store.item_vocabulary.external_ids(store.item_ids))
    users = list(store.user_vocabulary.external_ids(range(1, store.num_users + 1)))
    times = [None] * store.num_events if store.timestamps is None else store.timestamps.tolist()
    weights = store.event_columns["weight"].values.tolist()
    marks = store.event_columns["mark"]
    names = [None, *marks.vocabulary.external_ids(range(1, marks.num_codes))]
    assert [names[code] for code in marks.values] == [mark_of(weight) for weight in weights]
    assert marks.missing == sum(mark_of(weight) is None for weight in weights)
    starts, stops = store.offsets[:-1], store.offsets[1:]
    return {
        user: [Event(user, items[k], times[k], weights[k]) for k in range(start, stop)]
        for user, start, stop in zip(users, starts, stops, strict=True)
    }


def histories(store: EventStore) -> dict[Any, list[Any]]:
    """Each user's items, by external ids."""
    items = list(store.item_vocabulary.external_ids(store.item_ids))
    users = store.user_vocabulary.external_ids(range(1, store.num_users + 1))
    starts, stops = store.offsets[:-1], store.offsets[1:]
    return {user: items[start:stop] for user, start, stop in zip(users, starts, stops, strict=True)}


def contents(directory: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir())}
