"""Recommendations in sessions: events come in one at a time, and users can ask for items at any time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from itertools import chain, compress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqrec.catalogue.candidates import Candidates
from seqrec.catalogue.recommend import best_items_of_each, item_ids_of
from seqrec.data.store import EventStore
from seqrec.errors import BatchEntryError, InputError, UnknownUserError
from seqrec.inference.sessions.entries import (
    Event,
    HistoryOf,
    Id,
    Request,
    Scored,
    check_time,
    event_times,
    events_columns,
    known_items,
    log_histories,
    newest_time,
    recommend_options,
    request_time,
    scored_lists,
    user_key,
    user_keys,
)
from seqrec.inference.sessions.item_rows import ItemRows
from seqrec.inference.sessions.keeper import SessionKeeper
from seqrec.inference.sessions.kept_events import KeptEvents
from seqrec.inference.sessions.session import Session, unrepeated
from seqrec.inference.sessions.stores import InMemoryStore, LiveStore, SessionStore, StateStore, StoreSizes
from seqrec.inference.sessions.user_state import UserState, reads_times, user_state_of
from seqrec.models import Recommender, SequentialRecommender

_LOG = logging.getLogger(__name__)


class SessionRecommender(AbstractContextManager["SessionRecommender"]):
    """Takes in users' events one at a time, and recommends items at any time. May be called from several threads.

    It keeps per user: the state that the model continues from (see `UserState`), the number of events, the newest
    time, and the seen items, at 4 bytes each. If the model streams, the cost of `observe` and `recommend` does not
    depend on the number of events, apart from copying and hiding the seen items.

    **Order.** A user's events count in the order of arrival. An event with an earlier time than the user's newest one
    is refused: a state cannot insert it at its place, and an event that is sent twice or late would pass for the
    newest. Equal times are allowed. Events without a time count in the order of arrival; a model that reads the time
    of events refuses them.

    **Repeats.** An event with an `event_id` that is among the user's last 256 is acknowledged and changes nothing. So a
    client that does not know whether an event arrived sends it again.

    **Events.** `SQLiteStore` and `RedisStore` keep each user's newest events next to the state (`keep_events`), as the
    log's item ids. If a session is damaged, or another model, catalogue or version of seqrec has made it, it is made
    again from these events when the user is first observed or asks for items, exactly as if they were observed
    together. Items that are no longer in the catalogue are left out.

    **Batches** are applied whole or not at all: bad entries are refused before anything changes, and the error's
    `index` is the entry's place. When `observe` returns, the store has the event.

    Args:
        model: A recommender that knows the log's ids, from `load`. It is put into evaluation mode, and
            its weights must not change afterwards.
        store: Store of the sessions; None is an `InMemoryStore`.
        memory: The kind of user state; None streams if the model can, and logs the reason if it must re-encode.
        max_seen: Most seen items that are kept for `filter_seen`, the last ones; None keeps all.
        history_of: Finds histories of users without a session, such as `log_histories(event_store)`. Called when they
            are first observed or ask for items; their histories become sessions.

    Raises:
        InputError: if the model does not know the log's ids, or a value is out of range.
        SessionStoreError: if the store belongs to another model and has no events, or cannot be used.

    Example:
        >>> from seqrec import MambaRec, SessionRecommender
        >>> from seqrec.data.vocabulary import Vocabulary
        >>> model = MambaRec(num_items=3, d_model=8, positions=False)
        >>> model.item_vocabulary = Vocabulary(["apple", "bread", "cheese"])
        >>> with SessionRecommender(model) as sessions:
        ...     sessions.observe("ada", "apple")
        ...     best = sessions.recommend("ada", k=2)
        >>> sorted(each.item for each in best)
        ['bread', 'cheese']
    """

    def __init__(
        self,
        model: Recommender,
        store: StateStore | None = None,
        *,
        memory: UserState | None = None,
        max_seen: int | None = None,
        history_of: HistoryOf | None = None,
    ) -> None:
        if max_seen is not None and max_seen < 0:
            raise InputError(f"max_seen={max_seen} must be at least 0, or None for all items")
        self.model = model.eval()
        # Made once, as the weights do not change.
        self._scorer = model.scorer()
        has_users = isinstance(model, SequentialRecommender) and model.users is not None
        self._user_state = user_state_of(model) if memory is None else memory
        self._keeper = SessionKeeper(
            store=InMemoryStore() if store is None else store,
            user_state=self._user_state,
            items=item_ids_of(model),
            users=model.user_vocabulary if has_users else None,
            max_seen=max_seen,
            history_of=history_of,
            reads_times=reads_times(model),
            event_columns=model.event_columns,
        )
        _LOG.info("sessions of %s: %s", model.title, self._user_state.description)

    @property
    def streams(self) -> bool:
        """Whether the cost of an event does not depend on earlier events; False if histories are re-encoded."""
        return self._user_state.streams

    def observe(
        self,
        user: Id,
        item: Id,
        time: int | None = None,
        event_id: str | None = None,
        columns: Mapping[str, Any] | None = None,
    ) -> None:
        """Take in one event; see `observe_many`."""
        self.observe_many([Event(user, item, time, event_id, columns)])

    def observe_many(self, events: Sequence[Event]) -> None:
        """Take in all of the events or, after an error, none; those of one user in their order here.

        Args:
            events: Events of known items; users may be new.

        Raises:
            UnknownItemError: if an item is not in the catalogue.
            LateEventError: if an event has an earlier time than the user's newest.
            BatchEntryError: if a user, item, time or column has another type, or one that the model reads is missing.
            DamagedSessionError: if a user's session cannot be read.
            SessionStoreError: if the store cannot be used.
        """
        if not events:
            return
        keys = user_keys([event.user for event in events], "events")
        item_ids = known_items(events, self._keeper.items)
        marked = [i for i, event in enumerate(events) if event.time is not None or event.event_id is not None]
        for index in marked:
            check_time(events[index], index)
        event_time = event_times(events) if self._keeper.reads_times else None
        read = events_columns(events, self.model.event_columns)
        places = places_of(keys)
        users = [events[own[0]].user for own in places.values()]
        with self._keeper.lock:
            try:
                sessions = self._keeper.sessions(list(places), users)
            except BatchEntryError as error:
                error.index = list(places.values())[error.index][0]  # of the user's first event
                raise
            # All are checked before anything changes.
            fresh, ids = list(places.values()), None
            times = [None if each is None else each.newest_time for each in sessions]
            if any(events[index].event_id is not None for index in marked):
                digests = [event.id_digest for event in events]
                fresh = [unrepeated(digests, own, each) for own, each in zip(fresh, sessions, strict=True)]
                ids = [[x for i in own if (x := digests[i]) is not None] for own in fresh if own]
            if marked:
                times = [newest_time(events, own, time) for own, time in zip(fresh, times, strict=True)]
            columns: Any = list(places), users, sessions, times, fresh
            if not all(fresh):
                columns = (list(compress(column, fresh)) for column in columns)
            own_keys, users, sessions, times, own = columns
            if own:
                # If all users have one event, these are in order.
                if len(own) < len(events):
                    order = np.fromiter(chain(*own), np.int64)
                    item_ids, event_time = item_ids[order], None if event_time is None else event_time[order]
                    read = {name: column.taken(order) for name, column in read.items()}
                rows = ItemRows(item_ids, map(len, own), event_time, read)
                self._keeper.extend(own_keys, users, sessions, times, rows, ids)

    def recommend(
        self,
        user: Id,
        k: int = 10,
        *,
        filter_seen: bool = True,
        at: int | datetime | None = None,
        candidates: Candidates | Sequence[Id] | None = None,
    ) -> list[Scored]:
        """Return the best items for one user; see `recommend_many`."""
        return self.recommend_many([Request(user, k, filter_seen, at=at, candidates=candidates)])[0]

    def recommend_many(self, requests: Sequence[Request]) -> list[list[Scored]]:
        """Return the best items for each request, best first, by an exact search of the catalogue or of its candidates.

        Args:
            requests: Requests of users with events so far, or with a history that `history_of` finds.

        Returns:
            At most `k` items per request; fewer if the others are seen, blocked or no candidates.

        Raises:
            UnknownUserError: if no event of a user is known.
            BatchEntryError: if `k` is not a number from 1 to the catalogue's size, an id has another type, or `at` is
                missing, not read by the model, or before the user's newest event, or candidates are unknown, none or of
                another catalogue.
            DamagedSessionError: if a user's session cannot be read.
            SessionStoreError: if the store cannot be used.
        """
        if not requests:
            return []
        users = [request.user for request in requests]
        keys = user_keys(users, "requests")
        for index, request in enumerate(requests):
            k, most = request.k, self._scorer.num_items
            if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or not 1 <= k <= most:
                raise BatchEntryError(
                    f"requests[{index}]: k={k!r} must be a whole number between 1 and the catalogue's {most:,} items",
                    index,
                )
        asked = [
            request_time(self.model, request.at, f"requests[{index}]: ", index)
            for index, request in enumerate(requests)
            if request.at is not None or self.model.reads_request_time
        ]
        found = self._keeper.sessions(keys, users)
        # One without a state has had no item of this catalogue.
        sessions = [session for session in found if session is not None and session.state]
        if len(sessions) < len(found):
            index = next(index for index, session in enumerate(found) if session is None or not session.state)
            raise UnknownUserError(
                f"requests[{index}]: no event of user={users[index]!r} is known; observe one first", index
            )
        results: list[list[Scored]] = [[] for _ in requests]
        at = asked_at(asked, sessions, users) if asked else None
        user_ids = self._keeper.user_ids(users)
        for places in self._user_state.batches([session.state for session in sessions]):
            lists = self._best(places, sessions, requests, user_ids[places], None if at is None else at[places])
            for place, best in zip(places, lists, strict=True):
                results[place] = best
        return results

    def begin(self, users: Sequence[Id], history_of: HistoryOf) -> int:
        """Make sessions of users who have none, all at once, and return how many; others are unchanged.

        Args:
            users: The users.
            history_of: Finds the history of a user without a session.

        Raises:
            BatchEntryError: if a user's id has another type.
            SessionStoreError: if the store cannot be used.
        """
        return self._keeper.begin(user_keys(users, "users"), users, history_of)

    def forget(self, user: Id) -> bool:
        """Delete all that is kept of a user, and return whether the user had a session.

        The user is unknown afterwards, unless `history_of` finds a history.
        """
        with self._keeper.lock:
            return self._keeper.store.delete(user_key(user))

    def events_seen(self, user: Id) -> int:
        """Return the number of the user's events so far; 0 without a session."""
        (session,) = self._keeper.stored([user_key(user)], [user])
        return 0 if session is None else session.num_events

    def newest_time(self, user: Id) -> int | None:
        """Return the latest time of a user's events, also of those that `history_of` finds; None if none had one."""
        (session,) = self._keeper.sessions([user_key(user)], [user])
        return None if session is None else session.newest_time

    def kept_events(self, user: Id) -> KeptEvents | None:
        """Return the newest events of a user that the store keeps; None if it keeps none.

        Raises:
            DamagedSessionError: if the events are damaged.
            SessionStoreError: if the store cannot be used.
        """
        return self._keeper.kept_events(user_key(user), user)

    def __contains__(self, user: Id) -> bool:
        """Return whether the user has a session."""
        return self._keeper.rows([user_key(user)])[0] is not None

    def __len__(self) -> int:
        """Return the number of users with a session."""
        return len(self._keeper.store)

    def sizes(self) -> StoreSizes:
        """Return how much the store keeps; of a store that keeps no events, the number of users alone."""
        store = self._keeper.store
        return store.sizes() if isinstance(store, SessionStore) else StoreSizes(len(store))

    @property
    def rebuilt(self) -> int:
        """Number of sessions that were damaged or of another model, and were made again from their events."""
        return self._keeper.rebuilt

    @property
    def rebuilt_share(self) -> float:
        """`rebuilt` as a share, at most 1, of the sessions that another model left in the store; 1 if it was ours."""
        return min(1.0, self.rebuilt / self._keeper.others) if self._keeper.others else 1.0

    def take_over(self) -> None:
        """Describe the store as this model's, after another recommender described it as its own."""
        self._keeper.take_over()

    def release(self) -> None:
        """Free the memory of the states after another recommender took over the store; this one must not be used."""
        if self.streams and isinstance(self._keeper.store, LiveStore):
            self._keeper.store.release()

    def close(self) -> None:
        """Close the store."""
        self._keeper.store.close()

    def __exit__(self, *error: object) -> None:
        self.close()

    @torch.no_grad()
    def _best(
        self,
        places: Sequence[int],
        sessions: Sequence[Session],
        requests: Sequence[Request],
        user_ids: Tensor,
        at: Tensor | None,
    ) -> list[list[Scored]]:
        """Return the best items of one batch, the requests at some places."""
        items = self._keeper.items
        states = self._user_state.states([sessions[place].state for place in places], user_ids, at)
        seen = [sessions[place].seen for place in places]
        options = [
            recommend_options(own.k, own.filter_seen, own.block, items, place, own.candidates)
            for place, own in ((place, requests[place]) for place in places)
        ]
        best = best_items_of_each(self._scorer, states, user_ids, seen, options)
        return scored_lists(best, [own.top_k for own in options], items)


