"""Inputs and outputs of sessions, in the log's ids: events, requests, histories and scored items."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec.catalogue.candidates import Candidates
from seqrec.catalogue.recommend import RecommendingModel, RecommendOptions
from seqrec.data.columns import Column
from seqrec.data.event_columns import EventColumn, read_columns
from seqrec.data.store import EventStore
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import BatchEntryError, InputError, LateEventError, UnknownItemError
from seqrec.types import Recommendations

MAX_EVENT_ID = 256
# The log's id of a user or an item. An integer and its decimal string are the same id, as in `Vocabulary`.
Id = int | str
Times = NDArray[np.int64]


class Event(NamedTuple):
    """An event: a user interacted with an item.

    Attributes:
        user: The log's user id, or a new one.
        item: The log's item id.
        time: Time in the log's unit; None if only the order is known. A model that reads time needs it.
        event_id: Name of the event, by which it is known again if it is sent twice; None if it has none.
        columns: Values of the event's columns by name, as the log has them; None is a missing value. A model that reads
            columns needs them; other columns are not read.

    Example:
        >>> from seqrec import Event
        >>> Event("ada", 42, time=1_700_000_000).item
        42
    """

    user: Id
    item: Id
    time: int | None = None
    event_id: str | None = None
    columns: Mapping[str, Any] | None = None

    @property
    def id_digest(self) -> int | None:
        """64-bit digest of the event's id; None if it has none."""
        if self.event_id is None:
            return None
        return int.from_bytes(hashlib.blake2b(self.event_id.encode(), digest_size=8).digest(), "little")


class Request(NamedTuple):
    """A request for recommendations.

    Attributes:
        user: The user's id.
        k: Number of items.
        filter_seen: Whether to leave out items that the user has seen.
        block: Ids of items that are not recommended; unknown ones are ignored.
        at: When the user asks, in the log's unit or as a datetime with a time zone; only for a model that reads the
            time of requests, which needs it.
        candidates: The only items that are recommended: `Candidates`, or ids, all of which must be known; None is all.
    """

    user: Id
    k: int = 10
    filter_seen: bool = True
    block: Sequence[Id] = ()
    at: int | datetime | None = None
    candidates: Candidates | Sequence[Id] | None = None


class Scored(NamedTuple):
    """A recommended item.

    Attributes:
        item: The log's item id.
        score: The model's score; higher is better.
    """

    item: Id
    score: float


class UserHistory(NamedTuple):
    """A user's events so far.

    Attributes:
        items: The log's item ids, oldest first.
        newest_time: Time of the newest event in the log's unit; None if unknown, or if `times` has it.
        times: Time of each event in the log's unit, never before that of the event before; needed for a model that
            reads the time of events.
        columns: Values of each column that the model reads, one for each event, as the log has them; or a store's
            column of these events.
    """

    items: Sequence[Id] | NDArray[np.int64]
    newest_time: int | None = None
    times: Sequence[int] | NDArray[np.int64] | None = None
    columns: Mapping[str, Sequence[Any] | NDArray[Any] | Column] | None = None


# Finds the history of a user without a session; returns None, or a history without items, if it knows none.
HistoryOf = Callable[[Id], UserHistory | None]


def log_histories(log: EventStore) -> HistoryOf:
    """Return a function that finds users' histories in a log, for `SessionRecommender(history_of=..)`.

    Args:
        log: The log, such as the one that the model was trained on.
    """

    def history_of(user: Id) -> UserHistory | None:
        (user_id,) = log.user_vocabulary.lookup([user])
        if user_id == 0:
            return None
        own = slice(int(log.offsets[user_id - 1]), int(log.offsets[user_id]))
        times = None if log.timestamps is None else log.timestamps[own]
        newest = None if times is None else int(times[-1])
        columns = {name: column.taken(own) for name, column in log.event_columns.items()}
        return UserHistory(log.item_vocabulary.external_ids(log.item_ids[own]), newest, times, columns)

    return history_of


def user_key(user: Id, index: int = 0, place: str = "") -> bytes:
    """Return the key, in bytes, of a user's session; `index` and `place` name the entry in a `BatchEntryError`."""
    return _text("user", user, index, place).encode()


