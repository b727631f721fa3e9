"""What goes into sessions and comes out, in the log's own ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import BatchEntryError, UnknownItemError
from seqrec.types import Recommendations

# A user or an item as the log has it. An integer and its decimal string are the same id, as in `Vocabulary`.
Id = int | str


class Event(NamedTuple):
    """A user met an item.

    Attributes:
        user: The log's user id, or a new one.
        item: The log's item id.
        time: In the log's unit; None says nothing of when, only that the event follows those before.
    """

    user: Id
    item: Id
    time: int | None = None


class Request(NamedTuple):
    """A user wants items.

    Attributes:
        user: The user's id.
        k: Items wanted.
        filter_seen: Whether items that the user met are left out.
    """

    user: Id
    k: int = 10
    filter_seen: bool = True


class Scored(NamedTuple):
    """An item for a user.

    Attributes:
        item: The log's item id.
        score: The model's score; higher is better.
    """

    item: Id
    score: float


class UserHistory(NamedTuple):
    """A user's events up to now.

    Attributes:
        items: The log's item ids, oldest first.
        newest_time: Of the newest event, in the log's unit; None where it is not known.
    """

    items: Sequence[Id] | NDArray[np.int64]
    newest_time: int | None = None


# Finds the history of a user who has no session; None, or one without items, where there is none.
HistoryOf = Callable[[Id], UserHistory | None]


def user_key(user: Id, index: int = 0, place: str = "") -> bytes:
    """A user as bytes, under which stores keep the session.

    Args:
        user: The user's id.
        index: Place of the entry in its batch.
        place: What errors call the entry, such as `events[3]: `.

    Raises:
        BatchEntryError: no id.
    """
    return _text("user", user, index, place).encode()


def known_items(events: Sequence[Event], vocabulary: Vocabulary) -> NDArray[np.int64]:
    """(N,) internal item ids.

    Raises:
        UnknownItemError: an item that the model was not trained on.
        BatchEntryError: an item that is no id.
    """
    for index, event in enumerate(events):
        _text("item", event.item, index, f"events[{index}]: ")
    item_ids = vocabulary.lookup([event.item for event in events])
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
    """Refuse a time that is no int64.

    Raises:
        BatchEntryError: another kind of time.
    """
    time = event.time
    whole = isinstance(time, (int, np.integer)) and not isinstance(time, bool)
    if time is not None and not (whole and -(2**63) <= time < 2**63):
        raise BatchEntryError(
            f"events[{index}]: time={time!r} of user={event.user!r} must be a whole number of 64 bits in the log's "
            "unit, or None",
            index,
        )


def scored_lists(best: Recommendations, ks: Sequence[int], items: Vocabulary) -> list[list[Scored]]:
    """Recommendations in the log's own ids.

    Args:
        best: At least as many a user as are wanted.
        ks: How many each user wants at most.
        items: The log's item ids.
    """
    results = []
    for item_ids, scores, k in zip(best.item_ids.cpu(), best.scores.cpu(), ks, strict=True):
        names = items.external_ids(item_ids[:k][item_ids[:k] > 0].numpy())
        names = names.tolist() if isinstance(names, np.ndarray) else names
        results.append([Scored(*pair) for pair in zip(names, scores[: len(names)].tolist(), strict=True)])
    return results


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
    # Python refuses to print integers of thousands of digits.
    shown = "of many digits" if is_id and not isinstance(value, str) else ascii(value)[:60]
    raise BatchEntryError(
        f"{place}{kind}={shown} must be a whole number of 64 bits or a text of Unicode characters", index
    )
