"""The interface of state stores, and the store in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


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

    Example:
        >>> from seqrec import InMemoryStore
        >>> store = InMemoryStore()
        >>> store.put_many([(b"ada", b"state")])
        >>> store.get_many([b"ada", b"bob"]), len(store)
        ([b'state', None], 1)
    """

    def __init__(self) -> None:
        self._description: bytes | None = None
        self._rows: dict[bytes, bytes] = {}

    def claim(self, description: bytes) -> bytes:
        """See `StateStore.claim`."""
        self._description = self._description or description
        return self._description

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `StateStore.get_many`."""
        return [self._rows.get(key) for key in keys]

    def put_many(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """See `StateStore.put_many`."""
        self._rows.update(rows)

    def delete(self, key: bytes) -> bool:
        """See `StateStore.delete`."""
        return self._rows.pop(key, None) is not None

    def __len__(self) -> int:
        return len(self._rows)

    def close(self) -> None:
        """Do nothing: the sessions live as long as the object."""
