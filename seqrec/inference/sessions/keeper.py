"""Users' sessions as bytes, and their reading from and writing to a store."""

from __future__ import annotations

import hashlib
import json
import logging
import struct
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import DamagedSessionError, SessionStoreError
from seqrec.inference.sessions.entries import HistoryOf, Id, UserHistory
from seqrec.inference.sessions.stores import StateStore
from seqrec.inference.sessions.user_state import UserState

_LOG = logging.getLogger(__name__)
# Stores of seqrec 0.1 have format 1, whose sessions have no event ids and a checksum without the user's key.
FORMAT, OLD_FORMAT = 2, 1
# Checksum of all bytes after it, and then of the user's key.
CHECKSUM = struct.Struct("<I")
# Events, newest time, whether it is known, bytes of the state, and number of event ids.
HEAD = struct.Struct("<Qq?IH")
OLD_HEAD = struct.Struct("<Qq?I")
# The last event ids of each user that are known again.
KEPT_EVENT_IDS = 256


@dataclass(frozen=True)
class Session:
    """All that is kept of a user.

    Attributes:
        state: The state that the model continues from, as bytes; see `UserState`.
        num_events: Events so far.
        newest_time: The latest time of an event; None if no event had one.
        seen: (N,) int32 distinct internal item ids, in the order in which they were last seen.
        event_ids: (M,) uint64 digests of the last event ids, the newest last; M is at most `KEPT_EVENT_IDS`.
    """

    state: bytes
    num_events: int = 0
    newest_time: int | None = None
    seen: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    event_ids: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))

    def observed(
        self,
        item_ids: NDArray[np.int64],
        newest_time: int | None,
        state: bytes,
        max_seen: int | None,
        event_ids: Sequence[int] = (),
    ) -> Session:
        """Return the session after further events (N,), oldest first.

        `event_ids` are digests of those events that have an id; `max_seen` is as of `SessionKeeper`.
        """
        # From the end, so that each item takes the place at which it was last seen.
        new = np.array([*dict.fromkeys(reversed(item_ids.tolist()))][::-1], np.int32)
        # A shortcut for the common case of one event.
        again = self.seen == new[0] if len(new) == 1 else np.isin(self.seen, new)
        seen = np.concatenate([self.seen[~again], new])
        if max_seen is not None:
            seen = seen[len(seen) - min(max_seen, len(seen)) :]
        kept = self.event_ids
        if event_ids:
            kept = np.concatenate([kept, np.array(event_ids, np.uint64)])[-KEPT_EVENT_IDS:]
        return Session(state, self.num_events + len(item_ids), newest_time, seen, kept)

    def to_bytes(self, key: bytes) -> bytes:
        """Return the session of a key as bytes with a checksum of both."""
        time = self.newest_time
        head = HEAD.pack(self.num_events, time or 0, time is not None, len(self.state), len(self.event_ids))
        numbers = [self.event_ids.astype("<u8", copy=False), self.seen.astype("<i4", copy=False)]
        content = b"".join([head, self.state, *(each.tobytes() for each in numbers)])
        return CHECKSUM.pack(zlib.crc32(key, zlib.crc32(content))) + content

    @staticmethod
    def from_bytes(data: bytes, key: bytes, user: Any, index: int = 0) -> Session:
        """Return the session that `to_bytes` wrote for the same key.

        Raises:
            DamagedSessionError: if the checksum does not match; it names the user and its place `index` in a batch.
        """
        content = memoryview(data)[CHECKSUM.size :]
        checksum = CHECKSUM.unpack_from(data)[0] if len(data) >= CHECKSUM.size else None
        own = zlib.crc32(content)
        if len(content) >= HEAD.size and checksum == zlib.crc32(key, own):
            num_events, time, has_time, size, num_ids = HEAD.unpack_from(content)
            begin = HEAD.size
        elif len(content) >= OLD_HEAD.size and checksum == own:
            num_events, time, has_time, size = OLD_HEAD.unpack_from(content)
            begin, num_ids = OLD_HEAD.size, 0
        else:
            raise DamagedSessionError(
                f"the session of user={user!r} is damaged: its checksum does not match its content; forget the user, "
                "and observe the events again",
                index,
            )
        ids = begin + size
        seen = ids + 8 * num_ids
        return Session(
            bytes(content[begin:ids]),
            num_events,
            time if has_time else None,
            np.frombuffer(content[seen:], "<i4").astype(np.int32, copy=False),
            np.frombuffer(content[ids:seen], "<u8").astype(np.uint64, copy=False),
        )


