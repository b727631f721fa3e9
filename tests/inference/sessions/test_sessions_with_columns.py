"""Sessions of models that read columns of events."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import torch

from seqrec.data.event_columns import EventColumn
from seqrec.data.prepare import Filters, prepare
from seqrec.data.schema import Schema
from seqrec.data.sources import Table
from seqrec.data.vocabulary import Vocabulary
from seqrec.encoders.event_time import EventTime
from seqrec.errors import BatchEntryError, DamagedSessionError, SessionStoreError
from seqrec.inference.sessions import (
    Event,
    InMemoryStore,
    ReencodedState,
    Scored,
    SessionRecommender,
    SQLiteStore,
    StreamedState,
    UserHistory,
    log_histories,
    warm,
)
from seqrec.models import SequentialRecommender

Build = Callable[..., SequentialRecommender]

TAB = EventColumn("tab", "categorical", values=["home", "search", "share"])
WATCHED = EventColumn("watched", "numeric", mean=20.0, std=8.0)
LOOKS = EventColumn("looks", "vector", width=2)
COLUMNS = [TAB, WATCHED, LOOKS]
NOON = 1_600_000_000
# In rows that a step changes in place, in rows that it copies, and events that are encoded again.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "in place": ("MambaRec", {}),
    "in place, timed": ("MambaRec", {"time": EventTime()}),
    "copied": ("GRU4Rec", {}),
    "re-encoded": ("SASRec", {"positions": True}),
    "re-encoded, timed": ("SASRec", {"positions": True, "time": EventTime()}),
}
every_model = pytest.mark.parametrize(("name", "arguments"), MODELS.values(), ids=MODELS)


@pytest.fixture
def featured(build: Build) -> Build:
    """Builds a model for which columns matter from the beginning."""

    def featured(
        name: str = "MambaRec", *, columns: Sequence[EventColumn] = COLUMNS, seed: int = 0, **arguments: Any
    ) -> Any:
        model = build(name, seed=seed, event_columns=columns, **arguments)
        for part in (model.column_embedding, model.event_time):
            for weight in [] if part is None else part.parameters():
                torch.nn.init.normal_(weight, std=0.3)
        return model

    return featured


def events_of(user: str, count: int = 14) -> list[Event]:
    rng = np.random.default_rng(len(user) + count)
    tabs, found = ["home", "search", "share", None, "unheard of"], []
    for step in range(count):
        watched = None if step % 5 == 3 else round(float(rng.normal(20, 8)), 2)
        looks = None if step % 4 == 2 else [float(step), round(float(rng.normal()), 3)]
        values = {"tab": tabs[step % 5], "watched": watched, "looks": looks, "not read": "x"}
        found.append(Event(user, 10 * int(rng.integers(1, 31)), NOON + 60 * step, f"{user}-{step}", values))
    return found


def frame(events: Sequence[Event]) -> polars.DataFrame:
    plain = {"user_id": [each.user for each in events], "item_id": [each.item for each in events]}
    plain["timestamp"] = [each.time for each in events]
    columns = {name: [(each.columns or {})[name] for each in events] for name in ("tab", "watched", "looks")}
    return polars.DataFrame(plain | columns)


def same(found: Sequence[Scored], expected: polars.DataFrame) -> None:
    assert [each.item for each in found] == expected["item_id"].to_list()
    np.testing.assert_allclose([each.score for each in found], expected["score"].to_numpy(), rtol=0, atol=1e-5)


@every_model
def test_sessions_recommend_what_the_model_does_for_the_same_columns(name: str, arguments: dict, featured: Build):
    # Longer than the model's window of events where these are encoded again.
    model, count = featured(name, **arguments), 14 if "positions" in arguments else 9
    one_by_one, together = SessionRecommender(model), SessionRecommender(model)
    users = ["ada", "bo"]
    for user in users:
        for event in events_of(user, count):
            one_by_one.observe(*event)
    together.observe_many([event for user in users for event in events_of(user, count)])
    for user in users:
        expected = model.recommend(frame(events_of(user, count)), 6)
        for sessions in (one_by_one, together):
            same(sessions.recommend(user, 6), expected)
    # The columns are read: others give other scores.
    other = SessionRecommender(model)
    other.observe_many([each._replace(columns={**(each.columns or {}), "tab": "share"}) for each in events_of("ada")])
    assert other.recommend("ada") != together.recommend("ada")


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        (None, "the column 'tab' of user='bo' is missing, but the model reads it"),
        ({"tab": "home", "looks": [1, 2]}, "the column 'watched' of user='bo' is missing"),
        ({"tab": "home", "watched": "long", "looks": None}, "the column 'watched' has 'long', but it is numeric"),
        ({"tab": "home", "watched": math.inf, "looks": None}, "the column 'watched' has inf"),
        ({"tab": ["home"], "watched": 1, "looks": None}, r"the column 'tab' has \['home'\], but it is categorical"),
        ({"tab": "home", "watched": 1, "looks": [1]}, r"the column 'looks' has \[1\], but it is vector and needs a li"),
        ({"tab": "home", "watched": 1, "looks": [1, math.nan]}, r"the column 'looks' has \[1, nan\]"),
    ],
)
def test_an_event_with_a_bad_column_is_refused_by_its_place_and_changes_nothing(
    columns: dict | None, named: str, featured: Build
):
    sessions, good = SessionRecommender(featured()), {"tab": "home", "watched": math.nan, "looks": None}
    with pytest.raises(BatchEntryError, match=rf"events\[1\]: {named}") as error:
        sessions.observe_many([Event("ada", 10, columns=good), Event("bo", 20, columns=columns)])
    assert error.value.index == 1
    assert len(sessions) == 0
    sessions.observe("ada", 10, columns=good)
    assert sessions.recommend("ada")


def test_columns_that_no_model_reads_change_nothing(build: Build):
    sessions, bare = SessionRecommender(build()), SessionRecommender(build())
    sessions.observe_many(events_of("ada"))
    bare.observe_many([event._replace(columns=None) for event in events_of("ada")])
    assert sessions.recommend("ada") == bare.recommend("ada")


@every_model
@pytest.mark.parametrize("keep_events", [0, 1000])
def test_sessions_continue_after_a_restart(
    name: str, arguments: dict, keep_events: int, featured: Build, tmp_path: Path
):
    model, fresh = featured(name, **arguments), SessionRecommender(featured(name, **arguments))
    for event in events_of("ada"):
        fresh.observe_many([event])
        with SessionRecommender(model, SQLiteStore(tmp_path / "s.db", keep_events=keep_events)) as sessions:
            sessions.observe_many([event])
    with SessionRecommender(model, SQLiteStore(tmp_path / "s.db", keep_events=keep_events)) as sessions:
        assert sessions.rebuilt == 0
        assert sessions.recommend("ada") == fresh.recommend("ada")


@every_model
@pytest.mark.parametrize("text", [False, True])
def test_another_model_makes_each_session_again_from_events_and_columns(
    name: str, arguments: dict, text: bool, featured: Build, tmp_path: Path
):
    """The codes and scales of the other model are others; the kept events have the log's values."""
    values = [TAB, EventColumn("watched", "numeric", mean=5.0, std=2.0), LOOKS]
    wider = [LOOKS, EventColumn("tab", "categorical", values=["elsewhere", "home", "search", "share"]), values[1]]

    def named(model: SequentialRecommender) -> SequentialRecommender:
        if text:
            model.item_vocabulary = Vocabulary(sorted(f"{10 * item}" for item in range(1, 31)))
        return model

    # The unknown value is kept as a missing one. Chunks of many events are merged.
    events = [
        each._replace(columns={**(each.columns or {}), "tab": None}) if n % 5 == 4 else each
        for n, each in enumerate(events_of("ada", 600))
    ]
    old = named(featured("GRU4Rec", columns=values, seed=5, time=EventTime()))
    with SessionRecommender(old, SQLiteStore(tmp_path / "s.db")) as sessions:
        for begin in range(0, 600, 50):
            sessions.observe_many(events[begin : begin + 50])
    model = named(featured(name, columns=wider, seed=1, **arguments))
    fresh = SessionRecommender(model)
    fresh.observe_many(events)
    with SessionRecommender(model, SQLiteStore(tmp_path / "s.db")) as again:
        expected, found = (each.recommend("ada", filter_seen=False) for each in (fresh, again))
        assert again.rebuilt == 1
    assert [each.item for each in found] == [each.item for each in expected]
    # Kept as float32, so nothing is lost.
    assert [each.score for each in found] == [each.score for each in expected]


