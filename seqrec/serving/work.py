"""Work of requests on sessions and histories, in batches in which a bad request fails alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from seqrec.catalogue.candidates import Candidates
from seqrec.catalogue.recommend import best_items_of_each, item_ids_of, trained_length
from seqrec.data.columns import Column
from seqrec.errors import BatchEntryError, InputError, UnknownItemError, UnknownUserError
from seqrec.inference.sessions import Event, Id, Request, Scored, SessionRecommender, UserHistory
from seqrec.inference.sessions.entries import (
    check_time,
    event_times,
    events_columns,
    history_columns,
    history_times,
    known_items,
    recommend_options,
    request_time,
    scored_lists,
    user_key,
)
from seqrec.inference.sessions.item_rows import ItemRows
from seqrec.inference.sessions.user_state import event_dtype, length_groups, reads_times
from seqrec.models import Recommender, SequentialRecommender
from seqrec.models.explain import Method, method_for
from seqrec.models.similar_items import ItemSimilarity
from seqrec.serving.batcher import Outcomes
from seqrec.serving.metrics import Metrics
from seqrec.types import RaggedItems

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


class Look(NamedTuple):
    """The outcome is a `Session`: what a request recommends, and what is kept of its user."""

    request: Request


class Session(NamedTuple):
    """Recommendations to a user, the events that the store keeps, None if it keeps none, and the number of all events.
    """

    best: list[Scored]
    events: UserHistory | None
    num_events: int


class Explain(NamedTuple):
    """How much each of a user's events raises an item's score, as asked for at a time; the outcome is an `Explained`.

    The newest `max_length` events count. Events of items that the catalogue lacks do not.
    """

    events: UserHistory
    item: Id
    user: Id
    at: int | None = None


class Explained(NamedTuple):
    """A contribution for each event, None for those that do not count; the item's score, and the method."""

    contributions: list[float | None]
    score: float
    method: Method


class KnownHistory(NamedTuple):
    """Internal item ids (L,) of a history, times (L,) and columns of its events, and when it is asked for, if they are
    read.
    """

    item_ids: NDArray[np.int64]
    times: NDArray[np.int64] | None
    columns: dict[str, Column]
    at: int | None


def row_bytes_of(recommender: SessionRecommender) -> int:
    """Return the bytes of a user's state."""
    model = recommender.model
    if recommender.streams and isinstance(model, SequentialRecommender):
        return model.init_state(1).row_bytes
    return event_dtype(model).itemsize * (trained_length(model) or 200)


class Sizes:
    """Measures work in events: what is decoded, encoded or looked up, and the states of `row_bytes` that are moved."""

    def __init__(self, row_bytes: int) -> None:
        self._per_user = row_bytes // BYTES_PER_EVENT

    def __call__(self, work: Any) -> int:
        """Return the size of a piece of work."""
        if isinstance(work, Observe):
            return len(work.events) + self._per_user * len({event.user for event in work.events})
        if isinstance(work, Explain):
            return len(work.events.items) ** 2
        if isinstance(work, Look):
            work = work.request
        if isinstance(work, Request):
            return 1 + self._per_user + len(work.block)
        if isinstance(work, RecommendToHistory):
            return len(work.history) + len(work.block)
        return 1


