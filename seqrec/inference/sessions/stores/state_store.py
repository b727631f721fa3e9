"""The interface of state stores, and the store in memory."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

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


class InMemoryStore:
    """Keeps sessions in a dictionary, which ends with the process; see `StateStore`.

    If its limits are reached, the sessions that were read or written longest ago are dropped, and `dropped` counts
    them. These users are unknown afterwards.

    Args:
        max_bytes: Most bytes of all sessions and keys.
        max_users: Most users; None is any number.
        idle_seconds: Seconds after which a session is dropped that is neither read nor written; None is never.

    Attributes:
        num_bytes: Bytes of all sessions and keys now.
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
        self, *, max_bytes: int = 2 << 30, max_users: int | None = None, idle_seconds: float | None = None
    ) -> None:
        check_at_least(1, max_bytes=max_bytes, max_users=1 if max_users is None else max_users)
        if idle_seconds is not None and not idle_seconds > 0:
            raise InputError(f"idle_seconds={idle_seconds} must be above 0, or None")
        self.max_bytes, self.max_users, self.idle_seconds = max_bytes, max_users, idle_seconds
        self.num_bytes = self.dropped = 0
        self._description: bytes | None = None
        # The least recently used first.
        self._rows: OrderedDict[bytes, bytes] = OrderedDict()
        self._used: dict[bytes, float] = {}
        self._lock = threading.Lock()

    def claim(self, description: bytes) -> bytes:
        """See `StateStore.claim`."""
        self._description = self._description or description
        return self._description

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `StateStore.get_many`."""
        with self._lock:
            self._drop_idle()
            for key in keys:
                self._touch(key)
            return [self._rows.get(key) for key in keys]

    def put_many(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """See `StateStore.put_many`."""
        with self._lock:
            self._drop_idle()
            for key, row in rows:
                self.num_bytes += len(row) - len(self._rows[key]) if key in self._rows else len(row) + len(key)
                self._rows[key] = row
                self._touch(key)
            most = self.max_users
            while self.num_bytes > self.max_bytes or (most is not None and len(self._rows) > most):
                self._drop(next(iter(self._rows)))

    def delete(self, key: bytes) -> bool:
        """See `StateStore.delete`."""
        with self._lock:
            found = key in self._rows
            if found:
                self._drop(key)
                self.dropped -= 1
        return found

    def _touch(self, key: bytes) -> None:
        if key in self._rows:
            self._rows.move_to_end(key)
            if self.idle_seconds is not None:
                self._used[key] = time.monotonic()

    def _drop(self, key: bytes) -> None:
        self.num_bytes -= len(self._rows.pop(key)) + len(key)
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
