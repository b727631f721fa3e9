"""One user's session, and how it is kept as bytes."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec.errors import DamagedSessionError

# Checksum of all that follows it.
CHECKSUM = struct.Struct("<I")
# Events, newest time, whether there is one, bytes of the memory.
HEAD = struct.Struct("<Qq?I")


@dataclass(frozen=True)
class Session:
    """What is known of a user.

    Attributes:
        memory: What the model goes on from, as bytes; see `UserState`.
        num_events: Events so far.
        newest_time: The latest time of an event; None where no event had one.
        seen: (N,) int32 distinct internal item ids, those met last at the end.
    """

    memory: bytes
    num_events: int = 0
    newest_time: int | None = None
    seen: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))

    def observed(
        self, item_ids: NDArray[np.int64], newest_time: int | None, memory: bytes, max_seen: int | None
    ) -> Session:
        """The session behind further events.

        Args:
            item_ids: (N,) their items, oldest first.
            newest_time: The latest time of all events.
            memory: The memory behind them.
            max_seen: Items that are kept as seen, those met last; None is all.
        """
        # From the end, so that each item counts where it was met last.
        new = np.array([*dict.fromkeys(reversed(item_ids.tolist()))][::-1], np.int32)
        # One event is the common case, and this its shorter way.
        again = self.seen == new[0] if len(new) == 1 else np.isin(self.seen, new)
        seen = np.concatenate([self.seen[~again], new])
        if max_seen is not None:
            seen = seen[len(seen) - min(max_seen, len(seen)) :]
        return Session(memory, self.num_events + len(item_ids), newest_time, seen)

    def to_bytes(self) -> bytes:
        """The session with a checksum."""
        head = HEAD.pack(
            self.num_events, self.newest_time or 0, self.newest_time is not None, len(self.memory)
        )
        content = b"".join([head, self.memory, self.seen.astype("<i4", copy=False).tobytes()])
        return CHECKSUM.pack(zlib.crc32(content)) + content

    @staticmethod
    def from_bytes(data: bytes, user: Any, index: int = 0) -> Session:
        """Inverse of `to_bytes`.

        Args:
            data: What `to_bytes` returned.
            user: Whose it is, for the error.
            index: Place of the user in a batch, for the error.

        Raises:
            DamagedSessionError: other bytes.
        """
        content = memoryview(data)[CHECKSUM.size :]
        if len(content) < HEAD.size or CHECKSUM.unpack_from(data)[0] != zlib.crc32(content):
            raise DamagedSessionError(
                f"the session of user={user!r} is damaged: its checksum does not fit what it holds; forget the user, "
                "and observe the events again",
                index,
            )
        num_events, time, has_time, size = HEAD.unpack_from(content)
        begin = HEAD.size + size
        return Session(
            bytes(content[HEAD.size : begin]),
            num_events,
            time if has_time else None,
            np.frombuffer(content[begin:], "<i4").astype(np.int32, copy=False),
        )
