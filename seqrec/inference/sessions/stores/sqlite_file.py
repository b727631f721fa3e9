"""The file of `SQLiteStore`: its tables, and how it is opened."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from seqrec.errors import SessionStoreError

# Identify the file in its header: "seqS", and the version of the tables.
APPLICATION_ID, VERSION = 0x73657153, 3
TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL)
CREATE TABLE sessions (user BLOB PRIMARY KEY, session BLOB NOT NULL)
"""
# Of version 2. Usage has a table of its own, as a change of a session's row writes the whole session.
MORE_TABLES = """
CREATE TABLE events (user BLOB, ends INTEGER, content BLOB NOT NULL, PRIMARY KEY (user, ends))
CREATE TABLE usage (user BLOB PRIMARY KEY, used REAL NOT NULL, states INTEGER NOT NULL, events INTEGER NOT NULL)
INSERT INTO usage SELECT user, strftime('%s', 'now'), length(user) + length(session), 0 FROM sessions
"""
# Of version 3: the events that a session's row lacks. The index has all numbers twice, which shows damage.
BEHIND = """
ALTER TABLE usage ADD COLUMN behind INTEGER NOT NULL DEFAULT 0
DROP INDEX IF EXISTS used
CREATE INDEX used ON usage (used, states, events, behind)
"""
# Files up to this size are checked when they are opened; that takes less than a second.
CHECKED_BYTES = 64 << 20
REMEDY = "move it away to start with new sessions"


def prepare(connection: sqlite3.Connection, path: Path, verify: Callable[[], None]) -> None:
    """Make the tables of a new file or a file of an earlier version, and the settings of this connection.

    Raises:
        SessionStoreError: if the file is not a store of sessions, or of another version.
    """
    execute = connection.execute
    # Set before the log is opened, so that it shares no memory with other processes.
    execute("PRAGMA locking_mode = EXCLUSIVE")
    execute("BEGIN EXCLUSIVE")
    (application,), (version,) = (execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version"))
    is_new = not execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    steps = [TABLES + f"PRAGMA application_id = {APPLICATION_ID}", MORE_TABLES, BEHIND][0 if is_new else version :]
    if application != APPLICATION_ID and not (is_new and application == 0):
        raise SessionStoreError(f"{path} is an SQLite file of another program; give another path")
    if not is_new and version not in range(1, VERSION + 1):
        raise SessionStoreError(f"{path} is a store of sessions of version {version}, expected {VERSION}; {REMEDY}")
    execute("PRAGMA cell_size_check = ON")
    if path.stat().st_size <= CHECKED_BYTES:
        verify()
    for statement in [line for step in steps for line in step.strip().splitlines()]:
        execute(statement)
    if steps:
        execute(f"PRAGMA user_version = {VERSION}")
    execute("COMMIT")
    (mode,) = execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise SessionStoreError(f"{path} cannot have a write-ahead log here; give a path on a local disk")
    execute("PRAGMA synchronous = FULL")
    # On macOS a plain fsync leaves data in the disk's cache.
    execute("PRAGMA fullfsync = ON")


def create_private(path: Path) -> None:
    """Create an empty file that only its owner can read; SQLite gives its log the same permissions."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))


def reason_of(error: sqlite3.Error) -> str:
    """Return why a file cannot be used, and what to do."""
    text = str(error)
    if "locked" in text or "busy" in text:
        return "another process has it open; close it there, or give another path"
    if "not a database" in text:
        return "it is not a store of sessions; give another path"
    if "malformed" in text:
        return f"it is damaged ({text}); {REMEDY}"
    return f"{text}; check that the disk has space and the path can be written"
