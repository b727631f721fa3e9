"""Sessions of users that a prepared log knows."""

from __future__ import annotations

from seqrec.data.store import EventStore
from seqrec.inference.sessions.entries import HistoryOf, Id, UserHistory


def log_histories(log: EventStore) -> HistoryOf:
    """Finds users' histories in a prepared log, for `SessionRecommender(history_of=..)`.

    Args:
        log: The log, such as the one that the model was trained on.
    """

    def history_of(user: Id) -> UserHistory | None:
        (user_id,) = log.user_vocabulary.lookup([user])
        if user_id == 0:
            return None
        own = slice(int(log.offsets[user_id - 1]), int(log.offsets[user_id]))
        newest = None if log.timestamps is None else int(log.timestamps[own.stop - 1])
        return UserHistory(log.item_vocabulary.external_ids(log.item_ids[own]), newest)

    return history_of
