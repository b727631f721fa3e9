"""Sessions of models that read the time of events and of requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import torch
from written_stores import write_store

from seqrec.data.store import EventStore
from seqrec.data.vocabulary import Vocabulary
from seqrec.encoders.event_time import EventTime
from seqrec.errors import BatchEntryError, DamagedSessionError, LateEventError, SessionStoreError
from seqrec.inference.sessions import (
    Event,
    InMemoryStore,
    ReencodedState,
    Request,
    Scored,
    SessionRecommender,
    SQLiteStore,
    StreamedState,
    UserHistory,
    log_histories,
    warm,
)
from seqrec.models import Popularity, SequentialRecommender

Build = Callable[..., SequentialRecommender]

TIME = EventTime(hour=True, weekday=True, request=True)
NOON = 1_600_000_000
HISTORIES = {
    "ada": [(10, 0), (50, 30), (50, 30), (300, 4_000), (70, 90_000)],
    "bob": [(20, 500)],
    "eve": [(10 * (1 + each % 30), 700 * each * each) for each in range(12)],
}
# States in rows that a step changes in place, in rows that it copies, and events that are encoded again.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "in place": ("MambaRec", {}),
    "copied": ("GRU4Rec", {}),
    "a window": ("SASRec", {"rotary": True}),
    "re-encoded": ("SASRec", {"positions": True}),
    "a window, gaps in mixers": ("SASRec", {"rotary": True, "time": replace(TIME, in_mixers=True)}),
}


@pytest.fixture
def timed(build: Build) -> Build:
    """Builds a model for which times matter from the beginning."""

    def timed(name: str = "MambaRec", *, time: EventTime = TIME, seed: int = 0, **arguments: Any) -> Any:
        model = build(name, seed=seed, time=time, **arguments)
        for part in (model.event_time, model.read_out):
            for weight in [] if part is None else part.parameters():
                torch.nn.init.normal_(weight, std=0.3)
        for part_name, weight in model.encoder.named_parameters():
            if part_name.endswith("gaps.weight"):
                torch.nn.init.normal_(weight.detach(), std=0.3)
        return model

    return timed


def events_of(user: str) -> list[Event]:
    return [Event(user, item, NOON + after, f"{user}-{n}") for n, (item, after) in enumerate(HISTORIES[user])]


def frame(events: Sequence[Event]) -> polars.DataFrame:
    users, items, times = ([event[column] for event in events] for column in range(3))
    return polars.DataFrame({"user_id": users, "item_id": items, "timestamp": times})


def same(found: Sequence[Scored], expected: polars.DataFrame) -> None:
    assert [each.item for each in found] == expected["item_id"].to_list()
    np.testing.assert_allclose([each.score for each in found], expected["score"].to_numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "arguments"), MODELS.values(), ids=MODELS)
def test_sessions_recommend_what_the_model_does_for_the_same_times(name: str, arguments: dict, timed: Build):
    model = timed(name, **arguments)
    one_by_one, together = SessionRecommender(model), SessionRecommender(model)
    assert one_by_one.streams == ("positions" not in arguments)
    for user in HISTORIES:
        for event in events_of(user):
            one_by_one.observe_many([event])
    together.observe_many([event for user in HISTORIES for event in events_of(user)])
    for user in HISTORIES:
        newest = events_of(user)[-1].time
        assert newest is not None
        lists = []
        for at in (newest, newest + 3_600 * 7, newest + 10**7):
            expected = model.recommend(frame(events_of(user)), 6, at=at)
            for sessions in (one_by_one, together):
                same(sessions.recommend(user, 6, at=at), expected)
            lists.append(expected["score"].to_list())
        # The same state, asked at other times.
        assert lists[0] != lists[1] != lists[2]
    at = datetime.fromtimestamp(NOON + 10**6, timezone.utc)
    requests = [Request("eve", 4, at=at), Request("ada", 4, at=NOON + 10**7), Request("eve", 4, at=NOON + 10**7)]
    found = one_by_one.recommend_many(requests)
    for request, own in zip(requests, found, strict=True):
        same(own, model.recommend(frame(events_of(str(request.user))), 4, at=request.at))


def test_a_model_that_reads_no_time_of_requests_reads_that_of_events(timed: Build):
    model = timed(time=EventTime())
    sessions = SessionRecommender(model)
    sessions.observe_many(events_of("ada"))
    same(sessions.recommend("ada", 5), model.recommend(frame(events_of("ada")), 5))
    moved = [event._replace(time=NOON + 10**n) for n, event in enumerate(events_of("ada"))]
    others = SessionRecommender(model)
    others.observe_many(moved)
    assert others.recommend("ada", 5) != sessions.recommend("ada", 5)
    with pytest.raises(BatchEntryError, match=r"requests\[0\]: at=5 would have no effect"):
        sessions.recommend("ada", at=5)


@pytest.mark.parametrize("positions", [False, True])
def test_events_without_times_and_late_ones_are_refused_and_change_nothing(positions: bool, timed: Build):
    sessions = SessionRecommender(timed(positions=positions))
    with pytest.raises(BatchEntryError, match=r"events\[1\]: time of user='bob' is missing, but the model") as error:
        sessions.observe_many([Event("ada", 10, NOON), Event("bob", 10)])
    assert error.value.index == 1
    assert len(sessions) == 0
    sessions.observe("ada", 10, NOON)
    before = sessions.recommend("ada", at=NOON)
    with pytest.raises(LateEventError, match=rf"events\[1\]: time={NOON - 1} of user='ada' is before"):
        sessions.observe_many([Event("ada", 20, NOON + 5), Event("ada", 20, NOON - 1)])
    assert sessions.recommend("ada", at=NOON) == before
    # A repeat of an event changes nothing, whatever its time.
    sessions.observe("ada", 20, NOON, "x")
    sessions.observe_many([Event("ada", 20, NOON, "x"), Event("ada", 30, NOON + 9, "y")])
    fresh = SessionRecommender(sessions.model)
    fresh.observe_many([Event("ada", 10, NOON), Event("ada", 20, NOON), Event("ada", 30, NOON + 9)])
    found, expected = (each.recommend("ada", at=NOON + 50) for each in (sessions, fresh))
    assert [each.item for each in found] == [each.item for each in expected]


@pytest.mark.parametrize(
    ("at", "named"),
    [
        (None, "must know when it is asked"),
        (NOON - 1, rf"at={NOON - 1} is before the newest event, at {NOON}, of user='ada'"),
        (1.5, "at=1.5 must be a timestamp in s"),
        (True, "at=True must be a timestamp in s"),
        (datetime(2030, 1, 1), "no time zone"),
        (2**63, "must be a time of 64 bits"),
    ],
)
def test_a_bad_time_of_a_request_is_refused_with_its_place(at: Any, named: str, timed: Build):
    sessions = SessionRecommender(timed())
    sessions.observe("ada", 10, NOON)
    with pytest.raises(BatchEntryError, match=rf"requests\[1\]: .*{named}") as error:
        sessions.recommend_many([Request("ada", at=NOON), Request("ada", at=at)])
    assert error.value.index == 1


def test_a_time_that_no_model_reads_is_refused(build: Build):
    plain, popular = build(), Popularity.from_counts(np.arange(31))
    popular.item_vocabulary = plain.item_vocabulary
    for model in (plain, popular):
        sessions = SessionRecommender(model)
        sessions.observe("ada", 10, NOON)
        with pytest.raises(BatchEntryError, match=rf"requests\[0\]: at={NOON} would have no effect"):
            sessions.recommend("ada", at=NOON)


@pytest.mark.parametrize(("name", "arguments"), MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("keep_events", [0, 1000])
def test_sessions_continue_after_a_restart(name: str, arguments: dict, keep_events: int, timed: Build, tmp_path: Path):
    model, fresh = timed(name, **arguments), SessionRecommender(timed(name, **arguments))
    for event in events_of("eve"):
        fresh.observe_many([event])
        with SessionRecommender(model, SQLiteStore(tmp_path / "s.db", keep_events=keep_events)) as sessions:
            sessions.observe_many([event])
    with SessionRecommender(model, SQLiteStore(tmp_path / "s.db", keep_events=keep_events)) as sessions:
        assert sessions.rebuilt == 0
        for wait in (0, 10**6):
            at = NOON + 10**6 + wait
            assert sessions.recommend("eve", at=at) == fresh.recommend("eve", at=at)


def test_a_store_knows_the_weights_that_read_time(timed: Build, tmp_path: Path):
    with SessionRecommender(timed(), SQLiteStore(tmp_path / "s.db", keep_events=0)) as sessions:
        sessions.observe_many(events_of("ada"))
    for part, of in (("event_time", "gaps"), ("read_out", "out")):
        model = timed()
        with torch.no_grad():
            getattr(getattr(model, part), of).weight[0] += 1
        store = SQLiteStore(tmp_path / "s.db", keep_events=0)
        with pytest.raises(SessionStoreError, match=f"of another model: its {part} is"):
            SessionRecommender(model, store)
        store.close()


@pytest.mark.parametrize(("name", "arguments"), MODELS.values(), ids=MODELS)
def test_another_model_makes_each_session_again_from_events_and_times(
    name: str, arguments: dict, timed: Build, tmp_path: Path
):
    with SessionRecommender(timed("GRU4Rec", seed=5), SQLiteStore(tmp_path / "s.db")) as sessions:
        for user in HISTORIES:
            for event in events_of(user):
                sessions.observe_many([event])
    model, at = timed(name, seed=1, **arguments), NOON + 10**7
    fresh = SessionRecommender(model)
    with SessionRecommender(model, SQLiteStore(tmp_path / "s.db")) as again:
        for number, user in enumerate(HISTORIES, 1):
            fresh.observe_many(events_of(user))
            assert again.recommend(user, at=at) == fresh.recommend(user, at=at)
            assert again.rebuilt == number
            for each in (again, fresh):
                each.observe(user, 60, at)
            assert again.recommend(user, at=at + 5) == fresh.recommend(user, at=at + 5)


@pytest.mark.parametrize("text", [False, True])
def test_chunks_that_are_merged_keep_their_times(text: bool, timed: Build):
    def named(seed: int) -> SequentialRecommender:
        model = timed(seed=seed)
        if text:
            model.item_vocabulary = Vocabulary(sorted(f"{10 * item}" for item in range(1, 31)))
        return model

    model, store, rng = named(0), InMemoryStore(keep_events=1000), np.random.default_rng(0)
    times = NOON + rng.integers(0, 10_000, 600).cumsum()
    events = [
        Event("ada", f"{10 * item}", int(time)) for item, time in zip(rng.integers(1, 31, 600), times, strict=True)
    ]
    sessions = SessionRecommender(model, store)
    for begin in range(0, 600, 50):
        sessions.observe_many(events[begin : begin + 50])
    again, fresh = (SessionRecommender(named(1), each) for each in (store, None))
    fresh.observe_many(events)
    at = int(times[-1]) + 60
    expected = fresh.recommend("ada", filter_seen=False, at=at)
    assert again.recommend("ada", filter_seen=False, at=at) == expected


def test_a_damaged_session_is_made_again_with_its_times(timed: Build, tmp_path: Path):
    store = SQLiteStore(tmp_path / "s.db")
    with SessionRecommender(timed(), store) as sessions:
        sessions.observe_many(events_of("eve"))
        expected = sessions.recommend("eve", at=NOON + 10**7)
    store = SQLiteStore(tmp_path / "s.db")
    (row,) = store._connection.execute("SELECT session FROM sessions").fetchone()
    store._connection.execute("UPDATE sessions SET session = ?", (row[:-1] + bytes([row[-1] ^ 1]),))
    with SessionRecommender(timed(), store) as sessions:
        assert sessions.recommend("eve", at=NOON + 10**7) == expected
        assert sessions.rebuilt == 1


@pytest.mark.parametrize(("name", "arguments"), MODELS.values(), ids=MODELS)
def test_events_after_the_state_in_a_file_are_observed_again_at_their_times(
    name: str, arguments: dict, timed: Build, tmp_path: Path
):
    store, fresh = SQLiteStore(tmp_path / "s.db"), SessionRecommender(timed(name, **arguments))
    with SessionRecommender(timed(name, **arguments), store) as sessions:
        for event in events_of("eve"):
            sessions.observe_many([event])
            fresh.observe_many([event])
        # The file has no state yet, or an old one, as after a kill.
        store.backup(tmp_path / "b.db")
    with SessionRecommender(timed(name, **arguments), SQLiteStore(tmp_path / "b.db")) as again:
        found, expected = (each.recommend("eve", at=NOON + 10**7) for each in (again, fresh))
        assert [each.item for each in found] == [each.item for each in expected]
        again.observe("eve", 30, NOON + 10**7)


def test_events_that_were_kept_without_times_need_to_be_forgotten(build: Build, timed: Build):
    store = InMemoryStore(keep_events=100)
    plain = SessionRecommender(build(), store)
    plain.observe_many([Event("ada", 10, NOON), Event("ada", 20, NOON + 9), Event("bob", 20, NOON)])
    sessions = SessionRecommender(timed(), store)
    named = r"user='ada' is of another model; forget the user, .* as its events are kept without their times"
    with pytest.raises(DamagedSessionError, match=named):
        sessions.recommend("ada", at=NOON + 10)
    with pytest.raises(DamagedSessionError, match=named):
        sessions.observe("ada", 30, NOON + 10)
    assert sessions.forget("ada")
    sessions.observe("ada", 30, NOON)
    assert sessions.recommend("ada", at=NOON)
    # The other way round, times are no harm. With events of both models, those with times do not help.
    back, fresh = SessionRecommender(build(), store), SessionRecommender(build())
    back.observe("ada", 40)
    fresh.observe_many([Event("ada", 30), Event("ada", 40)])
    assert [each.item for each in back.recommend("ada")] == [each.item for each in fresh.recommend("ada")]
    with pytest.raises(DamagedSessionError, match=named):
        SessionRecommender(timed(), store).recommend("ada", at=NOON + 10)


def test_times_are_not_kept_in_part_of_a_merged_chunk(build: Build, timed: Build):
    store = InMemoryStore(keep_events=1000)
    SessionRecommender(timed(), store).observe_many([Event("ada", 10, NOON + n) for n in range(200)])
    SessionRecommender(build(), store).observe_many([Event("ada", 20, NOON + 200 + n) for n in range(100)])
    with pytest.raises(DamagedSessionError, match="its events are kept without their times"):
        SessionRecommender(timed(), store).recommend("ada", at=NOON + 10**6)


@pytest.fixture
def log(tmp_path: Path) -> EventStore:
    events = [event for user in HISTORIES for event in HISTORIES[user]]
    write_store(
        tmp_path,
        np.array([item // 10 for item, _ in events]),
        np.cumsum([0, *map(len, HISTORIES.values())]),
        np.array([NOON + after for _, after in events]),
        list(HISTORIES),
        np.arange(10, 301, 10),
        {},
    )
    return EventStore.open(tmp_path)


@pytest.mark.parametrize("positions", [False, True])
def test_histories_of_the_log_come_with_their_times(positions: bool, log: EventStore, timed: Build):
    model, at = timed(positions=positions), NOON + 10**7
    sessions, warmed = SessionRecommender(model, history_of=log_histories(log)), SessionRecommender(model)
    assert warm(warmed, log) == len(HISTORIES)
    for user in HISTORIES:
        expected = model.recommend(frame(events_of(user)), 5, at=at)
        same(sessions.recommend(user, 5, at=at), expected)
        same(warmed.recommend(user, 5, at=at), expected)
    with pytest.raises(LateEventError):
        warmed.observe("ada", 10, NOON)


@pytest.mark.parametrize("times", [None, [NOON], [NOON, NOON - 1], [1.5, 2.5]])
def test_a_history_without_fitting_times_is_refused_alone(times: Any, timed: Build):
    def history_of(user: object) -> UserHistory | None:
        return UserHistory([10, 20], NOON, times) if user == "ada" else None

    sessions = SessionRecommender(timed(), history_of=history_of)
    named = "times: the history of user='ada' needs one for each of its 2 events"
    with pytest.raises(BatchEntryError, match=named) as error:
        sessions.observe_many([Event("bob", 10, NOON), Event("bob", 10, NOON), Event("ada", 10, NOON)])
    assert error.value.index == 2
    with pytest.raises(BatchEntryError, match=named):
        sessions.recommend("ada", at=NOON)
    assert len(sessions) == 0


def test_unknown_items_of_a_history_take_their_times_along(timed: Build):
    model = timed()
    history = UserHistory([10, 11, 20, 12], times=[NOON, NOON + 5, NOON + 70, NOON + 900])
    sessions, fresh = SessionRecommender(model, history_of=lambda user: history), SessionRecommender(model)
    fresh.observe_many([Event("ada", 10, NOON), Event("ada", 20, NOON + 70)])
    assert sessions.recommend("ada", at=NOON + 1000) == fresh.recommend("ada", at=NOON + 1000)
    with pytest.raises(LateEventError):
        sessions.observe("ada", 10, NOON + 899)


def test_a_model_that_re_encodes_sees_times_of_the_newest_events_alone(timed: Build):
    model = timed()
    sessions = SessionRecommender(model, memory=ReencodedState(model, max_length=3))
    for event in events_of("eve"):
        sessions.observe_many([event])
    expected = model.recommend(frame(events_of("eve")), 5, filter_seen=False, max_length=3, at=NOON + 10**7)
    same(sessions.recommend("eve", 5, filter_seen=False, at=NOON + 10**7), expected)


def test_states_of_other_settings_of_time_are_not_continued(timed: Build):
    ours = StreamedState(timed())
    # The same weights read the same numbers as other hours.
    theirs = StreamedState(timed(time=EventTime(hour=True, weekday=True, request=True, utc_offset=9)))
    ours.check(ours.describe())
    with pytest.raises(SessionStoreError, match="the store is of another model: its time is"):
        theirs.check(ours.describe())


def test_a_store_from_before_a_setting_of_time_has_its_default(timed: Build):
    ours = StreamedState(timed())
    older = ours.describe()
    del older["time"]["init_args"]["in_mixers"]
    ours.check(older)
