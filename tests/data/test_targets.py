"""The filter of targets, from its condition to the batches: against loops over users and events."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written_stores import write_store

from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.prepare import Filters, prepare
from seqrec.data.schema import Schema
from seqrec.data.sources import Table
from seqrec.data.splits import GlobalTime, LastN, LeaveOneOut, Split, judged_ranges
from seqrec.data.store import EventStore
from seqrec.data.targets import LogTargets
from seqrec.data.windows import NewestWindow, RandomCrop, StridedWindows, TrainWindows
from seqrec.errors import InputError

FLAGS = st.lists(st.booleans(), min_size=1, max_size=300)
# The events of each user: True is a target.
USERS = st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=6)


def targets_of(users: list[list[bool]]) -> LogTargets:
    return LogTargets.from_flags("bought", [np.array([flag for user in users for flag in user])])


def store_of(directory: Path, users: list[list[bool]]) -> EventStore:
    """A store of these users with the event's place in the log as item (place + 1), time and flag."""
    offsets = np.cumsum([0, *map(len, users)]).astype(np.int64)
    places = np.arange(offsets[-1])
    write_store(directory, places + 1, offsets, places, np.arange(len(users)), places, {})
    store = EventStore.open(directory)
    store.targets = targets_of(users)
    return store


def places_of(users: list[list[bool]]) -> list[list[int]]:
    """The places of each user's targets in the log."""
    offsets = np.cumsum([0, *map(len, users)]).tolist()
    return [[offsets[row] + i for i, flag in enumerate(user) if flag] for row, user in enumerate(users)]


@settings(deadline=None)
@given(FLAGS, st.integers(1, 3))
def test_counts_and_places_of_targets_equal_those_of_flags(flags: list[bool], words: int):
    size = 64 * words
    pieces = [np.array(flags[begin : begin + size]) for begin in range(0, len(flags), size)]
    targets, places = LogTargets.from_flags("x", pieces), np.arange(len(flags) + 1)
    true = np.flatnonzero(flags)
    assert targets.total == len(true)
    assert targets.at(places).tolist() == [*flags, False]
    assert targets.rank(places).tolist() == [sum(flags[:place]) for place in places]
    assert targets.select(np.arange(len(true))).tolist() == true.tolist()
    starts, stops = (grid.flatten() for grid in np.meshgrid(places, places))
    inside = [true[(true >= start) & (true < stop)] for start, stop in zip(starts, stops, strict=True)]
    assert targets.count(starts, stops).tolist() == list(map(len, inside))
    last = [found[-1] if len(found) else start - 1 for found, start in zip(inside, starts, strict=True)]
    assert targets.last(starts, stops).tolist() == last