def test_events_that_were_kept_without_a_column_need_to_be_forgotten(build: Build, featured: Build):
    store = InMemoryStore(keep_events=100)
    SessionRecommender(featured(columns=[TAB]), store).observe_many(events_of("ada"))
    SessionRecommender(build(), store).observe_many(events_of("bo"))
    sessions = SessionRecommender(featured(), store)
    for user, lacking in (("ada", "watched"), ("bo", "tab")):
        named = rf"user='{user}' is of another model; .* are kept without their column '{lacking}'"
        with pytest.raises(DamagedSessionError, match=named):
            sessions.recommend(user)
        assert sessions.forget(user)
        sessions.observe_many(events_of(user))
        assert sessions.recommend(user)
    # A model that reads fewer columns continues.
    fewer, fresh = SessionRecommender(featured(columns=[LOOKS]), store), SessionRecommender(featured(columns=[LOOKS]))
    fresh.observe_many(events_of("ada"))
    assert [each.item for each in fewer.recommend("ada")] == [each.item for each in fresh.recommend("ada")]


@pytest.mark.parametrize("state", [StreamedState, ReencodedState])
def test_states_of_other_columns_are_not_continued(state: Any, featured: Build):
    ours = state(featured())
    ours.check(ours.describe())
    # The same weights read the same numbers otherwise.
    scaled = [TAB, EventColumn("watched", "numeric", mean=21.0, std=8.0), LOOKS]
    for columns in (scaled, [EventColumn("tab", "categorical", values=["a", "b", "c"]), WATCHED, LOOKS]):
        with pytest.raises(SessionStoreError, match="the store is of another model: its columns is"):
            state(featured(columns=columns)).check(ours.describe())