def places_of(keys: Sequence[bytes]) -> dict[bytes, Sequence[int]]:
    """Return the places of each key, in the order of its first."""
    if len(set(keys)) == len(keys):
        # Much faster for the most common case.
        return dict(zip(keys, zip(range(len(keys)), strict=True), strict=True))
    places: dict[bytes, list[int]] = {}
    for index, key in enumerate(keys):
        places.setdefault(key, []).append(index)
    return dict(places)


def asked_at(times: Sequence[Any], sessions: Sequence[Session], users: Sequence[Id]) -> Tensor:
    """Return the times (B,) of requests; a `BatchEntryError` refuses one before the user's newest event."""
    for index, (time, session) in enumerate(zip(times, sessions, strict=True)):
        if session.newest_time is not None and time < session.newest_time:
            raise BatchEntryError(
                f"requests[{index}]: at={time} is before the newest event, at {session.newest_time}, of "
                f"user={users[index]!r}: ask at a later time",
                index,
            )
    return torch.tensor(times, dtype=torch.int64)


def warm(sessions: SessionRecommender, log: EventStore, *, batch_events: int = 1 << 16) -> int:
    """Make sessions of all users of a log who have none, in batches of users with similar length.

    If it was stopped, a second call continues with the missing users. If only some of the log's users will come, use
    `history_of=log_histories(log)` instead: it does the same for each user on arrival, and takes no space for others.

    Args:
        sessions: The sessions.
        log: The log, such as the one that the model was trained on.
        batch_events: Approximate number of events that are encoded and written at a time.

    Returns:
        Number of new sessions.
    """
    history_of, made = log_histories(log), 0
    lengths = np.diff(log.offsets)
    order = np.argsort(lengths, kind="stable")
    # A batch ends when the running sum of events passes a multiple of `batch_events`.
    ends = np.flatnonzero(np.diff(np.cumsum(lengths[order]) // batch_events)) + 1
    for rows in np.split(order, ends):
        users = log.user_vocabulary.external_ids(rows + 1)
        made += sessions.begin(users.tolist() if isinstance(users, np.ndarray) else users, history_of)
    return made
