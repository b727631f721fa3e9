from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written_stores import write_store

from seqrec.data.splits import STAGES, GlobalTime, LastN, LeaveOneOut, Split
from seqrec.data.store import EventStore
from seqrec.errors import InputError


def store_of(directory: Path, counts: list[int], external_ids: list[str], times: list[int] | None = None) -> EventStore:
    directory.mkdir(exist_ok=True)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    item_ids = np.ones(offsets[-1], dtype=np.int64)
    timestamps = None if times is None else np.array(times)
    write_store(directory, item_ids, offsets, timestamps, external_ids, np.arange(1), {})
    return EventStore.open(directory)


def timed_store(directory: Path, times: list[list[int]]) -> EventStore:
    names = [f"user {row}" for row in range(len(times))]
    return store_of(directory, [len(x) for x in times], names, [t for user in times for t in user])


@pytest.mark.parametrize(
    ("stage", "expected"),
    [("train", [1, 4, 13]), ("validate", [1, 4, 13]), ("test", [2, 5, 14]), ("predict", [3, 6, 15])],
)
def test_leave_one_out_ends_each_stages_history_before_its_target(tmp_path: Path, stage: str, expected: list[int]):
    stops = LeaveOneOut().history_stops(store_of(tmp_path, [3, 3, 9], ["a", "b", "c"]), stage)
    assert stops.tolist() == expected
    assert stops.dtype == np.int64


def test_with_validation_in_training_only_the_newest_event_is_held_out(tmp_path: Path):
    store = store_of(tmp_path, [3, 3, 9], ["a", "b", "c"])
    split = LeaveOneOut(train_on_validation=True)
    assert split.history_stops(store, "train").tolist() == split.history_stops(store, "test").tolist() == [2, 5, 14]
    assert split.history_stops(store, "validate").tolist() == [1, 4, 13]
    assert split.id == "loo-trainval"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("count", [1, 2])
def test_a_user_with_too_few_events_is_named_with_store_and_remedy(tmp_path: Path, stage: str, count: int):
    store = store_of(tmp_path, [3, 4, count, 1], ["ann", "bob", "cleo", "dan"])
    with pytest.raises(
        InputError,
        match=rf"{tmp_path}: 2 user\(s\) have fewer than 3 events, the first is user 'cleo' with {count}; "
        r".* set --data\.filters\.min_user_events 3",
    ):
        LeaveOneOut().history_stops(store, stage)


@pytest.mark.parametrize("split", [LeaveOneOut(), LastN(1)], ids=["LeaveOneOut", "LastN(1)"])
def test_leave_one_out_is_the_newest_one(tmp_path: Path, split: Split):
    store = store_of(tmp_path, [3, 9], ["a", "b"])
    assert split.id == "loo"
    assert not split.several_targets
    assert split.history_stops(store, "test").tolist() == [2, 11]
    assert split.target_stops(store, "validate").tolist() == [2, 11]
    assert split.target_stops(store, "test").tolist() == [3, 12]
    assert split.left_out(store, "test") == {}


@pytest.mark.parametrize(
    ("stage", "stops", "target_stops"),
    [
        ("train", [1, 10], None),
        ("validate", [1, 10], [4, 13]),
        ("test", [4, 13], [7, 16]),
        ("predict", [7, 16], None),
    ],
)
def test_last_n_holds_out_n_events_for_each_stage(tmp_path: Path, stage: str, stops, target_stops):
    store, split = store_of(tmp_path, [7, 9], ["a", "b"]), LastN(3)
    assert split.history_stops(store, stage).tolist() == stops
    if target_stops is not None:
        assert split.target_stops(store, stage).tolist() == target_stops


def test_last_n_names_a_user_with_too_few_events(tmp_path: Path):
    store = store_of(tmp_path, [7, 6], ["ann", "bob"])
    with pytest.raises(InputError, match=r"fewer than 7 events, the first is user 'bob' with 6; .*n=3.*events 7"):
        LastN(3).history_stops(store, "train")


# Time 30 is the validation point and 50 the test point.
TIMES = [[10, 20, 30, 40, 50, 60], [29, 30, 49, 50], [30, 40, 50], [10, 20, 29], [10, 60, 60]]