@settings(deadline=None, max_examples=60)
@given(USERS, st.integers(1, 3), st.booleans())
def test_last_n_holds_out_each_users_newest_targets(tmp_path_factory, users, n: int, leave_one_out: bool):
    store = store_of(tmp_path_factory.mktemp("store"), users)
    n = 1 if leave_one_out else n
    split: Split = LeaveOneOut() if leave_one_out else LastN(n)
    training = split.history_stops(store, "train")
    ends = np.cumsum(list(map(len, users)))
    few = Counter[str]()
    for stage, newer in (("test", 0), ("validate", n)):
        stops, last = judged_ranges(split, store, stage)
        for row, targets in enumerate(places_of(users)):
            held_out = targets[max(len(targets) - newer - n, 0) : len(targets) - newer]
            if len(targets) < newer + n:
                assert last[row] == stops[row], "such a user is not judged"
                few[stage] += 1
            else:
                # Everything before the first target is history.
                assert (stops[row], last[row]) == (held_out[0], held_out[-1] + 1)
        assert split.left_out(store, stage)[f"fewer than {newer + n} target(s)"] == few[stage]
    for row, targets in enumerate(places_of(users)):
        held = min(2 * n, len(targets) // n * n)
        assert training[row] == (targets[-held] if held else ends[row])


def test_a_split_without_a_filter_leaves_nobody_out(tmp_path: Path):
    store = store_of(tmp_path, [[True] * 5])
    store.targets = None
    assert LeaveOneOut().left_out(store, "test") == {}


def test_with_validation_in_training_only_the_newest_target_is_held_out(tmp_path: Path):
    store = store_of(tmp_path, [[False, True, False, True, False, True, False]])
    split = LeaveOneOut(train_on_validation=True)
    assert [split.history_stops(store, stage).tolist() for stage in ("train", "validate", "test")] == [[5], [3], [5]]


@pytest.mark.parametrize("prequential", [False, True])
@settings(deadline=None, max_examples=40)
@given(users=USERS, warm_up=st.integers(1, 3), times=st.lists(st.floats(0.1, 0.9), min_size=2, max_size=2, unique=True))
def test_global_time_judges_the_targets_of_its_time(tmp_path_factory, users, warm_up, times, prequential: bool):
    store = store_of(tmp_path_factory.mktemp("store"), users)
    split = GlobalTime(max(times), min(times), warm_up=warm_up, prequential=prequential)
    # Times are places, so the points in time are too.
    num_events = store.num_events
    points = [int(np.ceil(share * num_events)) - 1 for share in (min(times), max(times))] + [num_events]
    offsets = np.cumsum([0, *map(len, users)])
    for stage, since, until in (("validate", *points[:2]), ("test", *points[1:])):
        stops, ends = judged_ranges(split, store, stage)
        absent = 0
        for row, targets in enumerate(places_of(users)):
            known = max(min(offsets[row + 1], since) - offsets[row], 0)
            in_time = [place for place in targets if since <= place < until]
            absent += not in_time
            if prequential:
                judged = [place for place in in_time if place - offsets[row] >= warm_up]
            else:
                judged = in_time if known >= warm_up else []
            found = [place for place in targets if stops[row] <= place < ends[row]]
            assert found == judged
            assert ends[row] == (judged[-1] + 1 if judged else stops[row])
        assert split.left_out(store, stage)["no target in its time"] == absent
        assert sum(split.left_out(store, stage).values()) == sum(ends == stops)


@pytest.mark.parametrize(
    "policy",
    [NewestWindow(), StridedWindows(), StridedWindows(2), RandomCrop()],
    ids=["newest", "strided", "stride 2", "crop"],
)
@settings(deadline=None, max_examples=40)
@given(users=USERS, max_length=st.integers(2, 8), seed=st.integers(0, 9))
def test_every_window_has_a_target(users, max_length: int, seed: int, policy: TrainWindows):
    targets, ends = targets_of(users), np.cumsum(list(map(len, users)))
    offsets = ends - list(map(len, users))
    last = targets.last(offsets + 1, ends)
    index = policy.index(offsets, last, max_length, np.random.default_rng(seed))
    found = index.with_targets(targets, slide=policy.random)
    inside = [
        [place for place in places_of(users)[row] if start < place <= stop]
        for row, start, stop in zip(found.user_rows, found.starts, found.stops, strict=True)
    ]
    assert found.num_targets is not None
    assert found.num_targets.tolist() == list(map(len, inside))
    assert all(inside)
    assert (found.starts >= offsets[found.user_rows]).all()
    if policy.random:
        # As many as without the filter, and as long, whatever was drawn.
        assert found.lengths.tolist() == index.lengths.tolist()
    elif isinstance(policy, StridedWindows) and policy.stride is None:
        wanted = [place for row, some in enumerate(places_of(users)) for place in some if place > offsets[row]]
        assert sorted(place for some in inside for place in some) == wanted


def bought(directory: Path, *, text: bool = True) -> SequenceDataModule:
    """Three users: an event is a purchase, or a view; the last user only views."""
    kinds = {1: "vvbvbvvbv", 2: "bvbbv", 3: "vvv"}
    rows = [(user, 10 * user + at, at, kind) for user, line in kinds.items() for at, kind in enumerate(line)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "event_type"], orient="row")
    frame = frame.with_columns(price=pl.when(pl.col("timestamp") > 0).then(pl.col("item_id") / 10))
    if not text:
        frame = frame.with_columns(event_type=pl.col("event_type") == "b")
    frame.write_parquet(directory / "log.parquet")
    schema = Schema(events={"event_type": "categorical", "price": "numeric"})
    source, store = Table(str(directory / "log.parquet")), str(directory / "store")
    return SequenceDataModule(source, schema=schema, store=store, targets="event_type = 'b'", max_length=20)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("event_type = 'b'", "  b b  b b bb    "),
        ("event_type <> 'b' AND timestamp >= 2", "   x xx x    x  x"),
        ("item_id IN (11, 21, 22)", " x        xx     "),
        # A missing price is no number, so the condition is null.
        ("price < 2.05", " xxxxxxxx        "),
        ("price IS NULL", "x        x    x  "),
        ("user_id = 3", "              xxx"),
        ("price > AVG(price)", "          xxxx xx"),
    ],
)
def test_a_condition_is_over_the_columns_that_the_store_keeps(tmp_path: Path, monkeypatch, condition, expected: str):
    monkeypatch.setattr("seqrec.data.store.TESTED_EVENTS", 64)
    store = bought(tmp_path).store
    store.select_targets(condition)
    assert store.targets is not None
    assert store.targets.at(np.arange(17)).tolist() == [mark != " " for mark in expected]


