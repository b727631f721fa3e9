"""Sessions in an SQLite file."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from seqrec.errors import MissingInputError, SessionStoreError, check_at_least
from seqrec.files import PARTIAL, move
from seqrec.inference.sessions.stores.sqlite_file import REMEDY, create_private, prepare, reason_of
from seqrec.inference.sessions.stores.state_store import Behind, Chunk, LiveSession, StoreSizes, check_limits

PUT = "INSERT INTO sessions VALUES (?, ?) ON CONFLICT (user) DO UPDATE SET session = excluded.session"
PUT_USAGE = (
    "INSERT INTO usage VALUES (?, ?, ?, ?, 0) ON CONFLICT (user) DO UPDATE SET used = excluded.used, "
    "states = excluded.states, events = events + excluded.events, behind = 0"
)
PUT_BEHIND = "UPDATE usage SET used = ?, events = events + ?, behind = ? WHERE rowid = ?"
GET = (
    "SELECT ifnull(CAST(session AS BLOB), x''), (SELECT CAST(behind AS INTEGER) FROM usage WHERE usage.user = "
    "sessions.user) FROM sessions WHERE user = ?"
)
PUT_EVENTS = "INSERT INTO events VALUES (?, ?, ?)"
# A session's row is written again after this number of events to twice as many. Not all users of a batch have the same.
MOST_BEHIND = 64
# Damage can change the type of a column.
USAGE = "SELECT rowid, CAST(user AS BLOB), CAST(states AS INTEGER), CAST(events AS INTEGER) FROM usage"
CHUNKS = "FROM events WHERE user = ? AND ends > ? AND ends <= ?"
# Bytes of sessions that leave the memory in one transaction of `release`.
RELEASED_BYTES = 4 << 20
# Users that were read, after which the times are written.
MANY_READ = 10_000


class SQLiteStore:
    """Keeps sessions in one file, which outlives the process; see `SessionStore`.

    A call of `put_many` is one transaction that is on disk when it returns (write-ahead log, `synchronous=FULL`): an
    acknowledged write survives `kill -9` and a loss of power. Sessions in use are kept in memory as well. The file gets
    each event of theirs at once, and the state after some tens of events, when the session leaves the memory, and in
    `close`. After a kill, the events that a state lacks are observed again on first use. With `keep_events` below 128,
    each event writes the state. The log, `<path>-wal`, is next to the file and belongs
    to it. Only one process at a time can open the file: two that continue the same session would each undo the
    other's writes.

    A new file can be read by its owner alone. A file of up to 64 MiB is checked for damage when it is opened;
    `verify` checks a larger one.

    A limit drops sessions, with their events, as in `InMemoryStore`, and `sizes` counts them. The file reuses their
    space, but does not shrink. Times of reads are written with the next event, so a kill may forget some.

    Args:
        path: The file, in a folder that exists; created on first use if it does not exist.
        busy_seconds: Longest wait for another process to close the file.
        keep_events: Most events that are kept per user, the newest; 0 keeps none. From them, a new model or version
            makes the sessions again.
        max_bytes: Most bytes of all sessions, events and keys; None is any number.
        max_users: Most users; None is any number.
        idle_seconds: Seconds after which a session is dropped that is neither read nor written; None is never.
        memory_bytes: Most bytes of the sessions that are kept in memory as well, and one batch.

    Raises:
        InputError: if a limit is out of range.
        MissingInputError: if the folder does not exist.
        SessionStoreError: if the file is not a store of sessions, has another version, is damaged, or is open in
            another process.

    Example:
        >>> import tempfile
        >>> from seqrec import SQLiteStore
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = SQLiteStore(f"{folder}/sessions.sqlite")
        ...     store.put_many([(b"ada", b"state")])
        ...     store.close()
        ...     again = SQLiteStore(f"{folder}/sessions.sqlite")
        ...     print(again.get_many([b"ada", b"bob"]))
        ...     again.close()
        [b'state', None]
    """

    def __init__(
        self,
        path: str | Path,
        *,
        busy_seconds: float = 5.0,
        keep_events: int = 10_000,
        max_bytes: int | None = None,
        max_users: int | None = None,
        idle_seconds: float | None = None,
        memory_bytes: int = 256 << 20,
    ) -> None:
        check_limits(max_bytes, max_users, idle_seconds, keep_events)
        check_at_least(0, memory_bytes=memory_bytes)
        # Sessions in memory, the least recently used first, and their bytes. Of each, events and bytes when its row was
        # written, and its row of usage.
        self._live: OrderedDict[bytes, LiveSession] = OrderedDict()
        self._live_bytes, self._memory_bytes = 0, memory_bytes
        self._written: dict[bytes, tuple[int, int, int]] = {}
        self.keep_events, self.max_bytes, self.max_users = keep_events, max_bytes, max_users
        self.idle_seconds = idle_seconds
        self._limited = (max_bytes, max_users, idle_seconds) != (None, None, None)
        # When users were read since the last write.
        self._read: dict[bytes, float] = {}
        self._sizes = StoreSizes(0)
        self.path = Path(path)
        if not self.path.absolute().parent.is_dir():
            raise MissingInputError(f"path={self.path} is in a folder that does not exist; make it first")
        self._lock = threading.RLock()
        self._busy_seconds = busy_seconds
        # A new file is created on first use, so that a command which is refused before leaves none.
        if self.path.exists():
            self._open()

    def claim(self, description: bytes) -> bytes:
        """See `StateStore.claim`."""
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO meta VALUES ('description', ?)", (description,))
            (found,) = connection.execute("SELECT value FROM meta WHERE name = 'description'").fetchone()
        return bytes(found)

    def redescribe(self, description: bytes) -> None:
        """See `SessionStore.redescribe`."""
        with self._transaction() as connection:
            connection.execute("UPDATE meta SET value = ? WHERE name = 'description'", (description,))

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `StateStore.get_many`; after a kill, a session may lack events (`Behind`)."""
        found: list[bytes | None] = []
        for key, row in zip(keys, self.get_live(keys), strict=True):
            content = row.session if isinstance(row, Behind) else row
            found.append(content if content is None or isinstance(content, bytes) else content.to_bytes(key))
        return found

    def get_live(self, keys: Sequence[bytes]) -> Sequence[bytes | LiveSession | Behind | None]:
        """See `LiveStore.get_live`."""
        with self._lock, self._errors():
            if self._limited:
                self._mark_read(keys)
            found: list[bytes | LiveSession | Behind | None] = []
            for key in keys:
                live = self._live.get(key)
                if live is not None:
                    self._live.move_to_end(key)
                    found.append(live)
                elif (row := self._connection.execute(GET, (key,)).fetchone()) is None:
                    found.append(None)
                else:
                    found.append(row[0] if row[1] == 0 else Behind(*row))
        return found

    def put_many(self, rows: Sequence[tuple[bytes, bytes | LiveSession]], chunks: Sequence[Chunk] = ()) -> None:
        """See `SessionStore.put_many`."""
        now = time.time()
        with self._transaction() as connection:
            self._put_leaving(self._memory_bytes)
            events = {chunk.key: chunk for chunk in chunks}
            full, behind, new, growth = [], [], [], 0
            for key, row in rows:
                chunk = events.get(key)
                if chunk is None or not self._may_wait(key, row, chunk):
                    full.append((key, row))
                    continue
                del events[key]
                size, (last, _, usage) = len(chunk.content), self._written[key]
                if chunk.end > self.keep_events:
                    size = self._put_events(chunk)
                else:
                    new.append((key, chunk.end, chunk.content))
                growth += size
                behind.append((now, size, chunk.end - last, usage))
                self._live[key] = cast("LiveSession", row)
                self._live.move_to_end(key)
            connection.executemany(PUT_EVENTS, new)
            connection.executemany(PUT_BEHIND, behind)
            self._put_full(full, {key: self._put_events(chunk) for key, chunk in events.items()}, now)
            self._count(event_bytes=growth)
            self._keep_limits(now)

    def release(self) -> None:
        """See `LiveStore.release`."""
        # A full disk is no error here: the memory is freed all the same, and the file has the events.
        with suppress(SessionStoreError):
            for _ in range(0, self._live_bytes, RELEASED_BYTES):
                with self._transaction():
                    self._put_leaving(self._live_bytes - RELEASED_BYTES)

    def events_of(self, keys: Sequence[bytes]) -> list[list[bytes]]:
        """See `SessionStore.events_of`."""
        select = "SELECT ifnull(CAST(content AS BLOB), x'') FROM events WHERE user = ? ORDER BY ends"
        with self._lock, self._errors():
            return [[row[0] for row in self._connection.execute(select, (key,))] for key in keys]

    def sizes(self) -> StoreSizes:
        """See `SessionStore.sizes`."""
        return self._sizes

    def delete(self, key: bytes) -> bool:
        """See `StateStore.delete`."""
        with self._transaction() as connection:
            found = self._drop(connection.execute(f"{USAGE} WHERE user = ?", (key,)).fetchall())
            self._count(dropped=-found)
        return found > 0

    def verify(self) -> None:
        """Read the whole file and check that it is intact; the content of sessions is checked when they are read.

        Raises:
            SessionStoreError: if it is damaged.
        """
        with self._lock, self._errors():
            (found,) = self._connection.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise SessionStoreError(f"{self.path} is damaged: {' '.join(found.split())}; {REMEDY}")

    def backup(self, path: str | Path) -> None:
        """Write a copy of all sessions as they are now, while others are read and written; replaces a file.

        Raises:
            SessionStoreError: if the copy cannot be written.
        """
        target = Path(path)
        partial = target.with_name(target.name + PARTIAL)
        try:
            create_private(partial)
            copy = sqlite3.connect(partial)
            try:
                with self._lock, self._errors():
                    self._connection.backup(copy)
            finally:
                copy.close()
            move(partial, target)
        except OSError as error:
            raise SessionStoreError(f"the backup {target} cannot be written: {error.strerror}") from error
        finally:
            partial.unlink(missing_ok=True)

    def __len__(self) -> int:
        return self._sizes.users

    def close(self) -> None:
        """See `StateStore.close`."""
        with self._lock:
            if self._read or self._live:
                with suppress(SessionStoreError), self._transaction():
                    self._put_leaving(-1)
            if "_connection" in vars(self):
                self._connection.close()

    def _may_wait(self, key: bytes, row: bytes | LiveSession, chunk: Chunk) -> bool:
        """Return whether a session can be made from its row and its events, of which the chunk is the next."""
        live = self._live.get(key)
        if live is None or isinstance(row, bytes) or chunk.begin != live.num_events or not chunk.content:
            return False
        most = MOST_BEHIND + hash(key) % MOST_BEHIND
        return chunk.end - self._written[key][0] < most and self.keep_events >= 2 * MOST_BEHIND

    def _put_leaving(self, most: int) -> None:
        """Take sessions out of memory until they have `most` bytes, and write those with rows that lack events."""
        while self._live_bytes > most and self._live:
            key, live = next(iter(self._live.items()))
            if self._written[key][0] < live.num_events:
                content = live.to_bytes(key)
                self._connection.execute(PUT, (key, content))
                select = "SELECT used, CAST(states AS INTEGER) FROM usage WHERE user = ?"
                used, states = self._connection.execute(select, (key,)).fetchone() or (0, 0)
                self._connection.execute(PUT_USAGE, (key, used, len(key) + len(content), 0))
                self._count(state_bytes=len(key) + len(content) - states)
            self._forget(key)

    def _forget(self, key: bytes) -> None:
        """Take a session out of memory."""
        if self._live.pop(key, None) is not None:
            self._live_bytes -= self._written.pop(key)[1]

    def _put_full(self, rows: Sequence[tuple[bytes, bytes | LiveSession]], added: dict[bytes, int], now: float) -> None:
        """Write sessions; `added` are bytes of events."""
        users = growth = 0
        for key, row in rows:
            select = "SELECT CAST(states AS INTEGER), rowid FROM usage WHERE user = ?"
            found = self._connection.execute(select, (key,)).fetchone()
            content = row if isinstance(row, bytes) else row.to_bytes(key)
            size = len(key) + len(content)
            users, growth = users + (found is None), growth + size - (found[0] if found else 0)
            self._connection.execute(PUT, (key, content))
            usage: Any = self._connection.execute(PUT_USAGE, (key, now, size, added.get(key, 0))).lastrowid
            self._forget(key)
            if not isinstance(row, bytes):
                self._live[key] = row
                self._written[key] = row.num_events, size, found[1] if found else usage
                self._live_bytes += size
        self._count(users=users, state_bytes=growth, event_bytes=sum(added.values()))

    def _put_events(self, chunk: Chunk) -> int:
        """Write a chunk, delete those that it replaces or that are too old, and return the change in bytes."""
        execute, added = self._connection.execute, len(chunk.content)
        for low, high in ((-1, chunk.end - self.keep_events), (chunk.begin, 1 << 62)):
            if high > 0:
                (size,) = execute(f"SELECT sum(length(content)) {CHUNKS}", (chunk.key, low, high)).fetchone()
                if size is not None:
                    execute(f"DELETE {CHUNKS}", (chunk.key, low, high))
                    added -= size
        if chunk.content:
            execute("INSERT INTO events VALUES (?, ?, ?)", (chunk.key, chunk.end, chunk.content))
        return added

    def _mark_read(self, keys: Sequence[bytes]) -> None:
        now, due = time.time(), len(self._read) >= MANY_READ
        if self.idle_seconds is not None:
            (oldest,) = self._connection.execute("SELECT min(used) FROM usage").fetchone()
            due |= oldest is not None and oldest < now - self.idle_seconds
        if due:
            # On a full disk, sessions can still be read.
            with suppress(SessionStoreError), self._transaction():
                self._keep_limits(now)
        self._read.update(dict.fromkeys(keys, now))

    def _keep_limits(self, now: float) -> None:
        execute = self._connection.execute
        if self.idle_seconds is not None:
            self._drop(execute(f"{USAGE} WHERE used < ?", (now - self.idle_seconds,)).fetchall())
        while self._is_full() and self._drop(execute(f"{USAGE} ORDER BY used LIMIT 1").fetchall()):
            pass

    def _is_full(self) -> bool:
        size, users, most = self._sizes, self.max_users, self.max_bytes
        too_large = most is not None and size.state_bytes + size.event_bytes > most
        return too_large or (users is not None and size.users > users)

    def _drop(self, found: Sequence[tuple[Any, ...]]) -> int:
        """Delete rows of `USAGE`, with sessions and events, and return how many."""
        for rowid, key, states, events in found:
            self._connection.execute("DELETE FROM usage WHERE rowid = ?", (rowid,))
            for table in ("sessions", "events"):
                self._connection.execute(f"DELETE FROM {table} WHERE user = ?", (key,))
            self._forget(key)
            self._count(users=-1, state_bytes=-states, event_bytes=-events, dropped=1)
        return len(found)

    def _count(self, **changes: int) -> None:
        found = self._sizes._asdict()
        self._sizes = StoreSizes(**{name: value + changes.get(name, 0) for name, value in found.items()})

    @cached_property
    def _connection(self) -> sqlite3.Connection:
        self._open()
        return self._connection

    def _open(self) -> None:
        """Set the connection, to a new file if it does not exist."""
        total = "total(CAST(states AS INTEGER)), total(CAST(events AS INTEGER))"
        with self._errors():
            if not self.path.exists():
                create_private(self.path)
            # Our lock keeps threads apart.
            connection = self._connection = sqlite3.connect(
                self.path, timeout=self._busy_seconds, isolation_level=None, check_same_thread=False
            )
            try:
                prepare(connection, self.path, self.verify)
                counts = connection.execute(f"SELECT count(*), {total} FROM usage").fetchone()
            except BaseException:
                connection.close()
                del self._connection
                raise
        self._sizes = StoreSizes(*map(int, counts))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors():
            before = self._sizes
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                times = [(used, key) for key, used in self._read.items()]
                self._connection.executemany("UPDATE usage SET used = ? WHERE user = ?", times)
                yield self._connection
                self._connection.execute("COMMIT")
                self._read.clear()
            except BaseException:
                self._sizes = before
                # The file has all of them, some as a state and events.
                self._live.clear()
                self._written.clear()
                self._live_bytes = 0
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise SessionStoreError(f"{self.path} cannot be used: {reason_of(error)}") from error
