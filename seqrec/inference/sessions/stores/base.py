"""The contract of state stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class StateStore(Protocol):
    """Keeps some bytes for each user, and for all of them a description of whose they are.

    What `put_many` wrote is there as soon as it returns, all of it or, after an error, none; how long it outlives the
    process is said by each store. All methods may be called from several threads.
    """

    def claim(self, description: bytes) -> bytes:
        """Give the store a description if it has none; returns the one that it has.

        Raises:
            SessionStoreError: the store cannot be read or written.
        """

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """What is kept for each key; None for nothing.

        Raises:
            SessionStoreError: the store cannot be read.
        """

    def put_many(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep a value for each key in place of what was there.

        Raises:
            SessionStoreError: the store cannot be written; nothing has changed.
        """

    def delete(self, key: bytes) -> bool:
        """Keep nothing for the key; returns whether something was there.

        Raises:
            SessionStoreError: the store cannot be written.
        """

    def __len__(self) -> int:
        """Number of keys."""

    def close(self) -> None:
        """Let go of files and connections; a second call does nothing."""