@pytest.mark.parametrize("positions", [False, True])
def test_histories_of_the_log_come_with_their_columns(positions: bool, featured: Build, tmp_path: Path):
    events = [event for user in ("ada", "bo", "eve") for event in events_of(user)]
    frame(events).write_parquet(tmp_path / "log.parquet")
    schema = Schema(events={column.name: column.kind for column in COLUMNS})
    log = prepare(Table(str(tmp_path / "log.parquet")), Filters(), tmp_path / "store", schema=schema)
    model = featured(positions=positions)
    sessions, warmed = SessionRecommender(model, history_of=log_histories(log)), SessionRecommender(model)
    assert warm(warmed, log) == 3
    for user in ("ada", "bo", "eve"):
        expected = SessionRecommender(model)
        expected.observe_many(events_of(user))
        for found in (sessions, warmed):
            same(
                found.recommend(user, 5),
                polars.DataFrame(expected.recommend(user, 5), schema=["item_id", "score"], orient="row"),
            )


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        (None, "columns: the history of user='ada' needs 'tab', with one value for each of its 2 events"),
        ({"tab": ["home"]}, "needs 'tab', with one value for each of its 2 events"),
        (
            {"tab": ["home", "home"], "watched": [1, "x"]},
            "the history of user='ada', event 1: the column 'watched' has",
        ),
    ],
)
def test_a_history_without_columns_is_refused(columns: Any, named: str, featured: Build):
    sessions = SessionRecommender(featured(), history_of=lambda user: UserHistory([10, 20], columns=columns))
    with pytest.raises(BatchEntryError, match=named):
        sessions.recommend("ada")
