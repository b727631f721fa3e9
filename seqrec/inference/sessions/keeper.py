"""Sessions of many users in a store."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import SessionStoreError
from seqrec.inference.sessions.entries import HistoryOf, Id, UserHistory
from seqrec.inference.sessions.session import Session
from seqrec.inference.sessions.stores import StateStore
from seqrec.inference.sessions.user_state import UserState

_LOG = logging.getLogger(__name__)
FORMAT = 1


class SessionKeeper:
    """Reads sessions from a store, and writes them back behind further events.

    Args:
        store: Where they are kept.
        memory: What the model goes on from.
        items: The log's item ids.
        users: The log's user ids, for models with vectors of users; None where all users are the same to the model.
        max_seen: Items met that are kept, those met last; None is all.
        history_of: Asked for users without a session; None asks nobody.

    Attributes:
        lock: Held from reading sessions to writing them back.

    Raises:
        SessionStoreError: the store is of another model, or cannot be used.
    """

    def __init__(
        self,
        store: StateStore,
        *,
        memory: UserState,
        items: Vocabulary,
        users: Vocabulary | None,
        max_seen: int | None,
        history_of: HistoryOf | None,
    ) -> None:
        self.store = store
        self.memory = memory
        self.items = items
        self.users = users
        self.max_seen = max_seen
        self.history_of = history_of
        self.lock = threading.RLock()
        self._claim()

    def stored(self, keys: Sequence[bytes], users: Sequence[Id]) -> list[Session | None]:
        """The sessions that are in the store; None for others.

        Args:
            keys: Under which the store has the sessions.
            users: The same users, for errors.

        Raises:
            DamagedSessionError: a session is damaged; its `index` is the user's place.
            SessionStoreError: the store cannot be read.
        """
        rows = self.store.get_many(keys)
        return [
            None if row is None else Session.from_bytes(row, user, index)
            for index, (row, user) in enumerate(zip(rows, users, strict=True))
        ]

    def sessions(self, keys: Sequence[bytes], users: Sequence[Id]) -> list[Session | None]:
        """The same, after users without one, of whom `history_of` knows events, got theirs."""
        found = self.stored(keys, users)
        if self.history_of is None or all(session is not None for session in found):
            return found
        with self.lock:
            self.begin(keys, users, self.history_of)
            return self.stored(keys, users)

    def begin(self, keys: Sequence[bytes], users: Sequence[Id], history_of: HistoryOf) -> int:
        """Make sessions of users who have none, from their histories; returns of how many.

        Args:
            keys: Under which the store keeps the sessions; repeats are allowed.
            users: The same users.
            history_of: Asked for those who have none.
        """
        new_keys, new_users, item_ids, times = [], [], [], []
        with self.lock:
            rows = self.store.get_many(keys)
            missing = {key: user for key, user, row in zip(keys, users, rows, strict=True) if row is None}
            for key, user in missing.items():
                history = history_of(user)
                known = None if history is None else self._known_items(user, history)
                if history is not None and known is not None:
                    new_keys.append(key)
                    new_users.append(user)
                    item_ids.append(known)
                    times.append(history.newest_time)
            if new_keys:
                self.extend(new_keys, new_users, [None] * len(new_keys), item_ids, times)
        return len(new_keys)

    def extend(
        self,
        keys: Sequence[bytes],
        users: Sequence[Id],
        sessions: Sequence[Session | None],
        item_ids: Sequence[NDArray[np.int64]],
        newest_times: Sequence[int | None],
    ) -> None:
        """Write sessions behind further events; hold the lock since they were read.

        Args:
            keys: Distinct.
            users: The same users.
            sessions: As they were read.
            item_ids: Further events of each, at least one.
            newest_times: The latest time of all events of each.
        """
        before = [session or Session(b"") for session in sessions]
        states = self.memory.extend(
            [session.memory or None for session in before], item_ids, self.user_ids(users)
        )
        self.store.put_many(
            [
                (key, session.observed(new, time, memory, self.max_seen).to_bytes())
                for key, session, new, time, memory in zip(
                    keys, before, item_ids, newest_times, states, strict=True
                )
            ]
        )

    def user_ids(self, users: Sequence[Id]) -> Tensor:
        """(B,) internal ids, 0 for users that training did not know, and for all where the model has no vectors."""
        if self.users is None:
            return torch.zeros(len(users), dtype=torch.int64)
        return torch.from_numpy(self.users.lookup(users))

    def _known_items(self, user: Id, history: UserHistory) -> NDArray[np.int64] | None:
        """Internal ids of a history's items; None where there is none."""
        found = self.items.lookup(history.items)
        known = found[found > 0]
        if len(known) < len(found):
            _LOG.warning(
                "left out %d of %d events in the history of user=%r, whose items the model was not trained on",
                len(found) - len(known),
                len(found),
                user,
            )
        return known if len(known) else None

    def _claim(self) -> None:
        """Make a new store this model's; refuse one of another."""
        ours = {"format": FORMAT, "vocabulary": vocabulary_digest(self.items)}
        text = json.dumps({**ours, **self.memory.describe()}, separators=(",", ":"))
        kept = self.store.claim(text.encode())
        if kept == text.encode():
            return
        try:
            found = json.loads(kept)
            theirs = {name: found.pop(name) for name in ours}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SessionStoreError(
                "the store's description cannot be read; begin with a new store"
            ) from error
        if theirs != ours:
            raise SessionStoreError(
                f"the store is of another catalogue or version: it has {theirs}, the model {ours}; give each model a "
                "store of its own, and observe the events again"
            )
        self.memory.check(found)


def vocabulary_digest(vocabulary: Vocabulary) -> str:
    """Which external ids a vocabulary has."""
    digest = hashlib.sha256()
    for name, values in sorted(vocabulary.arrays("ids").items()):
        digest.update(f"{name} {values.dtype} {len(values)} ".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()[:16]