def user_keys(users: Sequence[Id], name: str) -> list[bytes]:
    """Return the keys of users' sessions; a `BatchEntryError` calls them entries of `name`."""
    if _are_int64(users):
        return [b"%d" % user for user in users]
    return [user_key(user, i, f"{name}[{i}]: ") for i, user in enumerate(users)]


def known_items(events: Sequence[Event], vocabulary: Vocabulary) -> NDArray[np.int64]:
    """Return the (N,) internal item ids of events.

    Raises:
        UnknownItemError: if the model was not trained on an item.
        BatchEntryError: if an item is not an id.
    """
    items = [event.item for event in events]
    if not _are_int64(items):
        for index, item in enumerate(items):
            _text("item", item, index, f"events[{index}]: ")
    item_ids = vocabulary.lookup(items)
    unknown = np.flatnonzero(item_ids == 0)
    if len(unknown):
        index = int(unknown[0])
        raise UnknownItemError(
            f"events[{index}]: item={events[index].item!r} of user={events[index].user!r} is not among the "
            f"{len(vocabulary):,} items that the model was trained on; leave the event out",
            index,
        )
    return item_ids


def check_time(event: Event, index: int) -> None:
    """Raise a `BatchEntryError` if an event's time is not an int64, or its id no short text."""
    if event.event_id is not None:
        text = _text("event_id", event.event_id, index, f"events[{index}]: ")
        if not isinstance(event.event_id, str) or not 0 < len(text) <= MAX_EVENT_ID:
            raise BatchEntryError(
                f"events[{index}]: event_id={event.event_id!r:.60} must be a text of 1 to {MAX_EVENT_ID} characters",
                index,
            )
    time = event.time
    whole = isinstance(time, (int, np.integer)) and not isinstance(time, bool)
    if time is not None and not (whole and -(2**63) <= time < 2**63):
        raise BatchEntryError(
            f"events[{index}]: time={time!r} of user={event.user!r} must be a whole number of 64 bits in the log's "
            "unit, or None",
            index,
        )


def event_times(events: Sequence[Event]) -> NDArray[np.int64]:
    """Return the (N,) times of checked events; a `BatchEntryError` refuses an event without one."""
    for index, event in enumerate(events):
        if event.time is None:
            raise BatchEntryError(
                f"events[{index}]: time of user={event.user!r} is missing, but the model reads the time of events; "
                "give a whole number in the log's unit",
                index,
            )
    return np.fromiter((event.time for event in events), np.int64, len(events))


def history_times(times: Sequence[int] | NDArray[Any] | None, num_events: int, whose: str, index: int = 0) -> Times:
    """Return the times (L,) of a history's events; a `BatchEntryError` refuses missing ones, and ones that go back."""
    found = np.asarray(() if times is None else times)
    if found.dtype.kind not in "iu" or len(found) != num_events or (found[1:] < found[:-1]).any():
        raise BatchEntryError(f"times: {whose} needs one for each of its {num_events} events, oldest first", index)
    return found.astype(np.int64)


def newest_time(events: Sequence[Event], places: Sequence[int], newest: int | None) -> int | None:
    """Return the latest time after the events at a user's places; a `LateEventError` refuses an earlier time."""
    for index in places:
        event = events[index]
        if event.time is None:
            continue
        if newest is not None and event.time < newest:
            raise LateEventError(
                f"events[{index}]: time={event.time} of user={event.user!r} is before the user's newest event at "
                f"{newest}; send a user's events in order, or without times to have them as they come",
                index,
            )
        newest = int(event.time)
    return newest


def events_columns(events: Sequence[Event], columns: Sequence[EventColumn]) -> dict[str, Column]:
    """Return the columns of events that a model reads; a `BatchEntryError` refuses an event without one."""

    def values(name: str) -> list[Any]:
        for index, event in enumerate(events):
            if event.columns is None or name not in event.columns:
                raise BatchEntryError(
                    f"events[{index}]: the column {name!r} of user={event.user!r} is missing, but the model reads it; "
                    f"give its value, or None if it has none",
                    index,
                )
        return [event.columns[name] for event in events if event.columns is not None]

    return read_columns(columns, values, lambda index: f"events[{index}]")


