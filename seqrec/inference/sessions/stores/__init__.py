"""Where sessions are kept."""

from seqrec.inference.sessions.stores.base import StateStore
from seqrec.inference.sessions.stores.memory import MemoryStore
from seqrec.inference.sessions.stores.redis import RedisStore
from seqrec.inference.sessions.stores.sqlite import SQLiteStore

__all__ = ["MemoryStore", "RedisStore", "SQLiteStore", "StateStore"]
