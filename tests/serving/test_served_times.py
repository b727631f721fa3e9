"""Models that read time, served over HTTP."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from served_models import error_of, items_of, model, reading_model, serving

from seqrec.encoders.event_time import EventTime
from seqrec.errors import BatchEntryError, InputError, UnknownUserError
from seqrec.inference.sessions import Event, InMemoryStore, Request, SessionRecommender, SQLiteStore
from seqrec.models import MambaRec, SASRec, SequentialRecommender
from seqrec.serving.app import create_app
from seqrec.serving.history_work import HistoryWork
from seqrec.serving.metrics import Metrics
from seqrec.serving.work import Observe, RecommendToHistory, SessionWork, row_bytes_of

NOON = 1_600_000_000
EVENTS = [(30, NOON), (70, NOON + 60), (20, NOON + 90_000)]
LATER = NOON + 100_000


def timed(kind: type[SequentialRecommender] = MambaRec, **arguments: Any) -> SequentialRecommender:
    """A model for which times matter, always the same."""
    read = EventTime(hour=True, request=True)
    return reading_model(kind, ["event_time", "read_out"], **{"time": read} | arguments)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serving(create_app(SessionRecommender(timed()))) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture(scope="module")
def reference() -> SessionRecommender:
    """The same model without a server, and a user with the events."""
    sessions = SessionRecommender(timed())
    sessions.observe_many([Event("ada", *event) for event in EVENTS])
    return sessions


def observe(client: httpx.Client, user: str, events: list[tuple[int, int]] = EVENTS) -> None:
    body = [{"user": user, "item": item, "time": time} for item, time in events]
    assert client.post("/observe", json=body).json() == {"observed": len(events)}


def best(sessions: SessionRecommender, at: int, user: str = "ada") -> list[int | str]:
    return [each.item for each in sessions.recommend(user, at=at)]


@pytest.mark.parametrize("at", [LATER, LATER + 5 * 3600, LATER + 10**8])
def test_a_user_and_a_history_are_asked_at_any_time(client: httpx.Client, reference: SessionRecommender, at: int):
    observe(client, f"ada-{at}")
    history = {"history": [item for item, _ in EVENTS], "times": [time for _, time in EVENTS]}
    for whose in ({"user": f"ada-{at}"}, history):
        assert items_of(client.post("/recommend", json={**whose, "at": at})) == best(reference, at)
    assert best(reference, LATER) != best(reference, LATER + 10**8)


def test_without_a_time_the_server_asks_now(client: httpx.Client):
    newest = int(time.time()) - 2
    sessions = SessionRecommender(timed())
    sessions.observe("now", 30, newest)
    observe(client, "now", [(30, newest)])
    begin = int(time.time())
    found = [
        items_of(client.post("/recommend", json=whose))
        for whose in ({"user": "now"}, {"history": [30], "times": [newest]})
    ]
    possible = [best(sessions, at, "now") for at in range(begin, int(time.time()) + 1)]
    assert all(each in possible for each in found)
    # A week from now, which our clock has not reached.
    observe(client, "later", [(30, newest + 7 * 24 * 3600)])
    assert "is before the newest event" in error_of(client.post("/recommend", json={"user": "later"}), 422)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"user": "errors", "at": NOON + 1}, r"at=\d+ is before the newest event, at \d+, of user='errors'"),
        ({"user": "errors", "at": "noon"}, r"at: .*valid integer"),
        ({"user": "errors", "at": 2**63}, r"at: .*less than"),
        ({"history": [30]}, "times: the history needs one for each of its 1 events"),
        ({"history": [30], "times": [1, 2]}, "times: the history needs one for each of its 1 events"),
        (
            {"history": [30, 20, 10], "times": [5, 7, 6]},
            "times: the history needs one for each of its 3 events, oldest",
        ),
        ({"history": [30], "times": [NOON], "at": NOON - 1}, rf"at={NOON - 1} is before the newest event, at {NOON}"),
        ({"history": [30], "times": ["x"]}, r"times\.0: .*valid integer"),
    ],
)
def test_a_bad_time_is_answered_by_the_name_of_its_field(client: httpx.Client, body: dict, named: str):
    if "user" in body:
        client.delete("/users/errors")
        observe(client, "errors")
    assert re.match(named, error_of(client.post("/recommend", json=body), 422))


def test_events_need_times_in_order(client: httpx.Client):
    bare = {"user": "bare", "item": 30}
    error = error_of(client.post("/observe", json=bare), 422)
    assert error.startswith("events[0]: time of user='bare' is missing")
    observe(client, "bare")
    error_of(client.post("/observe", json={**bare, "time": NOON}), 409)


def test_times_that_no_model_reads_are_refused_or_checked(reference: SessionRecommender):
    with serving(create_app(SessionRecommender(model()))) as url, httpx.Client(base_url=url) as client:
        observe(client, "ada")
        for whose in ({"user": "ada"}, {"history": [30]}):
            assert items_of(client.post("/recommend", json=whose))
            error = error_of(client.post("/recommend", json={**whose, "at": LATER}), 422)
            assert error.startswith(f"at={LATER} would have no effect")
        assert items_of(client.post("/recommend", json={"history": [30], "times": [NOON]}))
        assert "times: the history needs one" in error_of(
            client.post("/recommend", json={"history": [30], "times": [1, 2]}), 422
        )


def test_requests_with_bad_times_fail_alone():
    sessions = SessionRecommender(timed())
    sessions.observe_many([Event(user, *event) for user in ("ada", "bob") for event in EVENTS])
    works = [
        Request("ada", at=LATER),
        Request("bob", at=NOON),
        Request("bob"),
        Request("eve", at=LATER),
        Observe([Event("ada", 10)]),
        Observe([Event("bob", 10, LATER)]),
        Request("bob", at=LATER),
    ]
    found = dict(pair for group in SessionWork(sessions, Metrics())(works) for pair in group)
    assert [type(found[place]) for place in range(len(works))] == [
        list,
        BatchEntryError,
        BatchEntryError,
        UnknownUserError,
        BatchEntryError,
        list,
        list,
    ]
    assert [sessions.events_seen(user) for user in ("ada", "bob")] == [3, 4]


@pytest.mark.parametrize(("kind", "arguments"), [(MambaRec, {}), (SASRec, {"positions": True, "max_length": 4})])
def test_histories_of_several_lengths_are_asked_at_times_of_their_own(kind: Any, arguments: dict):
    made = timed(kind, **arguments)
    histories = [[30], [30, 70, 20, 20, 50], [70, 20]]
    works = [
        RecommendToHistory(history, 5, at=LATER + n, times=[NOON + 50 * place for place in range(len(history))])
        for n, history in enumerate(histories)
    ]
    works.append(RecommendToHistory([30], 5, times=[NOON]))
    found = dict(pair for group in HistoryWork(made, Metrics())(works) for pair in group)
    assert isinstance(found[3], InputError)
    for place, work in enumerate(works[:3]):
        sessions = SessionRecommender(made)
        assert work.times is not None
        sessions.observe_many([Event("x", item, at) for item, at in zip(work.history, work.times, strict=True)])
        expected = sessions.recommend("x", 5, at=work.at)
        assert [each.item for each in found[place]] == [each.item for each in expected]


def test_a_server_continues_with_the_times_in_a_file(reference: SessionRecommender, tmp_path: Path):
    for number, event in enumerate(EVENTS):
        sessions = SessionRecommender(timed(), SQLiteStore(tmp_path / "s.db"))
        with sessions, serving(create_app(sessions)) as url, httpx.Client(base_url=url) as client:
            observe(client, "ada", [event])
            body = {"user": "ada", "at": LATER}
            found = items_of(client.post("/recommend", json=body))
            assert number < len(EVENTS) - 1 or found == best(reference, LATER)


def test_the_size_of_a_kept_history_has_its_times():
    sessions = SessionRecommender(timed(SASRec, positions=True, max_length=4), InMemoryStore())
    sessions.observe_many([Event("ada", *event) for event in EVENTS])
    (session,) = sessions._keeper.stored([b"ada"], ["ada"])
    assert session is not None
    assert len(session.state) * 4 == row_bytes_of(sessions) * len(EVENTS)
