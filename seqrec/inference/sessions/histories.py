"""Sessions of users that a prepared log knows."""

from __future__ import annotations

import numpy as np

from seqrec.data.store import EventStore
from seqrec.inference.sessions.entries import HistoryOf, Id, UserHistory
from seqrec.inference.sessions.recommender import SessionRecommender


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


def warm(sessions: SessionRecommender, log: EventStore, *, batch_events: int = 1 << 16) -> int:
    """Make sessions of all users of a prepared log who have none, users of like length together.

    Called again after it was stopped, it goes on with the users who are missing. Where only some of the log's users
    will come, `history_of=log_histories(log)` does the same for each when it comes, and takes no space for the others.

    Args:
        sessions: Where they go.
        log: The log, such as the one that the model was trained on.
        batch_events: Events that are encoded and written at a time, about.

    Returns:
        Number of sessions that were made.
    """
    history_of, made = log_histories(log), 0
    lengths = np.diff(log.offsets)
    order = np.argsort(lengths, kind="stable")
    # A batch ends where the events up to here pass another multiple.
    ends = np.flatnonzero(np.diff(np.cumsum(lengths[order]) // batch_events)) + 1
    for rows in np.split(order, ends):
        users = log.user_vocabulary.external_ids(rows + 1)
        made += sessions.begin(users.tolist() if isinstance(users, np.ndarray) else users, history_of)
    return made