class SessionWork:
    """Does `Observe`, `Forget`, `Request`, `Look`, `Count` and `Probe` on users' sessions.

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
        if looks := [(place, attempt(self._look, work)) for place, work in placed if isinstance(work, Look)]:
            yield looks
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

    def _look(self, work: Look) -> Session:
        user = work.request.user
        (best,) = self._recommender.recommend_many([work.request])
        return Session(best, self._recommender.kept_events(user), self._recommender.events_seen(user))

    def _probe(self, user: Id) -> None:
        """Read a session from the store."""
        self._recommender.events_seen(user)


class HistoryWork:
    """Does `Probe`, `FindSimilar`, `Explain` and `RecommendToHistory`: encodes each history's newest events, as
    training did.

    The model is in evaluation mode and knows the log's ids.
    """

    def __init__(self, model: Recommender, metrics: Metrics) -> None:
        assert model.item_vocabulary is not None
        self._model = model
        self._items = model.item_vocabulary
        self._scorer = model.scorer()
        self._max_length, self._reads_times = trained_length(model), reads_times(model)
        self._metrics = metrics
        self._similarity: ItemSimilarity | None = None

    def __call__(self, works: Sequence[Any]) -> Iterator[Outcomes]:
        """Yield the outcomes of a batch; see `Batcher`."""
        yield [(place, None) for place, work in enumerate(works) if isinstance(work, Probe)]
        if similar := [(place, work) for place, work in enumerate(works) if isinstance(work, FindSimilar)]:
            self._metrics.batch("similar", len(similar))
            yield places_of(similar, self._similar([work for _, work in similar]))
        for place, work in enumerate(works):
            if isinstance(work, Explain):
                self._metrics.batch("explain", 1)
                yield [(place, attempt(self._explained, work))]
        asked = [place for place, work in enumerate(works) if isinstance(work, RecommendToHistory)]
        if not asked:
            return
        self._metrics.batch("history", len(asked))
        found = {place: attempt(self._known, works[place]) for place in asked}
        yield [(place, error) for place, error in found.items() if isinstance(error, Exception)]
        places = [place for place, known in found.items() if not isinstance(known, Exception)]
        counts = [len(found[place].item_ids) for place in places]
        lengths = [min(count, self._max_length or count) for count in counts]
        for group in length_groups(lengths):
            own = [places[row] for row in group]
            best = self._best([works[place] for place in own], [found[place] for place in own])
            yield list(zip(own, best, strict=True))

    def _known(self, work: RecommendToHistory) -> KnownHistory:
        """Return a history as the model reads it.

        Raises:
            UnknownItemError: if an item is not in the catalogue.
            InputError: if times or columns are missing or not in order, or the model does not read the time of
                requests.
        """
        history = work.history
        item_ids = self._items.lookup(history)
        unknown = np.flatnonzero(item_ids == 0)
        if len(unknown):
            place = int(unknown[0])
            raise UnknownItemError(
                f"history[{place}]: item={history[place]!r} is not among the {len(self._items):,} items that the model "
                "was trained on; leave it out",
                place,
            )
        times, at = None, request_time(self._model, work.at, "")
        if self._reads_times or work.times is not None:
            times = history_times(work.times, len(history), "the history")
        if at is not None and times is not None and at < times[-1]:
            raise InputError(f"at={at} is before the newest event, at {times[-1]}, of history: ask at a later time")
        columns = history_columns(work.columns, self._model.event_columns, len(history), "the history")
        return KnownHistory(item_ids, times if self._reads_times else None, columns, at)

    @torch.no_grad()
    def _best(self, works: Sequence[RecommendToHistory], known: Sequence[KnownHistory]) -> list[list[Scored]]:
        newest, histories = slice(-(self._max_length or 0), None), [each.item_ids for each in known]
        times = [each.times[newest] for each in known if each.times is not None]
        at = [each.at for each in known if each.at is not None]
        columns = [{name: column.taken(newest) for name, column in each.columns.items()} for each in known]
        rows = ItemRows.of([history[newest] for history in histories], times or None, columns)
        users, asked = torch.zeros(len(works), dtype=torch.int64), torch.tensor(at) if at else None
        events = RaggedItems.from_rows([torch.from_numpy(history) for history in histories])
        batch = replace(rows.batch(users, asked), seen_events=events).to(self._model.device)
        options = [
            recommend_options(work.k, work.filter_seen, work.block, self._items, candidates=work.candidates)
            for work in works
        ]
        states = self._model.last_states(batch)
        best = best_items_of_each(self._scorer, states, batch.user_ids, histories, options)
        return scored_lists(best, [own.top_k for own in options], self._items)

    def _explained(self, work: Explain) -> Explained:
        model, items, (_, _, times, columns) = self._model, work.events.items, work.events
        if not isinstance(model, SequentialRecommender):
            raise InputError(f"{model.title} reads no sequence of events, so its recommendations have no explanations")
        (item_id,) = self._items.lookup([work.item]).tolist()
        if not item_id:
            raise UnknownItemError(f"item={work.item!r} is not among the {len(self._items):,} items of the model")
        places = np.flatnonzero(self._items.lookup(items))[-int(model.hparams["max_length"]) :].tolist()
        if not places:
            raise InputError("none of the user's kept events has an item of the model's catalogue")
        taken = {name: [values[place] for place in places] for name, values in (columns or {}).items()}
        own_times = None if times is None else [int(times[place]) for place in places]
        history = [items[place] for place in places]
        known = self._known(RecommendToHistory(history, at=work.at, times=own_times, columns=taken))
        rows = ItemRows.of([known.item_ids], None if known.times is None else [known.times], [known.columns])
        users = model.user_vocabulary if model.users is not None else None
        user = 0 if users is None else int(users.lookup([work.user])[0])
        found = model.explain(rows.padded(), item_id, method=method_for(len(places)), user=user, at=known.at)
        contributions: list[float | None] = [None] * len(items)
        for place, contribution in zip(places, found.contributions.tolist(), strict=True):
            contributions[place] = contribution
        return Explained(contributions, found.score, found.method)

    def _similar(self, works: Sequence[FindSimilar]) -> list[Any]:
        """Return the items most similar to those of some requests, or why there are none."""
        try:
            # Made for the first request, as it may copy the item table.
            self._similarity = self._similarity or self._model.item_similarity()
        except InputError as error:
            return [error] * len(works)
        items = self._items
        outcomes: list[Any] = [
            UnknownItemError(f"item={work.item!r} is not among the {len(items):,} items of the model") for work in works
        ]
        item_ids = items.lookup([work.item for work in works])
        known = np.flatnonzero(item_ids).tolist()
        if known:
            asked = [works[place] for place in known]
            options = [recommend_options(work.k, True, (), items, candidates=work.candidates) for work in asked]
            ids = torch.from_numpy(item_ids[known]).to(self._model.device)
            with torch.no_grad():
                states = self._similarity.states(ids)
            # The item itself counts as seen.
            own = list(item_ids[known].reshape(-1, 1))
            best = best_items_of_each(self._similarity.scorer, states, torch.zeros_like(ids), own, options)
            for place, found in zip(known, scored_lists(best, [work.k for work in asked], items), strict=True):
                outcomes[place] = found
        return outcomes


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
