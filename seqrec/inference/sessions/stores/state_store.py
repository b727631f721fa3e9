"""The interface of state stores, and the store in memory."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from seqrec.errors import InputError, check_at_least


@runtime_checkable
class StateStore(Protocol):
    """Keeps some bytes per user, and one description of the model that they belong to.

    `put_many` writes all its rows or, after an error, none, and they can be read as soon as it returns. Each store
    documents how long they outlive the process. All methods may be called from several threads.
    """

    def claim(self, description: bytes) -> bytes:
        """Set the store's description if it has none, and return the one that it has.

        Raises:
            SessionStoreError: if the store cannot be read or written.
        """

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key; None for keys without one.

        Raises:
            SessionStoreError: if the store cannot be read.
        """

    def put_many(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Set the value of each key.

        Raises:
            SessionStoreError: if the store cannot be written; then nothing has changed.
        """

    def delete(self, key: bytes) -> bool:
        """Delete a key; returns whether it had a value.

        Raises:
            SessionStoreError: if the store cannot be written.
        """

    def __len__(self) -> int:
        """Return the number of keys."""

    def close(self) -> None:
        """Close files and connections; a second call does nothing."""


class LiveSession(Protocol):
    """A session as an object, which a store in this process can keep without its bytes; it never changes."""

    num_events: int

    def __len__(self) -> int:
        """Return its size in bytes."""

    def to_bytes(self, key: bytes) -> bytes:
        """Return it as a store on a disk keeps it."""


class Chunk(NamedTuple):
    """Some consecutive events of a user, as bytes.

    Attributes:
        key: The user's key.
        begin: Number of the user's events before these.
        end: Number of the user's events up to the last of these.
        content: The events; empty keeps none.
    """

    key: bytes
    begin: int
    end: int
    content: bytes


class Behind(NamedTuple):
    """A session as bytes that lacks the user's last events, which the store has.

    Attributes:
        session: The session.
        num_events: Number of the events; None if it is lost.
    """

    session: bytes
    num_events: int | None


class StoreSizes(NamedTuple):
    """What a store keeps.

    Attributes:
        users: Users with a session.
        state_bytes: Bytes of all sessions and keys, without events.
        event_bytes: Bytes of all events.
        dropped: Sessions that a limit dropped.
    """

    users: int
    state_bytes: int = 0
    event_bytes: int = 0
    dropped: int = 0

    @property
    def can_rebuild(self) -> bool:
        """Whether sessions may be made again from the store's events; also if there are no sessions."""
        return self.event_bytes > 0 or self.users == 0


@runtime_checkable
class SessionStore(StateStore, Protocol):
    """A `StateStore` that keeps each user's events as well, from which another model can make the states.

    If a limit is reached, it drops the sessions that were read or written longest ago, with their events.

    Attributes:
        keep_events: Most events that are kept per user, the newest; 0 keeps none.
    """

    keep_events: int

    def redescribe(self, description: bytes) -> None:
        """Replace the store's description.

        Raises:
            SessionStoreError: if the store cannot be written.
        """

    def put_many(self, rows: Sequence[tuple[bytes, bytes]], chunks: Sequence[Chunk] = ()) -> None:
        """Set the value of each key, and add events of some of these keys: both or, after an error, neither.

        A user's chunk takes the place of chunks that end after its `begin`. Chunks without any of the newest
        `keep_events` events are deleted.

        Raises:
            SessionStoreError: if the store cannot be written; then nothing has changed.
        """

    def events_of(self, keys: Sequence[bytes]) -> list[list[bytes]]:
        """Return the contents of each key's chunks, the oldest first.

        Raises:
            SessionStoreError: if the store cannot be read.
        """

    def sizes(self) -> StoreSizes:
        """Return how much is kept.

        Raises:
            SessionStoreError: if the store cannot be read.
        """


@runtime_checkable
class LiveStore(SessionStore, Protocol):
    """A `SessionStore` that also takes sessions as objects, and returns them unchanged."""

    def put_many(self, rows: Sequence[tuple[bytes, bytes | LiveSession]], chunks: Sequence[Chunk] = ()) -> None:
        """See `SessionStore.put_many`."""

    def get_live(self, keys: Sequence[bytes]) -> Sequence[bytes | LiveSession | Behind | None]:
        """Return what `get_many` does, without making bytes of objects."""

    def release(self) -> None:
        """Make bytes of objects, some at a time, so that what they refer to can be freed, such as states in a slab."""


class InMemoryStore:
    """Keeps sessions in a dictionary, which ends with the process; see `SessionStore`.

    If its limits are reached, the sessions that were read or written longest ago are dropped, and `dropped` counts
    them. These users are unknown afterwards.

    Args:
        max_bytes: Most bytes of all sessions, events and keys.
        max_users: Most users; None is any number.
        idle_seconds: Seconds after which a session is dropped that is neither read nor written; None is never.
        keep_events: Most events that are kept per user, the newest; 0 keeps none.

    Attributes:
        num_bytes: Bytes of all sessions, events and keys now.
        dropped: Number of sessions that a limit dropped.

    Raises:
        InputError: if a limit is out of range.

    Example:
        >>> from seqrec import InMemoryStore
        >>> store = InMemoryStore()
        >>> store.put_many([(b"ada", b"state")])
        >>> store.get_many([b"ada", b"bob"]), len(store)
        ([b'state', None], 1)
    """

    def __init__(
        self,
        *,
        max_bytes: int = 2 << 30,
        max_users: int | None = None,
        idle_seconds: float | None = None,
        keep_events: int = 0,
    ) -> None:
        check_limits(max_bytes, max_users, idle_seconds, keep_events)
        self.max_bytes, self.max_users, self.idle_seconds = max_bytes, max_users, idle_seconds
        self.keep_events = keep_events
        self._state_bytes = self._event_bytes = self.dropped = 0
        self._description: bytes | None = None
        # The least recently used first.
        self._rows: OrderedDict[bytes, bytes | LiveSession] = OrderedDict()
        self._chunks: dict[bytes, list[Chunk]] = {}
        self._used: dict[bytes, float] = {}
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Bytes of all sessions, events and keys now."""
        return self._state_bytes + self._event_bytes

    def claim(self, description: bytes) -> bytes:
        """See `StateStore.claim`."""
        self._description = self._description or description
        return self._description

    def redescribe(self, description: bytes) -> None:
        """See `SessionStore.redescribe`."""
        self._description = description

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `StateStore.get_many`."""
        rows = zip(keys, self.get_live(keys), strict=True)
        return [row if row is None or isinstance(row, bytes) else row.to_bytes(key) for key, row in rows]

    def get_live(self, keys: Sequence[bytes]) -> Sequence[bytes | LiveSession | None]:
        """See `LiveStore.get_live`."""
        with self._lock:
            self._drop_idle()
            found = list(map(self._rows.get, keys))
            self._touch([key for key, row in zip(keys, found, strict=True) if row is not None])
            return found

    def release(self) -> None:
        """See `LiveStore.release`."""
        with self._lock:
            keys = list(self._rows)
        for key in keys:
            with self._lock:
                row = self._rows.get(key)
                if row is not None and not isinstance(row, bytes):
                    self._rows[key] = content = row.to_bytes(key)
                    self._state_bytes += len(content) - len(row)

    def put_many(self, rows: Sequence[tuple[bytes, bytes | LiveSession]], chunks: Sequence[Chunk] = ()) -> None:
        """See `SessionStore.put_many`."""
        with self._lock:
            self._drop_idle()
            new = dict(rows)
            old = [row for row in map(self._rows.get, new) if row is not None]
            if len(old) < len(new):
                self._state_bytes += sum(len(key) for key in new if key not in self._rows)
            self._state_bytes += sum(map(len, new.values())) - sum(map(len, old))
            for key, row in new.items():
                self._rows[key] = row
            self._touch(new)
            for chunk in chunks:
                past = self._chunks.pop(chunk.key, [])
                kept = [each for each in past if chunk.end - self.keep_events < each.end <= chunk.begin]
                kept += [chunk] * bool(chunk.content)
                self._event_bytes += _size(kept) - _size(past)
                if kept:
                    self._chunks[chunk.key] = kept
            most = self.max_users
            while self.num_bytes > self.max_bytes or (most is not None and len(self._rows) > most):
                self._drop(next(iter(self._rows)))

    def events_of(self, keys: Sequence[bytes]) -> list[list[bytes]]:
        """See `SessionStore.events_of`."""
        with self._lock:
            return [[chunk.content for chunk in self._chunks.get(key, ())] for key in keys]

    def sizes(self) -> StoreSizes:
        """See `SessionStore.sizes`."""
        return StoreSizes(len(self._rows), self._state_bytes, self._event_bytes, self.dropped)

    def delete(self, key: bytes) -> bool:
        """See `StateStore.delete`."""
        with self._lock:
            found = key in self._rows
            if found:
                self._drop(key)
                self.dropped -= 1
        return found

    def _touch(self, keys: Iterable[bytes]) -> None:
        move = self._rows.move_to_end
        for key in keys:
            move(key)
        if self.idle_seconds is not None:
            self._used.update(dict.fromkeys(keys, time.monotonic()))

    def _drop(self, key: bytes) -> None:
        self._state_bytes -= len(self._rows.pop(key)) + len(key)
        self._event_bytes -= _size(self._chunks.pop(key, []))
        self._used.pop(key, None)
        self.dropped += 1

    def _drop_idle(self) -> None:
        while self.idle_seconds is not None and self._rows:
            oldest = next(iter(self._rows))
            if time.monotonic() - self._used[oldest] <= self.idle_seconds:
                return
            self._drop(oldest)

    def __len__(self) -> int:
        return len(self._rows)

    def close(self) -> None:
        """Do nothing: the sessions live as long as the object."""


def check_limits(max_bytes: int | None, max_users: int | None, idle_seconds: float | None, keep_events: int) -> None:
    """Raise an `InputError` if a limit of a store is out of range; None is no limit."""
    named = {"max_bytes": max_bytes, "max_users": max_users}
    check_at_least(1, **{name: value for name, value in named.items() if value is not None})
    check_at_least(0, keep_events=keep_events)
    if idle_seconds is not None and not idle_seconds > 0:
        raise InputError(f"idle_seconds={idle_seconds} must be above 0, or None")


def _size(chunks: Sequence[Chunk]) -> int:
    return sum(len(chunk.content) for chunk in chunks)