def test_booleans_are_kept_as_numbers(tmp_path: Path):
    data = bought(tmp_path, text=False)
    data.targets = "event_type = 1"
    assert data.store.targets is not None
    assert data.store.targets.total == 6


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (
            "event_typ = 'b'",
            r"targets=.*event_typ.*columns: user_id, item_id, timestamp, event_type, price; other columns",
        ),
        ("event_type = 'bought'", r"targets=\"event_type = 'bought'\" is true for none of 17 events"),
        ("price", "gives Float32; it must be true or false"),
        ("SUM(price) > 3", "is one value for the whole log"),
        ("event_type ==== 'b'", "targets="),
    ],
)
def test_a_condition_that_selects_nothing_or_cannot_be_read_is_refused(tmp_path: Path, condition: str, message: str):
    data = bought(tmp_path)
    data.targets = condition
    with pytest.raises(InputError, match=message):
        data.prepare_data()


def test_a_blank_condition_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="targets is blank"):
        SequenceDataModule(Table("log.csv"), targets=" ")


def test_another_condition_needs_no_preparation(tmp_path: Path, capsys):
    bought(tmp_path).prepare_data()
    assert "reading" in capsys.readouterr().err
    data = bought(tmp_path)
    data.targets = "price > 1.3"
    data.prepare_data()
    assert "reading" not in capsys.readouterr().err


def test_a_copy_in_another_process_has_the_same_targets(tmp_path: Path):
    store = bought(tmp_path).store
    copy = pickle.loads(pickle.dumps(store))
    assert copy.targets.at(np.arange(17)).tolist() == store.targets.at(np.arange(17)).tolist()


def test_training_batches_have_targets_only_at_purchases(tmp_path: Path):
    data = bought(tmp_path)
    (batch,) = data.train_dataloader()
    # User 1 trains up to its purchase before the last two, user 2 has none with a past but those that are held out.
    assert batch.user_ids.tolist() == [1]
    assert batch.history.item_ids.tolist() == [[1, 2]]
    assert batch.targets.tolist() == [[0, 3]]
    assert batch.is_target.tolist() == [[False, True]]
    # Seen items are those of all events.
    assert batch.seen.item_ids.tolist() == [1, 2, 3, 4]


