"""Sessions in memory."""

from __future__ import annotations

from collections.abc import Sequence


class InMemoryStore:
    """Keeps sessions in a dictionary, which ends with the process; see `StateStore`."""

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
        """Nothing to let go of: the sessions stay until the object goes."""
