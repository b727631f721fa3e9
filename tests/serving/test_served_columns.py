"""Models that read columns of events, served over HTTP."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from served_models import error_of, items_of, model, reading_model, serving

from seqrec.data.event_columns import EventColumn
from seqrec.inference.sessions import Event, SessionRecommender
from seqrec.models import MambaRec, SASRec, SequentialRecommender
from seqrec.serving.app import create_app
from seqrec.serving.history_work import HistoryWork
from seqrec.serving.metrics import Metrics
from seqrec.serving.work import RecommendToHistory

COLUMNS = [
    EventColumn("tab", "categorical", values=["home", "search"]),
    EventColumn("watched", "numeric", mean=20.0, std=8.0),
    EventColumn("looks", "vector", width=2),
]
EVENTS: list[tuple[int, dict[str, Any]]] = [
    (30, {"tab": "search", "watched": 12.5, "looks": [0.5, 2]}),
    (70, {"tab": None, "watched": None, "looks": None}),
    (20, {"tab": "not known", "watched": 40, "looks": [1.5, -1.0], "not read": True}),
]


def featured(kind: type[SequentialRecommender] = MambaRec, **arguments: Any) -> SequentialRecommender:
    """A model for which columns matter, always the same."""
    return reading_model(kind, ["column_embedding"], **{"event_columns": COLUMNS} | arguments)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serving(create_app(SessionRecommender(featured()))) as url, httpx.Client(base_url=url) as client:
        yield client


def history(events: list[tuple[int, dict[str, Any]]] = EVENTS) -> dict[str, Any]:
    columns = {name: [values[name] for _, values in events] for name in ("tab", "watched", "looks")}
    return {"history": [item for item, _ in events], "columns": columns}


def test_a_user_and_a_history_get_what_the_sessions_recommend(client: httpx.Client):
    reference = SessionRecommender(featured())
    reference.observe_many([Event("ada", item, columns=columns) for item, columns in EVENTS])
    expected = [each.item for each in reference.recommend("ada")]
    body = [{"user": "ada", "item": item, "columns": columns} for item, columns in EVENTS]
    assert client.post("/observe", json=body).json() == {"observed": 3}
    for whose in ({"user": "ada"}, history()):
        assert items_of(client.post("/recommend", json=whose)) == expected
    bare = history([(item, {"tab": "home", "watched": 20, "looks": [0, 0]}) for item, _ in EVENTS])
    assert items_of(client.post("/recommend", json=bare)) != expected


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        (None, "the column 'tab' of user='bad' is missing, but the model reads it"),
        ({"tab": "home", "watched": 1}, "the column 'looks' of user='bad' is missing"),
        ({"tab": "home", "watched": "1", "looks": None}, "the column 'watched' has '1', but it is numeric"),
        ({"tab": 1.5, "watched": 1, "looks": None}, "the column 'tab' has 1.5, but it is categorical"),
        ({"tab": "home", "watched": 1, "looks": [1]}, "the column 'looks' has [1], but it is vector"),
    ],
)
def test_a_bad_column_of_an_event_is_answered_by_its_name(client: httpx.Client, columns: Any, named: str):
    error = error_of(client.post("/observe", json={"user": "bad", "item": 30, "columns": columns}), 422)
    assert error.startswith(f"events[0]: {named}")
    error_of(client.post("/recommend", json={"user": "bad"}), 404)


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        (None, "columns: the history needs 'tab', with one value for each of its 3 events"),
        ({"tab": ["home"] * 2}, "columns: the history needs 'tab', with one value for each of its 3 events"),
        ({**history()["columns"], "watched": [1, 2, "x"]}, "the history, event 2: the column 'watched' has 'x'"),
        ({"tab": "home"}, "columns.tab: "),
        ({"tab": [{}] * 3}, "columns.tab.0"),
    ],
)
def test_a_bad_column_of_a_history_is_answered_by_its_name(client: httpx.Client, columns: Any, named: str):
    body = {**history(), "columns": columns}
    assert error_of(client.post("/recommend", json=body), 422).startswith(named)


def test_columns_that_no_model_reads_change_nothing():
    with serving(create_app(SessionRecommender(model()))) as url, httpx.Client(base_url=url) as client:
        bare = items_of(client.post("/recommend", json={"history": history()["history"]}))
        assert items_of(client.post("/recommend", json=history())) == bare
        assert client.post("/observe", json={"user": "x", "item": 30, "columns": {"any": math.pi}}).status_code == 200


@pytest.mark.parametrize(("kind", "arguments"), [(MambaRec, {}), (SASRec, {"positions": True, "max_length": 4})])
def test_histories_of_several_lengths_have_columns_of_their_own(kind: Any, arguments: dict):
    made = featured(kind, **arguments)
    histories = [EVENTS[:1], EVENTS + EVENTS, EVENTS[1:]]
    works = []
    for events in histories:
        body = history(events)
        works.append(RecommendToHistory(body["history"], 5, columns=body["columns"]))
    found = dict(pair for group in HistoryWork(made, Metrics())(works) for pair in group)
    for place, events in enumerate(histories):
        sessions = SessionRecommender(made)
        sessions.observe_many([Event("x", item, columns=columns) for item, columns in events])
        assert [each.item for each in found[place]] == [each.item for each in sessions.recommend("x", 5)]
