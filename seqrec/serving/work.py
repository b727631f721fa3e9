"""Work of requests on sessions and histories, in batches in which a bad request fails alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple, TypeVar

from seqrec.catalogue.candidates import Candidates
from seqrec.catalogue.recommend import item_ids_of, trained_length
from seqrec.errors import BatchEntryError, InputError, UnknownUserError
from seqrec.inference.sessions import Event, Id, KeptEvents, Request, Scored, SessionRecommender
from seqrec.inference.sessions.entries import (
    check_time,
    event_times,
    events_columns,
    known_items,
    request_time,
    user_key,
)
from seqrec.inference.sessions.user_state import event_dtype, reads_times
from seqrec.models import Recommender, SequentialRecommender
from seqrec.models.explain import Method, method_for
from seqrec.serving.batcher import Outcomes
from seqrec.serving.metrics import Metrics

Entry = TypeVar("Entry")
# Bytes of state that count as one event.
BYTES_PER_EVENT = 1 << 15


class Observe(NamedTuple):
    """Keep events; the outcome is None."""

    events: Sequence[Event]


class Forget(NamedTuple):
    """Delete a user's session; the outcome is whether it existed."""

    user: Id


class Count(NamedTuple):
    """The outcome is how much the store of sessions keeps, as `StoreSizes`."""


class Probe(NamedTuple):
    """Show that the thread works and the sessions can be read; the outcome is None."""


class RecommendToHistory(NamedTuple):
    """Items for a history, oldest first, with times and columns of its events, asked for at a time, if the model reads
    these.

    The outcome is a list of `Scored`.
    """

    history: Sequence[Id]
    k: int = 10
    filter_seen: bool = True
    block: Sequence[Id] = ()
    at: int | None = None
    times: Sequence[int] | None = None
    candidates: Candidates | None = None
    columns: Mapping[str, Sequence[Any]] | None = None


class FindSimilar(NamedTuple):
    """The items most similar to an item; the outcome is a list of `Scored`."""

    item: Id
    k: int = 10
    candidates: Candidates | None = None


class ShowUser(NamedTuple):
    """Recommend to a user and read their kept events; the outcome is a `ShownUser`.

    A request before the user's newest event is asked at the time of that event.
    """

    user: Id
    k: int = 10
    at: int | None = None


class ShownUser(NamedTuple):
    """Recommendations to a user, the events that the store keeps (None if it keeps none), and the number of all.

    `newest_time` is that of the newest event, None if it has none. `at` is the time that was asked for.
    """

    best: list[Scored]
    events: KeptEvents | None
    num_events: int
    newest_time: int | None
    at: int | None


class Explain(NamedTuple):
    """How much each of a user's events raises an item's score, as asked for at a time; the outcome is an `Explained`.

    The newest `max_length` events count. Events of items that the catalogue lacks do not.
    """

    events: KeptEvents
    item: Id
    user: Id
    at: int | None = None


class Explained(NamedTuple):
    """A contribution for each event, None for those that do not count; the item's score, and the method."""

    contributions: list[float | None]
    score: float
    method: Method


def request_time_now(model: Recommender) -> int | None:
    """Return the time by this machine's clock, in the log's unit, for a request; None if the model reads none."""
    return model.request_timestamp(datetime.now(timezone.utc)) if model.reads_request_time else None


def row_bytes_of(recommender: SessionRecommender) -> int:
    """Return the bytes of a user's state."""
    model = recommender.model
    if recommender.streams and isinstance(model, SequentialRecommender):
        return model.init_state(1).row_bytes
    return event_dtype(model).itemsize * (trained_length(model) or 200)


class Sizes:
    """Measures work in events: what is decoded, encoded or looked up, and the states of `row_bytes` that are moved.

    An explanation reads the newest `max_length` events; None reads all.
    """

    def __init__(self, row_bytes: int, max_length: int | None = None) -> None:
        self._per_user = row_bytes // BYTES_PER_EVENT
        self._max_length = max_length

    def __call__(self, work: Any) -> int:
        """Return the size of a piece of work."""
        if isinstance(work, Observe):
            return len(work.events) + self._per_user * len({event.user for event in work.events})
        if isinstance(work, Explain):
            count = len(work.events.items)
            count = min(count, self._max_length or count)
            return count**2 if method_for(count) == "leave_one_out" else count
        if isinstance(work, ShowUser):
            return 1 + self._per_user
        if isinstance(work, Request):
            return 1 + self._per_user + len(work.block)
        if isinstance(work, RecommendToHistory):
            return len(work.history) + len(work.block)
        return 1