def history_columns(
    given: Mapping[str, Any] | None, columns: Sequence[EventColumn], num_events: int, whose: str, index: int = 0
) -> dict[str, Column]:
    """Return the columns of a history's events that a model reads; a `BatchEntryError` refuses missing ones."""
    found = {}
    for column in columns:
        values = (given or {}).get(column.name, ())
        count = len(values.values) if isinstance(values, Column) else len(values)
        if count != num_events:
            raise BatchEntryError(
                f"columns: {whose} needs {column.name!r}, with one value for each of its {num_events} events", index
            )
        if isinstance(values, Column):
            column.check_column(values, whose)
            read = column.of_column(values)
        else:
            try:
                read = column.read(values, lambda event: f"{whose}, event {event}")
            except BatchEntryError as error:
                error.index = index
                raise
        found[column.name] = column.column(read)
    return found


def request_time(model: RecommendingModel, at: int | datetime | None, place: str, index: int = 0) -> int | None:
    """Return the time of a request, None if the model reads none; a `BatchEntryError` refuses one that does not fit.

    `place` begins its message.
    """
    try:
        time = model.request_timestamp(at)
    except InputError as error:
        raise BatchEntryError(f"{place}{error}", index) from error
    if time is not None and not -(2**63) <= time < 2**63:
        raise BatchEntryError(f"{place}at={at!r} must be a time of 64 bits in the log's unit", index)
    return time


def recommend_options(
    k: int,
    filter_seen: bool,
    block: Sequence[Id],
    items: Vocabulary,
    index: int = 0,
    candidates: Candidates | Sequence[Id] | None = None,
) -> RecommendOptions:
    """Return a request's options in the model's ids.

    Raises:
        BatchEntryError: if an entry of `block` or of `candidates` is no id, or `candidates` are unknown, none, or of
            another catalogue.
    """
    allowed = None if candidates is None else _allowed_items(candidates, items, index)
    if not block:
        return RecommendOptions(k, filter_seen, allowed=allowed)
    for item in block:
        _text("block item", item, index, f"requests[{index}]: ")
    found = items.lookup(block)
    return RecommendOptions(k, filter_seen, torch.from_numpy(np.unique(found[found > 0])), allowed=allowed)


def _allowed_items(candidates: Candidates | Sequence[Id], items: Vocabulary, index: int) -> Tensor:
    try:
        if not isinstance(candidates, Candidates):
            for item in () if isinstance(candidates, str) else candidates:
                _text("candidates item", item, index, "")
            candidates = Candidates.of_items(candidates, items, argument="candidates")
        candidates.check_catalogue(len(items), items)
    except InputError as error:
        raise BatchEntryError(f"requests[{index}]: {error}", index) from error
    return candidates.item_ids


def scored_lists(best: Recommendations, ks: Sequence[int], items: Vocabulary) -> list[list[Scored]]:
    """Return the first `ks` recommendations of each user in the log's ids."""
    results = []
    for item_ids, scores, k in zip(best.item_ids.cpu(), best.scores.cpu(), ks, strict=True):
        names = items.external_ids(item_ids[:k][item_ids[:k] > 0].numpy())
        names = names.tolist() if isinstance(names, np.ndarray) else names
        results.append([Scored(*pair) for pair in zip(names, scores[: len(names)].tolist(), strict=True)])
    return results


def _are_int64(values: Sequence[Any]) -> TypeGuard[Sequence[int]]:
    """Return whether all ids are of the most common kind, for which no more needs to be checked."""
    return set(map(type, values)) == {int} and min(values) >= -(2**63) and max(values) < 2**63


def _text(kind: str, value: object, index: int, place: str) -> str:
    # Booleans are integers to Python.
    is_id = isinstance(value, (int, str, np.integer)) and not isinstance(value, bool)
    if is_id and (isinstance(value, str) or -(2**63) <= value < 2**63):  # type: ignore[operator]
        text = str(value)
        try:
            text.encode()
        except UnicodeEncodeError:
            pass
        else:
            return text
    # Python refuses to print integers with thousands of digits.
    shown = "of many digits" if is_id and not isinstance(value, str) else ascii(value)[:60]
    raise BatchEntryError(
        f"{place}{kind}={shown} must be a whole number of 64 bits or a text of Unicode characters", index
    )
