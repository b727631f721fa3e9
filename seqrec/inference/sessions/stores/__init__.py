"""Where sessions are kept."""

from seqrec.aliases import old_names
from seqrec.inference.sessions.stores.base import StateStore
from seqrec.inference.sessions.stores.memory import InMemoryStore
from seqrec.inference.sessions.stores.redis import RedisStore
from seqrec.inference.sessions.stores.sqlite import SQLiteStore

__all__ = ["InMemoryStore", "RedisStore", "SQLiteStore", "StateStore"]

__getattr__ = old_names(__name__)
