"""All that is kept of a user, in memory and as bytes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec.errors import DamagedSessionError
from seqrec.inference.sessions.kept_events import CHECKSUM, checksum
from seqrec.inference.sessions.slab import KeptState

# Stores of seqrec 0.1 have format 1, whose sessions have no event ids and a checksum without the user's key. Sessions
# of format 2 do not name their model.
FORMAT, OLD_FORMATS = 3, (1, 2)
# Events, newest time, whether it is known, bytes of the state; since format 2 the number of event ids; since format 3
# the first event that is kept, and digests of the model and of its catalogue.
HEADS = {1: struct.Struct("<Qq?I"), 2: struct.Struct("<Qq?IH"), 3: struct.Struct("<Qq?IHQ16s")}
FIXED_BYTES = CHECKSUM.size + HEADS[FORMAT].size
REMEDY = "forget the user, and observe the events again"
# The last event ids of each user that are known again.
KEPT_EVENT_IDS = 256
# A session's items are merged into those that the user has seen when they have this number of bytes to twice as many.
UNMERGED = 4 * 256
NO_IDS = np.empty(0, np.uint64)
NO_ITEMS = np.empty(0, np.int32)


@dataclass(slots=True, eq=False)
class Session:
    """All that is kept of a user. It is never changed: further events make another one.

    Attributes:
        state: The state that the model continues from; see `UserState`.
        num_events: Events so far.
        newest_time: The latest time of an event; None if no event had one.
        seen_before: (N,) int32 distinct internal item ids, in the order in which they were last seen, without `newer`.
        event_ids: (M,) uint64 digests of the last event ids, the newest last; M is at most `KEPT_EVENT_IDS`.
        kept_from: Number of the first events that need not be in the store; all later ones are.
        made_by: Digests of the model and of its catalogue, 8 bytes each; empty if unknown.
        newer: Items after `seen_before` as int32, oldest first, which may repeat: merging takes longer than a step.
        max_seen: Most seen items that are kept, the last ones; None keeps all.
    """

    state: KeptState
    num_events: int = 0
    newest_time: int | None = None
    seen_before: NDArray[np.int32] = field(default_factory=lambda: NO_ITEMS)
    event_ids: NDArray[np.uint64] = field(default_factory=lambda: NO_IDS)
    kept_from: int = 0
    made_by: bytes = b""
    newer: bytes = b""
    max_seen: int | None = None
    _seen: NDArray[np.int32] | None = field(default=None, init=False)
    _bytes: int = field(default=0, init=False)

    @property
    def seen(self) -> NDArray[np.int32]:
        """(N,) int32 distinct internal item ids, in the order in which they were last seen."""
        if not self.newer:
            return self.seen_before
        if self._seen is None:
            # From the end, so that each item takes the place at which it was last seen.
            items = np.frombuffer(self.newer, np.int32).tolist()
            new = np.array([*dict.fromkeys(reversed(items))][::-1], np.int32)
            # A shortcut for the common case of one event.
            again = self.seen_before == new[0] if len(new) == 1 else np.isin(self.seen_before, new)
            seen = np.concatenate([self.seen_before[~again], new])
            self._seen = seen if self.max_seen is None else seen[len(seen) - min(self.max_seen, len(seen)) :]
        return self._seen

    def __len__(self) -> int:
        """Return the size in bytes; items that wait to be merged count, though they may repeat."""
        if not self._bytes:
            rest = 8 * len(self.event_ids) + 4 * len(self.seen_before) + len(self.newer)
            self._bytes = FIXED_BYTES + len(self.state) + rest
        return self._bytes

    def to_bytes(self, key: bytes) -> bytes:
        """Return the session of a key as bytes with a checksum of both."""
        time = self.newest_time
        known = (self.num_events, time or 0, time is not None)
        head = HEADS[FORMAT].pack(*known, len(self.state), len(self.event_ids), self.kept_from, self.made_by)
        numbers = [self.event_ids.astype("<u8", copy=False), self.seen.astype("<i4", copy=False)]
        content = b"".join([head, bytes(self.state), *(each.tobytes() for each in numbers)])
        return CHECKSUM.pack(_checksum(content, key, FORMAT)) + content

    @staticmethod
    def from_bytes(data: bytes, key: bytes, user: Any, index: int = 0) -> Session:
        """Return the session that `to_bytes` wrote for the same key.

        Raises:
            DamagedSessionError: if the checksum does not match; it names the user and its place `index` in a batch.
        """
        content = memoryview(data)[CHECKSUM.size :]
        found = CHECKSUM.unpack_from(data)[0] if len(data) >= CHECKSUM.size else None
        for version, head in reversed(HEADS.items()):
            if len(content) >= head.size and found == _checksum(content, key, version):
                break
        else:
            raise DamagedSessionError(
                f"the session of user={user!r} is damaged: its checksum does not match its content; {REMEDY}", index
            )
        num_events, time, has_time, size, *more = head.unpack_from(content)
        # Without a model's name, no events are kept either.
        num_ids, kept_from, made_by = tuple(more) + (0, num_events, b"")[len(more) :]
        ids = head.size + size
        seen = ids + 8 * num_ids
        return Session(
            bytes(content[head.size : ids]),
            num_events,
            time if has_time else None,
            np.frombuffer(content[seen:], "<i4").astype(np.int32),
            np.frombuffer(content[ids:seen], "<u8").astype(np.uint64),
            kept_from,
            made_by,
        )


def observed(
    sessions: Sequence[Session],
    items: Sequence[bytes],
    newest_times: Sequence[int | None],
    states: Sequence[KeptState],
    event_ids: Sequence[Sequence[int]],
    max_seen: int | None,
    keep_events: int,
) -> list[Session]:
    """Return sessions after further events, oldest first.

    Args:
        sessions: The sessions before.
        items: Internal item ids of each user's further events, as int32.
        newest_times: The latest time of all events of each user.
        states: Each user's state after the events.
        event_ids: Digests of those of each user's further events that have an id.
        max_seen: See `SessionKeeper`.
        keep_events: That of the store.
    """
    found = []
    for old, new, time, state, ids in zip(sessions, items, newest_times, states, event_ids, strict=True):
        seen, newer, kept = old.seen_before, old.newer, old.event_ids
        # Not all users of a batch at once, as their first items differ.
        if old._seen is not None or (len(newer) >= UNMERGED and len(newer) >= UNMERGED + 4 * newer[0]):
            seen, newer = old.seen, b""
        if ids:
            kept = np.concatenate([kept, np.array(ids, np.uint64)])[-KEPT_EVENT_IDS:]
        num_events = old.num_events + len(new) // 4
        # Faster than `max`.
        kept_from = num_events - keep_events if num_events - keep_events > old.kept_from else old.kept_from
        found.append(Session(state, num_events, time, seen, kept, kept_from, old.made_by, newer + new, max_seen))
    return found


def unrepeated(digests: Sequence[int | None], places: Sequence[int], session: Session | None) -> Sequence[int]:
    """Return a user's places without events with an id among the user's last ones, or earlier in the batch."""
    known = set() if session is None else set(session.event_ids.tolist())
    found = []
    for index in places:
        digest = digests[index]
        if digest is None or digest not in known:
            found.append(index)
        if digest is not None:
            known.add(digest)
    return found


def _checksum(content: bytes | memoryview, key: bytes, version: int) -> int:
    """Return the checksum of a session in a version of the format; each covers other bytes, or has another start."""
    if version == 1:
        return zlib.crc32(content)
    return checksum(content, key, 0 if version == 2 else version)