@pytest.mark.parametrize(
    ("stage", "warm_up", "stops", "target_stops"),
    [
        ("train", 1, [2, 7, 10, 16, 17], None),
        ("validate", 1, [2, 7, 10, 16, 17], [4, 9, 10, 16, 17]),
        ("test", 1, [4, 9, 12, 16, 17], [6, 10, 13, 16, 19]),
        ("validate", 2, [2, 7, 10, 16, 17], [4, 7, 10, 16, 17]),
        ("test", 3, [4, 9, 12, 16, 17], [6, 10, 12, 16, 17]),
        ("predict", 1, [6, 10, 13, 16, 19], None),
    ],
)
def test_global_time_divides_all_users_at_the_same_points(
    tmp_path: Path, stage: str, warm_up: int, stops, target_stops
):
    store, split = timed_store(tmp_path, TIMES), GlobalTime(50, 30, warm_up=warm_up)
    assert split.history_stops(store, stage).tolist() == stops
    if target_stops is not None:
        assert split.target_stops(store, stage).tolist() == target_stops


def test_global_time_counts_who_is_left_out_and_why(tmp_path: Path):
    store = timed_store(tmp_path, TIMES)
    assert GlobalTime(50, 30, warm_up=3).left_out(store, "test") == {
        "no event in its time": 1,
        "fewer than 3 event(s) before": 2,
    }
    assert GlobalTime(50, 30).left_out(store, "validate") == {
        "no event in its time": 2,
        "fewer than 1 event(s) before": 1,
    }


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=8).map(sorted), min_size=1, max_size=6),
    st.floats(0.05, 0.45),
    st.floats(0.5, 0.95),
    st.integers(1, 3),
)
def test_global_time_never_shows_what_comes_later(tmp_path_factory, times, validation_from, test_from, warm_up):
    store = timed_store(tmp_path_factory.mktemp("store"), times)
    split = GlobalTime(test_from, validation_from, warm_up=warm_up)
    flat = np.array([t for user in times for t in user])
    points = np.quantile(flat, [validation_from, test_from], method="inverted_cdf")
    offsets = np.asarray(store.offsets)
    training = split.history_stops(store, "train")
    for row, user in enumerate(times):
        first = offsets[row]
        assert training[row] - first == sum(t < points[0] for t in user)
        for stage, since, until in (("validate", points[0], points[1]), ("test", points[1], np.inf)):
            stop, end = split.history_stops(store, stage)[row], split.target_stops(store, stage)[row]
            assert stop - first == sum(t < since for t in user)
            judged = sum(since <= t < until for t in user) if stop - first >= warm_up else 0
            assert end - stop == judged
    left_out = sum(split.left_out(store, "test").values())
    assert left_out == sum(split.target_stops(store, "test") == split.history_stops(store, "test"))


def test_global_time_refuses_a_log_without_times(tmp_path: Path):
    with pytest.raises(InputError, match=rf"{tmp_path}: the log has no timestamps, .* use LeaveOneOut or LastN"):
        GlobalTime().history_stops(store_of(tmp_path, [3], ["a"]), "train")


def test_a_time_after_the_log_trains_on_all_events_and_judges_none(tmp_path: Path):
    store, split = timed_store(tmp_path, TIMES), GlobalTime(1_000.0, 999.5, prequential=True)
    assert split.history_stops(store, "train").tolist() == store.offsets[1:].tolist()
    with pytest.raises(InputError, match=r"999\.5 is not between the log's first time"):
        split.history_stops(store, "validate")
    with pytest.raises(InputError, match=r"-5 is not between the log's first time"):
        GlobalTime(0, -5).history_stops(store, "train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.9, 30), "give two times in the log's unit, or two quantiles"),
        ((0.5, 0.5), "validation_from=0.5 must lie before test_from=0.5"),
        ((30, 40), "validation_from=40 must lie before test_from=30"),
    ],
)
def test_points_in_the_wrong_order_or_of_two_kinds_are_refused(arguments, message: str):
    with pytest.raises(InputError, match=message):
        GlobalTime(*arguments)


def test_numbers_below_one_are_refused():
    with pytest.raises(InputError, match="n=0 must be at least 1"):
        LastN(0)
    with pytest.raises(InputError, match="warm_up=0 must be at least 1"):
        GlobalTime(warm_up=0)


def test_ids_hold_each_setting():
    assert [split.id for split in (LastN(5), GlobalTime(), GlobalTime(1_600_000_000_000, 1_500_000_000_000))] == [
        "last5",
        "time0.9-val0.8-warm1",
        "time1600000000000-val1500000000000-warm1",
    ]
