"""A user's events as bytes in chunks, from which another model can make the user's session again."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from seqrec.inference.sessions.entries import Id
from seqrec.inference.sessions.stores import Chunk

# Checksum of all bytes after it, and then of the user's key, as of a session.
CHECKSUM = struct.Struct("<I")
# Chunks that begin after the last multiple of this number of events become one when the next multiple is reached.
MERGED = 256


def chunk(
    key: bytes,
    begin: int,
    items: Sequence[Any],
    newest_time: int | None,
    event_ids: Sequence[int],
    times: Sequence[int] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> Chunk:
    """Return the `KeptEvents` of a key as bytes with a checksum of both; no bytes for no events."""
    if not items:
        return Chunk(key, begin, begin, b"")
    try:
        # Much faster for the most common kind of ids, integers.
        numbers = b",".join([b"%d" % item for item in items])
    except TypeError:
        each = (times, columns) if columns else () if times is None else (times,)
        content = json.dumps((begin, items, newest_time, event_ids, *each), separators=(",", ":")).encode()
    else:
        time = b"null" if newest_time is None else b"%d" % newest_time
        ids = b",".join([b"%d" % event_id for event_id in event_ids]) if event_ids else b""
        last = b"" if times is None else b",[%b]" % b",".join([b"%d" % each for each in times])
        if columns:
            last = b"%b,%b" % (last or b",null", json.dumps(columns, separators=(",", ":")).encode())
        content = b"[%d,[%b],%b,[%b]%b]" % (begin, numbers, time, ids, last)
    return Chunk(key, begin, begin + len(items), CHECKSUM.pack(checksum(content, key)) + content)


def checksum(content: bytes | memoryview, key: bytes, start: int = 0) -> int:
    """Return the CRC-32 of a content and then of its key; with another start, that of another version of a format."""
    return zlib.crc32(key, zlib.crc32(content, start))


class KeptEvents(NamedTuple):
    """Consecutive events of a user.

    Attributes:
        begin: Number of the user's events before these.
        items: The log's item ids, oldest first.
        newest_time: The latest time of all of the user's events up to the last of these; None if none had one.
        event_ids: Digests of those event ids that these events have.
        times: The time of each event; None if the model that observed them does not read it.
        columns: The log's values of each column that this model reads, by name; None if it reads none.
    """

    begin: int
    items: Sequence[Id]
    newest_time: int | None
    event_ids: Sequence[int]
    times: Sequence[int] | None = None
    columns: Mapping[str, Sequence[Any]] | None = None

    @property
    def end(self) -> int:
        """Number of the user's events up to the last of these."""
        return self.begin + len(self.items)


def read_chunks(key: bytes, contents: Sequence[bytes]) -> list[KeptEvents] | None:
    """Return the events of a key's chunks; None if one is damaged or missing between two others."""
    found: list[KeptEvents] = []
    for content in contents:
        text = content[CHECKSUM.size :]
        if content[: CHECKSUM.size] != CHECKSUM.pack(checksum(text, key)):
            return None
        found.append(KeptEvents(*json.loads(text)))
        if len(found) > 1 and found[-1].begin != found[-2].end:
            return None
    return found


def joined(parts: Sequence[KeptEvents]) -> KeptEvents:
    """Return consecutive parts as one, at least one part."""
    items = [item for part in parts for item in part.items]
    event_ids = [event_id for part in parts for event_id in part.event_ids]
    times = [time for part in parts for time in part.times or ()]
    # Without the times of some, those of the others are of no use; so it is with columns.
    known = times if len(times) == len(items) else None
    names = [name for name in parts[0].columns or () if all(name in (part.columns or ()) for part in parts)]
    columns = {name: [value for part in parts for value in (part.columns or {})[name]] for name in names}
    return KeptEvents(parts[0].begin, items, parts[-1].newest_time, event_ids, known, columns or None)
