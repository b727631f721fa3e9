"""Sessions in an SQLite file."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from seqrec.errors import MissingInputError, SessionStoreError
from seqrec.files import PARTIAL, move

# Identify the file in its header: "seqS", and the version of the tables.
APPLICATION_ID, VERSION = 0x73657153, 1
TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE sessions (user BLOB PRIMARY KEY, session BLOB NOT NULL);
"""
# Files up to this size are checked when they are opened; that takes less than a second.
CHECKED_BYTES = 64 << 20
REMEDY = "move it away to start with new sessions"
PUT = "INSERT INTO sessions VALUES (?, ?) ON CONFLICT (user) DO UPDATE SET session = excluded.session"


class SQLiteStore:
    """Keeps sessions in one file, which outlives the process; see `StateStore`.

    A call of `put_many` is one transaction that is on disk when it returns (write-ahead log, `synchronous=FULL`): an
    acknowledged write survives `kill -9` and a loss of power. The log, `<path>-wal`, is next to the file and belongs
    to it. Only one process at a time can open the file: two that continue the same session would each undo the
    other's writes.

    A new file can be read by its owner alone. A file of up to 64 MiB is checked for damage when it is opened;
    `verify` checks a larger one.

    Args:
        path: The file, in a folder that exists; created if it does not exist.
        busy_seconds: Longest wait for another process to close the file.

    Raises:
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

    def __init__(self, path: str | Path, *, busy_seconds: float = 5.0) -> None:
        self.path = Path(path)
        if not self.path.absolute().parent.is_dir():
            raise MissingInputError(f"path={self.path} is in a folder that does not exist; make it first")
        self._lock = threading.Lock()
        with self._errors():
            # Our lock keeps threads apart.
            if not self.path.exists():
                _create_private(self.path)
            self._connection = sqlite3.connect(
                self.path, timeout=busy_seconds, isolation_level=None, check_same_thread=False
            )
        try:
            with self._errors():
                self._open()
        except BaseException:
            self._connection.close()
            raise

    def claim(self, description: bytes) -> bytes:
        """See `StateStore.claim`."""
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO meta VALUES ('description', ?)", (description,))
            (found,) = connection.execute("SELECT value FROM meta WHERE name = 'description'").fetchone()
        return bytes(found)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `StateStore.get_many`."""
        with self._lock, self._errors():
            select = self._connection.execute
            rows = [select("SELECT session FROM sessions WHERE user = ?", (key,)).fetchone() for key in keys]
        return [None if row is None else row[0] for row in rows]

    def put_many(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """See `StateStore.put_many`."""
        with self._transaction() as connection:
            connection.executemany(PUT, rows)

    def delete(self, key: bytes) -> bool:
        """See `StateStore.delete`."""
        with self._transaction() as connection:
            return connection.execute("DELETE FROM sessions WHERE user = ?", (key,)).rowcount > 0

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
            _create_private(partial)
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
        with self._lock, self._errors():
            count: int = self._connection.execute("SELECT count(*) FROM sessions").fetchone()[0]
        return count

    def close(self) -> None:
        """See `StateStore.close`."""
        with self._lock:
            self._connection.close()

    def _open(self) -> None:
        execute = self._connection.execute
        # Set before the log is opened, so that it shares no memory with other processes.
        execute("PRAGMA locking_mode = EXCLUSIVE")
        execute("BEGIN EXCLUSIVE")
        (application,), (version,) = (
            execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
        )
        is_new = not execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if is_new and application == 0:
            for statement in (*TABLES.strip().splitlines(), f"PRAGMA application_id = {APPLICATION_ID}"):
                execute(statement)
            execute(f"PRAGMA user_version = {VERSION}")
        elif application != APPLICATION_ID:
            raise SessionStoreError(f"{self.path} is an SQLite file of another program; give another path")
        elif version != VERSION:
            raise SessionStoreError(
                f"{self.path} is a store of sessions of version {version}, expected {VERSION}; {REMEDY}"
            )
        execute("COMMIT")
        (mode,) = execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise SessionStoreError(f"{self.path} cannot have a write-ahead log here; give a path on a local disk")
        execute("PRAGMA synchronous = FULL")
        execute("PRAGMA cell_size_check = ON")
        if self.path.stat().st_size <= CHECKED_BYTES:
            (found,) = execute("PRAGMA integrity_check(1)").fetchone()
            if found != "ok":
                raise SessionStoreError(f"{self.path} is damaged: {' '.join(found.split())}; {REMEDY}")
        # On macOS a plain fsync leaves data in the disk's cache.
        execute("PRAGMA fullfsync = ON")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            text = str(error)
            if "locked" in text or "busy" in text:
                reason = "another process has it open; close it there, or give another path"
            elif "not a database" in text:
                reason = "it is not a store of sessions; give another path"
            elif "malformed" in text:
                reason = f"it is damaged ({text}); {REMEDY}"
            else:
                reason = f"{text}; check that the disk has space and the path can be written"
            raise SessionStoreError(f"{self.path} cannot be used: {reason}") from error


def _create_private(path: Path) -> None:
    """Create an empty file that only its owner can read; SQLite gives its log the same permissions."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
