"""Sessions of users that a prepared log knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from written_stores import write_store

from seqrec.data.store import EventStore
from seqrec.errors import BatchEntryError, LateEventError, UnknownUserError
from seqrec.inference.sessions import Scored, SessionRecommender, log_histories, warm
from seqrec.models import Recommender

Build = Callable[..., Recommender]
FullPass = Callable[..., list[Scored]]

LENGTHS = {"ada": 3, "bob": 1, "eve": 12, "zoe": 5}


@pytest.fixture(params=[True, False], ids=["times", "no times"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> EventStore:
    total = sum(LENGTHS.values())
    write_store(
        tmp_path,
        np.random.default_rng(0).integers(1, 31, total),
        np.cumsum([0, *LENGTHS.values()]),
        np.arange(100, 100 + total) if request.param else None,
        list(LENGTHS),
        np.arange(10, 301, 10),
        {},
    )
    return EventStore.open(tmp_path)


def history(log: EventStore, user: str) -> list[int]:
    row = list(LENGTHS).index(user)
    return [10 * int(item) for item in log.item_ids[log.offsets[row] : log.offsets[row + 1]]]


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("batch_events", [1, 5, 1000])
def test_a_log_fills_sessions_which_go_on(
    log: EventStore, build: Build, full_pass: FullPass, positions: bool, batch_events: int
):
    model = build(positions=positions)
    sessions = SessionRecommender(model)
    sessions.observe("zoe", 10)
    assert warm(sessions, log, batch_events=batch_events) == 3
    assert warm(sessions, log) == 0
    for user, length in (("ada", 3), ("bob", 1), ("eve", 12)):
        assert sessions.events_seen(user) == length
        found, expected = sessions.recommend(user), full_pass(model, history(log, user), 10)
        assert [each.item for each in found] == [each.item for each in expected]
    # Who came before has what was observed alone.
    assert sessions.events_seen("zoe") == 1
    sessions.observe("ada", 50)
    expected = full_pass(model, [*history(log, "ada"), 50], 10)
    assert [each.item for each in sessions.recommend("ada")] == [each.item for each in expected]


def test_users_of_the_log_get_their_sessions_when_they_come(log: EventStore, build: Build, full_pass: FullPass):
    model = build()
    sessions = SessionRecommender(model, history_of=log_histories(log))
    assert len(sessions) == 0
    found, expected = sessions.recommend("eve"), full_pass(model, history(log, "eve"), 10)
    assert [each.item for each in found] == [each.item for each in expected]
    assert len(sessions) == 1
    with pytest.raises(UnknownUserError):
        sessions.recommend("stranger")
    if log.timestamps is not None:
        with pytest.raises(LateEventError, match="is before the user's newest event at 102"):
            sessions.observe("ada", 10, 101)
    sessions.observe("ada", 10, 102)
    assert sessions.events_seen("ada") == 4


def test_users_of_another_kind_are_refused(log: EventStore, build: Build):
    sessions = SessionRecommender(build())
    with pytest.raises(BatchEntryError, match=r"users\[1\]: user=1.5 must be"):
        sessions.begin(["ada", 1.5], log_histories(log))
    assert sessions.begin(["ada", "ada", "stranger"], log_histories(log)) == 1