def test_judged_batches_have_the_held_out_purchases_and_all_events_before_them(tmp_path: Path):
    data = bought(tmp_path)
    found = {}
    for name, loader in (("validate", data.val_dataloader()), ("test", data.test_dataloader())):
        (batch,) = loader
        lengths = batch.history.lengths.tolist()
        found[name] = dict(
            zip(batch.user_ids.tolist(), zip(lengths, batch.held_out.item_ids.tolist(), strict=True), strict=True)
        )
        assert batch.request_times.gather(1, (batch.history.lengths - 1).unsqueeze(1)).flatten().tolist() == [
            batch.held_out.timestamps.tolist()[row] for row in range(len(lengths))
        ]
    assert found == {"validate": {1: (4, 5), 2: (2, 12)}, "test": {1: (7, 8), 2: (3, 13)}}


@pytest.mark.parametrize("prequential", [False, True])
def test_a_time_split_judges_purchases_and_asks_at_the_first_of_them(tmp_path: Path, prequential: bool):
    data = bought(tmp_path)
    data.split = GlobalTime(3, 1, prequential=prequential)
    (batch,) = data.test_dataloader()
    assert batch.user_ids.tolist() == [1, 2]
    # User 1 views before it buys again.
    assert batch.held_out.item_ids.tolist() == [5, 8, 13]
    assert batch.held_out.timestamps.tolist() == [4, 7, 3]
    newest = (batch.history.lengths - 1).unsqueeze(1)
    if prequential:
        assert batch.held_out.positions.tolist() == [4, 7, 3]
        assert batch.history.lengths.tolist() == [7, 3]
    else:
        assert batch.request_times.gather(1, newest).flatten().tolist() == [4, 3]


def test_item_counts_are_those_of_training_targets(tmp_path: Path):
    data = bought(tmp_path)
    counts = data.train_item_counts()
    # Item 3 is user 1's first purchase, item 10 that of user 2, which has no past.
    assert {item: int(count) for item, count in enumerate(counts) if count} == {3: 1, 10: 1}


def test_counts_and_users_without_targets_are_reported_before_training(tmp_path: Path, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr("seqrec.data.datamodule.rank_zero_info", lines.append)
    data = bought(tmp_path)
    assert data.described_targets() is None, "no store is open yet"
    data.train_dataloader()
    assert lines == [
        "targets: 6 of 17 events (event_type = 'b')",
        "1 user(s) without a target are neither trained for nor judged: 3",
    ]
    assert data.described_targets() == {
        "condition": "event_type = 'b'",
        "events": 17,
        "targets": 6,
        "users_without_targets": 1,
        "first_users": [3],
    }


def test_targets_without_a_past_cannot_be_learnt(tmp_path: Path):
    data = bought(tmp_path)
    data.targets = "timestamp = 0"
    with pytest.raises(InputError, match="no user has a training target with an event before it"):
        data.train_dataloader()
    with pytest.raises(InputError, match=r"leaves no user to test: .*'no event before': 3"):
        data.test_dataloader()


def weights_and_targets(data: SequenceDataModule) -> list[tuple[float, int]]:
    return [(batch.weight.item(), int(batch.is_target.sum())) for batch in data.train_dataloader()]


@pytest.mark.parametrize("policy", [StridedWindows(), RandomCrop()], ids=["strided", "crop"])
def test_a_batch_weighs_as_many_targets_as_it_has(tmp_path: Path, policy: TrainWindows):
    rng = np.random.default_rng(0)
    rows: list[tuple[Any, ...]] = [
        (user, int(rng.integers(50)), at, int(rng.random() < 0.1))
        for user in range(40)
        for at in range(rng.integers(30, 90))
    ]
    path = tmp_path / "log.parquet"
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "buy"], orient="row").write_parquet(path)
    prepare(Table(str(path)), Filters(), tmp_path / "store", schema=Schema(events={"buy": "categorical"}))
    data = SequenceDataModule(
        Table(str(path)),
        schema=Schema(events={"buy": "categorical"}),
        store=str(tmp_path / "store"),
        targets="buy = 1",
        train_windows=policy,
        max_length=8,
        batch_size=4,
    )
    found = weights_and_targets(data)
    mean = np.mean([targets for _, targets in found])
    assert min(targets for _, targets in found) >= 1
    assert [weight for weight, _ in found] == pytest.approx([targets / mean for _, targets in found])
