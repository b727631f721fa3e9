"""Stores of sessions: in memory, in an SQLite file, in a Redis server."""

from seqrec.aliases import old_names
from seqrec.inference.sessions.stores.redis import RedisStore
from seqrec.inference.sessions.stores.sqlite import SQLiteStore
from seqrec.inference.sessions.stores.state_store import (
    Behind,
    Chunk,
    InMemoryStore,
    LiveSession,
    LiveStore,
    SessionStore,
    StateStore,
    StoreSizes,
)

__all__ = [
    "Behind",
    "Chunk",
    "InMemoryStore",
    "LiveSession",
    "LiveStore",
    "RedisStore",
    "SessionStore",
    "SQLiteStore",
    "StateStore",
    "StoreSizes",
]

__getattr__ = old_names(__name__)