@dataclass(kw_only=True, eq=False)
class SessionKeeper:
    """Reads sessions from a store, and writes them back after further events.

    Args:
        store: The store.
        user_state: Makes the states that the model continues from.
        items: The log's item ids.
        users: The log's user ids, for models with vectors of users; None if the model does not distinguish users.
        max_seen: Most seen items that are kept, the last ones; None keeps all.
        history_of: Finds histories of users without a session; None finds none.

    Attributes:
        lock: Held from reading sessions to writing them back.

    Raises:
        SessionStoreError: if the store belongs to another model, or cannot be used.
    """

    store: StateStore
    user_state: UserState
    items: Vocabulary
    users: Vocabulary | None
    max_seen: int | None
    history_of: HistoryOf | None
    lock: threading.RLock = field(default_factory=threading.RLock, init=False)

    def __post_init__(self) -> None:
        # Claim a new store for this model; refuse a store of another model.
        ours = {"format": FORMAT, "vocabulary": vocabulary_digest(self.items)}
        text = json.dumps({**ours, **self.user_state.describe()}, separators=(",", ":"))
        kept = self.store.claim(text.encode())
        if kept == text.encode():
            return
        try:
            found = json.loads(kept)
            theirs = {name: found.pop(name) for name in ours}
            theirs["format"] = FORMAT if theirs["format"] == OLD_FORMAT else theirs["format"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SessionStoreError("the store's description cannot be read; begin with a new store") from error
        if theirs != ours:
            raise SessionStoreError(
                f"the store is of another catalogue or version: it has {theirs}, the model {ours}; give each model a "
                "store of its own, and observe the events again"
            )
        self.user_state.check(found)

    def stored(self, keys: Sequence[bytes], users: Sequence[Id]) -> list[Session | None]:
        """Return the sessions in the store; None for users without one.

        Raises:
            DamagedSessionError: if a session is damaged; its `index` is the user's place.
            SessionStoreError: if the store cannot be read.
        """
        rows = self.store.get_many(keys)
        return [
            None if row is None else Session.from_bytes(row, key, user, index)
            for index, (key, row, user) in enumerate(zip(keys, rows, users, strict=True))
        ]

    def sessions(self, keys: Sequence[bytes], users: Sequence[Id]) -> list[Session | None]:
        """Return the sessions, after making those of users whose history `history_of` knows."""
        found = self.stored(keys, users)
        if self.history_of is None or all(session is not None for session in found):
            return found
        with self.lock:
            self.begin(keys, users, self.history_of)
            return self.stored(keys, users)

    def begin(self, keys: Sequence[bytes], users: Sequence[Id], history_of: HistoryOf) -> int:
        """Make sessions of users who have none, from their histories, and return how many; keys may repeat."""
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
        event_ids: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Write sessions after further events, at least one per user; hold the lock since they were read.

        Args:
            keys: Distinct keys.
            users: The same users.
            sessions: The sessions that were read.
            item_ids: Further events of each user.
            newest_times: The latest time of all events of each user.
            event_ids: Digests of the events' ids of each user; None if none has an id.
        """
        ids = event_ids or [()] * len(keys)
        before = [session or Session(b"") for session in sessions]
        states = self.user_state.extend([session.state or None for session in before], item_ids, self.user_ids(users))
        self.store.put_many(
            [
                (key, session.observed(new, time, state, self.max_seen, own).to_bytes(key))
                for key, session, new, time, state, own in zip(
                    keys, before, item_ids, newest_times, states, ids, strict=True
                )
            ]
        )

    def user_ids(self, users: Sequence[Id]) -> Tensor:
        """Return (B,) internal ids, 0 for users that training did not know or if the model has no user vectors."""
        if self.users is None:
            return torch.zeros(len(users), dtype=torch.int64)
        return torch.from_numpy(self.users.lookup(users))

    def _known_items(self, user: Id, history: UserHistory) -> NDArray[np.int64] | None:
        """Return internal ids of a history's items; None if none is known."""
        found = self.items.lookup(history.items)
        known = found[found > 0]
        if len(known) < len(found):
            _LOG.warning(
                "left out %d of %d events in the history of user=%r, with items that the model was not trained on",
                len(found) - len(known),
                len(found),
                user,
            )
        return known if len(known) else None


def vocabulary_digest(vocabulary: Vocabulary) -> str:
    """Return a digest of a vocabulary's external ids."""
    digest = hashlib.sha256()
    for name, values in sorted(vocabulary.arrays("ids").items()):
        digest.update(f"{name} {values.dtype} {len(values)} ".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()[:16]
