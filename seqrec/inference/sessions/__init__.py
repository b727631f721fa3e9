"""Users followed event by event: what a model remembers of them, kept in a store."""

from seqrec.inference.sessions.entries import Event, HistoryOf, Id, Request, Scored, UserHistory
from seqrec.inference.sessions.histories import log_histories, warm
from seqrec.inference.sessions.memories import Memory, ReencodedMemory, StreamedMemory
from seqrec.inference.sessions.recommender import SessionRecommender
from seqrec.inference.sessions.stores import MemoryStore, RedisStore, SQLiteStore, StateStore

__all__ = [
    "Event",
    "HistoryOf",
    "Id",
    "Memory",
    "MemoryStore",
    "RedisStore",
    "ReencodedMemory",
    "Request",
    "Scored",
    "SessionRecommender",
    "SQLiteStore",
    "StateStore",
    "StreamedMemory",
    "UserHistory",
    "log_histories",
    "warm",
]
