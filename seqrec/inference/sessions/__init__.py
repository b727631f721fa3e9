"""Sessions: users' events come in one at a time, and a store keeps their states."""

from seqrec.aliases import old_names
from seqrec.inference.sessions.entries import (
    Event,
    HistoryOf,
    Id,
    Request,
    Scored,
    UserHistory,
    log_histories,
)
from seqrec.inference.sessions.item_rows import ItemRows
from seqrec.inference.sessions.kept_events import KeptEvents
from seqrec.inference.sessions.recommender import SessionRecommender, warm
from seqrec.inference.sessions.stores import (
    InMemoryStore,
    RedisStore,
    SessionStore,
    SQLiteStore,
    StateStore,
    StoreSizes,
)
from seqrec.inference.sessions.user_state import ReencodedState, StreamedState, UserState

__all__ = [
    "Event",
    "HistoryOf",
    "Id",
    "InMemoryStore",
    "ItemRows",
    "KeptEvents",
    "RedisStore",
    "ReencodedState",
    "Request",
    "Scored",
    "SessionRecommender",
    "SessionStore",
    "SQLiteStore",
    "StateStore",
    "StoreSizes",
    "StreamedState",
    "UserHistory",
    "UserState",
    "log_histories",
    "warm",
]

__getattr__ = old_names(__name__)
