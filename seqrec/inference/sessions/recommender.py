"""A model that follows its users event by event."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from seqrec.errors import (
    BatchEntryError,
    DamagedSessionError,
    InputError,
    LateEventError,
    UnknownUserError,
)
from seqrec.inference.sessions.entries import (
    Event,
    HistoryOf,
    Id,
    Request,
    Scored,
    check_time,
    known_items,
    scored_lists,
    user_key,
)
from seqrec.inference.sessions.keeper import SessionKeeper
from seqrec.inference.sessions.session import Session
from seqrec.inference.sessions.stores import InMemoryStore, StateStore
from seqrec.inference.sessions.user_state import UserState, user_state_of
from seqrec.models import Recommender, SequentialRecommender
from seqrec.types import RaggedItems, SeenItems

_LOG = logging.getLogger(__name__)


class SessionRecommender:
    """Takes users' events as they come, and recommends items at any time. May be called from several threads.

    What is kept of a user: what the model goes on from (see `UserState`), the number of events, the newest time, and
    the items met so far, at 4 bytes each. With a model that streams, `observe` and `recommend` then cost the same
    whatever the number of events, but for copying and hiding the items met.

    **Order.** A user's events count in the order in which they arrive. An event with an earlier time than the user's
    newest is refused: a state cannot take it in where it belongs, and an event that is sent twice, or long after, would
    pass for the newest. Equal times are fine. Events without a time are taken as they come.

    **Batches** are done whole or not at all: bad entries are refused before anything changes, and the error's `index`
    says which. `observe` has returned: the store has the event.

    Args:
        model: A recommender that knows the log's ids, from `load`. It is put into evaluation mode, and
            its weights must not change from now on.
        store: Where sessions are kept; None is a `InMemoryStore`.
        memory: What the model goes on from; None streams where the model can, and says so if it must re-encode.
        max_seen: Items met that are kept for `filter_seen`, those met last; None is all.
        history_of: Asked for users who have no session when they are first observed or want items, such as
            `log_histories(event_store)`. Their histories become sessions.

    Raises:
        InputError: the model does not know the log's ids, or a value is out of range.
        SessionStoreError: the store is of another model, or cannot be used.
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
        if model.item_vocabulary is None:
            raise InputError("model does not know the log's item ids; take it from load")
        if max_seen is not None and max_seen < 0:
            raise InputError(f"max_seen={max_seen} must be at least 0, or None for all items")
        self.model = model.eval()
        # Made once: nothing that scores changes.
        self._scorer = model.scorer()
        if len(model.item_vocabulary) != self._scorer.num_items:
            raise InputError(
                f"model has {self._scorer.num_items} items, but its item_vocabulary {len(model.item_vocabulary)}; load "
                "it with the store that it was trained on"
            )
        has_users = isinstance(model, SequentialRecommender) and model.users is not None
        self._memory = user_state_of(model) if memory is None else memory
        self._keeper = SessionKeeper(
            InMemoryStore() if store is None else store,
            memory=self._memory,
            items=model.item_vocabulary,
            users=model.user_vocabulary if has_users else None,
            max_seen=max_seen,
            history_of=history_of,
        )
        _LOG.info("sessions of %s: %s", model.title, self._memory.description)

    @property
    def streams(self) -> bool:
        """Whether an event costs the same whatever the number of events before; False where it is re-encoding."""
        return self._memory.streams

    def observe(self, user: Id, item: Id, time: int | None = None) -> None:
        """Take in one event; see `observe_many`."""
        self.observe_many([Event(user, item, time)])

    def observe_many(self, events: Sequence[Event]) -> None:
        """Take in events, those of one user in their order here, all of them or none.

        Args:
            events: Of known items; users may be new.

        Raises:
            UnknownItemError: an item that is not in the catalogue.
            LateEventError: an event with an earlier time than the user's newest.
            BatchEntryError: a user, item or time of another kind.
            DamagedSessionError: a user's session cannot be read.
            SessionStoreError: the store cannot be used.
        """
        if not events:
            return
        keys = [user_key(event.user, i, f"events[{i}]: ") for i, event in enumerate(events)]
        item_ids = known_items(events, self._keeper.items)
        places: dict[bytes, list[int]] = {}
        for index, (key, event) in enumerate(zip(keys, events, strict=True)):
            check_time(event, index)
            places.setdefault(key, []).append(index)
        users = [events[own[0]].user for own in places.values()]
        with self._keeper.lock:
            try:
                sessions = self._keeper.sessions(list(places), users)
            except DamagedSessionError as error:
                error.index = list(places.values())[error.index][0]  # of the user's first event
                raise
            times = [
                newest_time(events, own, None if session is None else session.newest_time)
                for own, session in zip(places.values(), sessions, strict=True)
            ]
            new = [item_ids[own] for own in places.values()]
            self._keeper.extend(list(places), users, sessions, new, times)

    def recommend(self, user: Id, k: int = 10, *, filter_seen: bool = True) -> list[Scored]:
        """The best items for one user; see `recommend_many`."""
        return self.recommend_many([Request(user, k, filter_seen)])[0]

    def recommend_many(self, requests: Sequence[Request]) -> list[list[Scored]]:
        """The best items for each request, best first; exact, over the whole catalogue.

        Args:
            requests: Users with events so far, or with a history that `history_of` finds.

        Returns:
            At most `k` items a request, fewer where the user has met the others.

        Raises:
            UnknownUserError: a user of whom no event is known.
            BatchEntryError: a `k` that is no number from 1 to the catalogue's size, or a user of another kind.
            DamagedSessionError: a user's session cannot be read.
            SessionStoreError: the store cannot be used.
        """
        if not requests:
            return []
        keys = [user_key(request.user, i, f"requests[{i}]: ") for i, request in enumerate(requests)]
        for index, request in enumerate(requests):
            k, most = request.k, self._scorer.num_items
            if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or not 1 <= k <= most:
                raise BatchEntryError(
                    f"requests[{index}]: k={k!r} must be a whole number between 1 and the catalogue's {most:,} items",
                    index,
                )
        sessions = self._known_sessions(keys, requests)
        results: list[list[Scored]] = [[] for _ in requests]
        user_ids = self._keeper.user_ids([request.user for request in requests])
        for places in self._memory.batches([session.memory for session in sessions]):
            found = self._best(
                [sessions[place] for place in places], [requests[place] for place in places], user_ids[places]
            )
            for place, best in zip(places, found, strict=True):
                results[place] = best
        return results

    def begin(self, users: Sequence[Id], history_of: HistoryOf) -> int:
        """Make sessions of users who have none, all at once; others are left alone.

        Args:
            users: The users.
            history_of: Asked for the history of those without a session.

        Returns:
            Of how many users there is a session now and was none before.

        Raises:
            BatchEntryError: a user of another kind.
            SessionStoreError: the store cannot be used.
        """
        keys = [user_key(user, i, f"users[{i}]: ") for i, user in enumerate(users)]
        return self._keeper.begin(keys, users, history_of)

    def forget(self, user: Id) -> bool:
        """Delete all that is kept of a user, who then is unknown; `history_of`, if it knows the user, is asked again.

        Returns:
            Whether the user had a session.
        """
        with self._keeper.lock:
            return self._keeper.store.delete(user_key(user))

    def events_seen(self, user: Id) -> int:
        """Number of the user's events so far; 0 without a session."""
        (session,) = self._keeper.stored([user_key(user)], [user])
        return 0 if session is None else session.num_events

    def __contains__(self, user: Id) -> bool:
        """Whether the user has a session."""
        return self._keeper.store.get_many([user_key(user)])[0] is not None

    def __len__(self) -> int:
        """Number of users with a session."""
        return len(self._keeper.store)

    def close(self) -> None:
        """Close the store."""
        self._keeper.store.close()

    def __enter__(self) -> SessionRecommender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _known_sessions(self, keys: Sequence[bytes], requests: Sequence[Request]) -> list[Session]:
        known = []
        sessions = self._keeper.sessions(keys, [request.user for request in requests])
        for index, session in enumerate(sessions):
            if session is None:
                raise UnknownUserError(
                    f"requests[{index}]: no event of user={requests[index].user!r} is known; observe one first",
                    index,
                )
            known.append(session)
        return known

    @torch.no_grad()
    def _best(
        self, sessions: Sequence[Session], requests: Sequence[Request], user_ids: Tensor
    ) -> list[list[Scored]]:
        """The best items of one batch."""
        states = self._memory.states([session.memory for session in sessions], user_ids)
        nothing = np.empty(0, np.int32)
        hidden = [
            np.sort(session.seen) if request.filter_seen else nothing
            for session, request in zip(sessions, requests, strict=True)
        ]
        exclude = RaggedItems.from_rows([torch.from_numpy(row.astype(np.int64)) for row in hidden])
        most = max(request.k for request in requests)
        best = self._scorer.top_k(
            states, most, user_ids, exclude=SeenItems(exclude.item_ids, exclude.offsets).to(states.device)
        )
        return scored_lists(best, [request.k for request in requests], self._keeper.items)


def newest_time(events: Sequence[Event], places: Sequence[int], newest: int | None) -> int | None:
    """The latest time behind a user's further events.

    Args:
        events: A batch.
        places: The user's events in it, in order.
        newest: The latest time before them; None where there is none.

    Raises:
        LateEventError: an event with an earlier time than one before it.
    """
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
