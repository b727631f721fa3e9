"""What requests want of the model, done in batches in which a bad request fails alone."""

from __future__ import annotations

import itertools
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from seqrec.errors import BatchEntryError, InputError, LateEventError
from seqrec.inference.sessions import Event, Id, Request, Scored, SessionRecommender
from seqrec.serving.batcher import Outcomes
from seqrec.serving.metrics import Metrics

Entry = TypeVar("Entry")
# Counting users takes at most this share of the time.
COUNT_SHARE = 0.01


class Observe(NamedTuple):
    """Keep events; the outcome is None."""

    events: Sequence[Event]


class Forget(NamedTuple):
    """Delete a user's session; the outcome says whether there was one."""

    user: Id


class Recommend(NamedTuple):
    """Items for a user with a session; the outcome is a list of `Scored`."""

    request: Request
    block: Sequence[Id] = ()


class Count(NamedTuple):
    """The outcome is the number of users with a session, as it was a short time ago where counting takes long."""


class SessionWork:
    """Does `Observe`, `Forget`, `Recommend` and `Count` on users' sessions.

    Recommendations of a batch come first, since they need not wait for the disk; the requests of a batch are
    concurrent, so that any order between reading and writing is right. Writes keep the order of arrival.

    Args:
        recommender: Model and sessions.
        metrics: Where batches and events are counted.
    """

    def __init__(self, recommender: SessionRecommender, metrics: Metrics) -> None:
        self._recommender = recommender
        self._metrics = metrics
        self._num_items = recommender.model.scorer().num_items
        self._users, self._count_again = 0, 0.0

    def __call__(self, works: Sequence[Any]) -> Iterator[Outcomes]:
        """Outcomes of a batch; see `Batcher`."""
        placed = list(enumerate(works))
        wishes = [(place, work) for place, work in placed if isinstance(work, Recommend)]
        if wishes:
            self._metrics.batch("recommend", len(wishes))
            yield places_of(wishes, self._recommend([work for _, work in wishes]))
        if counts := [(place, self._count()) for place, work in placed if isinstance(work, Count)]:
            yield counts
        writes = [(place, work) for place, work in placed if isinstance(work, (Observe, Forget))]
        for kind, run in itertools.groupby(writes, key=lambda pair: type(pair[1])):
            group = list(run)
            do: Callable[[list[Any]], list[Any]] = self._observe if kind is Observe else self._forget
            yield places_of(group, do([work for _, work in group]))

    def _recommend(self, wishes: Sequence[Recommend]) -> list[Any]:
        most = self._num_items
        # As many more as are blocked, so that enough are left.
        entries = [[wish.request._replace(k=min(wish.request.k + len(wish.block), most))] for wish in wishes]
        outcomes = done_together(self._recommender.recommend_many, entries)
        return [
            without(outcome[0], wish.block, wish.request.k) if isinstance(outcome, list) else outcome
            for wish, outcome in zip(wishes, outcomes, strict=True)
        ]

    def _observe(self, works: Sequence[Observe]) -> list[Any]:
        self._metrics.batch("observe", len(works))

        def observe(events: Sequence[Event]) -> list[None]:
            self._recommender.observe_many(events)
            self._metrics.events.inc(len(events))
            return [None] * len(events)

        return done_together(observe, [work.events for work in works])

    def _forget(self, works: Sequence[Forget]) -> list[Any]:
        return [attempt(self._recommender.forget, work.user) for work in works]

    def _count(self) -> Any:
        begin = time.monotonic()
        if begin >= self._count_again:
            count = attempt(len, self._recommender)
            if isinstance(count, Exception):
                return count
            end = time.monotonic()
            self._users, self._count_again = count, end + (end - begin) / COUNT_SHARE
        return self._users


def done_together(
    do: Callable[[Sequence[Entry]], Sequence[Any]], works: Sequence[Sequence[Entry]]
) -> list[Any]:
    """What came of pieces of work whose entries are done in one call, all of them or none.

    A piece with a bad entry is taken out and done by itself, where it fails with an error that counts its own
    entries; the others are done without it.

    Args:
        do: Does entries; returns a result for each, or raises `BatchEntryError` having done none of them.
        works: The entries of each piece, at least one.

    Returns:
        For each piece the results of its entries, or the exception that is its outcome.
    """
    if len(works) < 2:
        return [attempt(do, entries) for entries in works]
    ends = list(itertools.accumulate(map(len, works)))
    try:
        results = do(list(itertools.chain(*works)))
    except BatchEntryError as error:
        place = bisect_right(ends, error.index)
        if place and isinstance(error, LateEventError):
            # What makes it late may be those before, which are done first.
            return [*done_together(do, works[:place]), *done_together(do, works[place:])]
        alone = attempt(do, works[place])
        others = done_together(do, [*works[:place], *works[place + 1 :]])
        return [*others[:place], alone, *others[place:]]
    except InputError as error:
        return [error] * len(works)
    return [list(results[end - len(entries) : end]) for entries, end in zip(works, ends, strict=True)]


def attempt(do: Callable[[Any], Any], argument: Any) -> Any:
    """The result, or the `InputError` that was raised."""
    try:
        return do(argument)
    except InputError as error:
        return error


def places_of(works: Sequence[tuple[int, Any]], outcomes: Sequence[Any]) -> Outcomes:
    """Outcomes with their places in the batch."""
    return [(place, outcome) for (place, _), outcome in zip(works, outcomes, strict=True)]


def without(best: Sequence[Scored], block: Sequence[Id], k: int) -> list[Scored]:
    """The first `k` that are not blocked."""
    if not block:
        return list(best[:k])
    # An integer and its decimal text are the same id.
    blocked = {str(item) for item in block}
    return [scored for scored in best if str(scored.item) not in blocked][:k]