class SessionWork:
    """Does `Observe`, `Forget`, `Request`, `ShowUser`, `Count` and `Probe` on users' sessions.

    The requests of a batch are concurrent, so any order of reads and writes is right. Recommendations come first, as
    they need not wait for the disk. Writes keep the order of arrival.
    """

    def __init__(self, recommender: SessionRecommender, metrics: Metrics) -> None:
        self._recommender = recommender
        self._metrics = metrics

    def __call__(self, works: Sequence[Any]) -> Iterator[Outcomes]:
        """Yield the outcomes of a batch; see `Batcher`."""
        placed = list(enumerate(works))
        requests = [(place, work) for place, work in placed if isinstance(work, Request)]
        if requests:
            self._metrics.batch("recommend", len(requests))
            found = done_together(
                self._recommender.recommend_many, [[work] for _, work in requests], self._check_requests
            )
            yield places_of(requests, [each[0] if isinstance(each, list) else each for each in found])
        for place, work in placed:
            if isinstance(work, ShowUser):
                self._metrics.batch("show", 1)
                yield [(place, attempt(self._show, work))]
        if counts := [place for place, work in placed if isinstance(work, Count)]:
            sizes = attempt(lambda _: self._recommender.sizes(), None)
            yield [(place, sizes) for place in counts]
        if probes := [(place, attempt(self._probe, "")) for place, work in placed if isinstance(work, Probe)]:
            yield probes
        writes = [(place, work) for place, work in placed if isinstance(work, (Observe, Forget))]
        for kind, run in itertools.groupby(writes, key=lambda pair: type(pair[1])):
            group: list[tuple[int, Any]] = list(run)
            if kind is Observe:
                yield places_of(group, self._observe([work for _, work in group]))
            else:
                yield [(place, attempt(self._recommender.forget, work.user)) for place, work in group]

    def _observe(self, works: Sequence[Observe]) -> list[Any]:
        self._metrics.batch("observe", len(works))

        def observe(events: Sequence[Event]) -> list[None]:
            self._recommender.observe_many(events)
            self._metrics.events.inc(len(events))
            return [None] * len(events)

        return done_together(observe, [work.events for work in works], self._check_events)

    def _check_events(self, events: Sequence[Event]) -> None:
        """Raise the `InputError` of events that are wrong whatever the sessions are."""
        for index, event in enumerate(events):
            user_key(event.user, index)
            check_time(event, index)
        if reads_times(self._recommender.model):
            event_times(events)
        events_columns(events, self._recommender.model.event_columns)
        known_items(events, item_ids_of(self._recommender.model))

    def _check_requests(self, requests: Sequence[Request]) -> None:
        """Raise an `InputError` if the user of a request has no session, or a damaged one, or its time is wrong."""
        for request in requests:
            request_time(self._recommender.model, request.at, "")
            if not self._recommender.events_seen(request.user):
                raise UnknownUserError(f"no session of user={request.user!r}")

    def _show(self, work: ShowUser) -> ShownUser:
        user, at = work.user, work.at
        newest_time = self._recommender.newest_time(user)
        if at is not None and newest_time is not None:
            at = max(at, newest_time)
        (best,) = self._recommender.recommend_many([Request(user, work.k, at=at)])
        events, num_events = self._recommender.kept_events(user), self._recommender.events_seen(user)
        return ShownUser(best, events, num_events, newest_time, at)

    def _probe(self, user: Id) -> None:
        """Read a session from the store."""
        self._recommender.events_seen(user)


def done_together(
    do: Callable[[Sequence[Entry]], Sequence[Any]],
    works: Sequence[Sequence[Entry]],
    check: Callable[[Sequence[Entry]], None],
) -> list[Any]:
    """Do the entries of several pieces of work in one call of `do`, which does all of them or none.

    After a bad entry, all pieces are checked, which raises an `InputError` for a piece that is probably bad, cheaper
    than `do`. Those that fail are done separately, which counts the entries in their errors from the piece's own first
    one. The others are done together. If an entry is still bad, because of the user's session, the first half of the
    pieces is done before the second: earlier pieces may have made it bad.

    Returns:
        For each piece the results of its entries, or an exception as its outcome.
    """
    if len(works) < 2:
        return [attempt(do, entries) for entries in works]
    try:
        results = do(list(itertools.chain(*works)))
    except BatchEntryError:
        bad = [isinstance(attempt(check, entries), InputError) for entries in works]
        if not any(bad):
            half = len(works) // 2
            return [*done_together(do, works[:half], check), *done_together(do, works[half:], check)]
        good = [entries for entries, is_bad in zip(works, bad, strict=True) if not is_bad]
        found = iter(done_together(do, good, check))
        return [attempt(do, entries) if is_bad else next(found) for entries, is_bad in zip(works, bad, strict=True)]
    except InputError as error:
        return [error] * len(works)
    ends = list(itertools.accumulate(map(len, works)))
    return [list(results[end - len(entries) : end]) for entries, end in zip(works, ends, strict=True)]


def attempt(do: Callable[[Any], Any], argument: Any) -> Any:
    """Return the result, or the `InputError` that was raised."""
    try:
        return do(argument)
    except InputError as error:
        return error


def places_of(works: Sequence[tuple[int, Any]], outcomes: Sequence[Any]) -> Outcomes:
    """Return outcomes with their places in the batch."""
    return [(place, outcome) for (place, _), outcome in zip(works, outcomes, strict=True)]
