from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec.data.prepare import Filters, ensure_store, fingerprint, prepare
from seqrec.data.sources import ML1M, Sequences, Source, Synthetic, Table
from seqrec.data.store import EventStore
from seqrec.errors import InputError, StoreError


class Frame(Source):
    """A log held in memory."""

    def __init__(self, label: str = "frame", **columns: Any) -> None:
        self.label = label
        self.columns = columns

    def describe(self) -> dict[str, Any]:
        return {"name": self.label, "arguments": {}}

    def files(self) -> list[Path]:
        return []

    def scan(self, progress: object = None) -> pl.LazyFrame:
        return pl.LazyFrame(self.columns)


def small(**changes: Any) -> Frame:
    columns = {"user_id": [2, 1, 2, 1, 3], "item_id": ["b", "a", "a", "b", "c"], "timestamp": [5, 2, 5, 1, 9]}
    return Frame(**{**columns, **changes})


def histories(store: EventStore) -> dict[Any, list[Any]]:
    """Each user's items, by external ids."""
    items = list(store.item_vocabulary.external_ids(store.item_ids))
    users = store.user_vocabulary.external_ids(range(1, store.num_users + 1))
    starts, stops = store.offsets[:-1], store.offsets[1:]
    return {user: items[start:stop] for user, start, stop in zip(users, starts, stops, strict=True)}


def expected_histories(events: list[tuple], filters: Filters) -> dict[Any, list[Any]]:
    """The same, slowly. An event is (user, item) or (user, item, time)."""
    while True:
        users, items = Counter(e[0] for e in events), Counter(e[1] for e in events)
        kept = [
            e
            for e in events
            if users[e[0]] >= filters.min_user_events and items[e[1]] >= filters.min_item_events
        ]
        if len(kept) == len(events):
            break
        events = kept
    result: dict[Any, list[Any]] = {}
    for user in sorted({e[0] for e in events}):
        history = sorted((e for e in events if e[0] == user), key=lambda e: e[2:])
        if len(history) >= filters.min_history:
            result[user] = [e[1] for e in history]
    return result


@settings(deadline=None, max_examples=60)
@given(
    events=st.lists(
        st.tuples(st.integers(-3, 3), st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=40
    ),
    filters=st.builds(Filters, st.integers(1, 4), st.integers(1, 4), min_history=st.integers(0, 4)),
    has_times=st.booleans(),
    text_ids=st.booleans(),
)
def test_histories_are_those_of_the_slow_way(tmp_path_factory, events, filters, has_times, text_ids):
    if text_ids:
        events = [(f"u{user}", f"ü{item}", time) for user, item, time in events]
    if not has_times:
        events = [event[:2] for event in events]
    names = ("user_id", "item_id", "timestamp")
    source = Frame(**dict(zip(names, map(list, zip(*events, strict=True)), strict=False)))
    directory = tmp_path_factory.mktemp("property") / "store"
    expected = expected_histories(events, filters)
    if not expected:
        with pytest.raises(InputError, match=r"no event of \d+ is left after the filters"):
            prepare(source, filters, directory)
        return
    store = prepare(source, filters, directory)
    assert histories(store) == expected
    assert store.num_events == sum(map(len, expected.values()))
    used = {item for history in expected.values() for item in history}
    assert list(store.item_vocabulary.external_ids(range(1, store.num_items + 1))) == sorted(used)
    assert (store.timestamps is not None) == has_times


def test_order_is_by_time_and_ties_keep_log_order(tmp_path: Path):
    store = prepare(small(), Filters(), tmp_path / "store")
    assert histories(store) == {1: ["b", "a"], 2: ["b", "a"], 3: ["c"]}
    assert store.timestamps is not None
    assert store.timestamps.tolist() == [1, 2, 5, 5, 9]
    assert "ties in log order" in store.manifest["order"]


def test_minimum_history_drops_users_once(tmp_path: Path):
    # Without the third user "b" has one event, which a k-core would not let stand.
    source = Frame(user_id=[1, 1, 2, 2, 3], item_id=["a", "a", "b", "a", "b"])
    store = prepare(source, Filters(min_item_events=2, min_history=2), tmp_path / "store")
    assert histories(store) == {1: ["a", "a"], 2: ["b", "a"]}


def test_event_filter_sees_the_logs_columns(tmp_path: Path):
    source = small(rating=[5, 4, None, 1, 5], kind=["x", "y", "x", "x", "y"])
    store = prepare(source, Filters(event_filter="rating >= 4 AND kind = 'x' OR user_id = 3"), tmp_path / "s")
    assert histories(store) == {2: ["b"], 3: ["c"]}


@pytest.mark.parametrize(
    ("event_filter", "message"),
    [
        ("ratin >= 4", r"event_filter='ratin >= 4': .*ratin.*; columns: user_id, item_id, timestamp, rating"),
        ("rating >=", "event_filter='rating >=': "),
        ("rating", "event_filter='rating' gives Int64; it must be true or false"),
        ("item_id > 3", "event_filter='item_id > 3': cannot compare string with numeric"),
        ("rating > 9", "event_filter='rating > 9' keeps no event"),
        ("CAST(item_id AS INT) > 1", "event_filter='CAST.*': conversion from `str` to `i32` failed"),
    ],
)
def test_a_bad_event_filter_is_refused(tmp_path: Path, event_filter: str, message: str):
    with pytest.raises(InputError, match=message):
        prepare(small(rating=[1, 2, 3, 4, 5]), Filters(event_filter=event_filter), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_feature_that_changes_its_type_late_is_refused_by_the_filter_that_needs_it(tmp_path: Path):
    rows = "".join(f"1,{k},{k},5\n" for k in range(12_000)) + "1,2,3,high\n"
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp,rating\n" + rows)
    source = Table(str(tmp_path / "log.csv"))
    assert prepare(source, Filters(), tmp_path / "a").num_events == 12_001
    with pytest.raises(InputError, match=r"event_filter='rating > 4': .*\"high\""):
        prepare(source, Filters(event_filter="rating > 4"), tmp_path / "b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_user_events": 0}, r"filters\.min_user_events=0 must be at least 1"),
        ({"min_item_events": 0}, r"filters\.min_item_events=0 must be at least 1"),
        ({"min_history": -1}, r"filters\.min_history=-1 must be at least 0"),
        ({"event_filter": " "}, r"filters\.event_filter is blank"),
    ],
)
def test_filters_out_of_range_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Filters(**arguments)


def test_a_source_that_yields_no_interaction_frame_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="yields no column 'item_id'"):
        prepare(Frame(user_id=[1]), Filters(), tmp_path / "store")
    with pytest.raises(InputError, match="the log has no events"):
        prepare(Eventless(), Filters(), tmp_path / "store")


class Eventless(Synthetic):
    def scan(self, progress: object = None) -> pl.LazyFrame:
        return super().scan().head(0)


class TestStoreOnDisk:
    def test_preparing_twice_gives_the_same_bytes(self, tmp_path: Path):
        source = Synthetic(num_users=30, num_items=40)
        for name in "ab":
            prepare(source, Filters(2, 2), tmp_path / name).verify()
        first = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
        second = {file.name: file.read_bytes() for file in (tmp_path / "b").iterdir()}
        assert first == second

    def test_manifest_says_where_the_store_comes_from(self, tmp_path: Path):
        (tmp_path / "log.txt").write_text("1 2\n1 3\n")
        manifest = prepare(Sequences(str(tmp_path / "log.txt")), Filters(), tmp_path / "store").manifest
        log = (tmp_path / "log.txt").as_posix()
        assert manifest["counts"] == {"users": 1, "items": 2, "events": 2}
        assert manifest["source"] == {"name": "sequences", "arguments": {"path": log}}
        assert manifest["source_files"] == [{"name": log, "bytes": 8}]
        assert manifest["filters"]["min_user_events"] == 1

    def test_progress_tells_stages_rows_and_seconds(self, tmp_path: Path):
        lines: list[str] = []
        prepare(small(), Filters(), tmp_path / "store", progress=lines.append)
        assert [line.split(":")[0] for line in lines[1::2]] == [
            "reading Frame",
            "filtering",
            "ordering",
            "writing",
        ]
        assert all(": 5 events, 0." in line for line in lines[1::2])

    def test_a_failed_preparation_leaves_no_store(self, tmp_path: Path, monkeypatch):
        def fail(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("seqrec.data.prepare.write_store", fail)
        with pytest.raises(KeyboardInterrupt):
            prepare(small(), Filters(), tmp_path / "store")
        assert [file.name for file in tmp_path.iterdir() if file.is_dir()] == []

    def test_leftovers_of_a_killed_preparation_are_cleared(self, tmp_path: Path):
        (tmp_path / "store.partial").mkdir()
        (tmp_path / "store.partial" / "item_ids.npy").write_text("half")
        prepare(small(), Filters(), tmp_path / "store").verify()
        assert not (tmp_path / "store.partial").exists()

    def test_overwriting_replaces_and_a_failure_keeps_the_old_store(self, tmp_path: Path, monkeypatch):
        prepare(small(), Filters(), tmp_path / "store")
        with pytest.raises(StoreError, match=r"holds an event store already; .* --overwrite true"):
            prepare(small(), Filters(), tmp_path / "store")
        store = prepare(small(), Filters(min_history=2), tmp_path / "store", overwrite=True)
        assert store.num_users == 2
        monkeypatch.setattr("seqrec.data.prepare.write_store", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(small(), Filters(), tmp_path / "store", overwrite=True)
        assert EventStore.open(tmp_path / "store").num_users == 2

    def test_a_folder_of_something_else_is_never_overwritten(self, tmp_path: Path):
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(StoreError, match="exists and is no event store"):
            prepare(small(), Filters(), tmp_path, overwrite=True)
        assert (tmp_path / "thesis.tex").exists()

    def test_a_place_that_cannot_be_written_is_refused(self, tmp_path: Path):
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match=r"the event store .* cannot be written"):
            prepare(small(), Filters(), tmp_path / "file" / "store")


class TestEnsureStore:
    def test_prepares_once_and_then_opens(self, tmp_path: Path):
        lines: list[str] = []
        ensure_store(small(), Filters(), tmp_path / "deep" / "store", progress=lines.append)
        assert lines
        lines.clear()
        store = ensure_store(small(), Filters(), tmp_path / "deep" / "store", progress=lines.append)
        assert (lines, store.num_events) == ([], 5)

    @pytest.mark.parametrize(
        ("source", "filters", "message"),
        [
            (
                Synthetic(num_users=9),
                Filters(5),
                r"with filters\.min_user_events=1, now it is 5; choose another",
            ),
            (
                Synthetic(num_users=8),
                Filters(),
                r"with source\.num_users=9, now it is 8; .* --overwrite",
            ),
            (Sequences("x"), Filters(), r"with source='synthetic', now it is 'sequences'"),
        ],
    )
    def test_other_settings_are_refused_by_name(self, tmp_path: Path, source, filters, message):
        prepare(Synthetic(num_users=9), Filters(), tmp_path / "store")
        with pytest.raises(StoreError, match=message):
            ensure_store(source, filters, tmp_path / "store")

    def test_a_log_that_has_changed_is_refused_and_one_that_is_gone_is_not(self, tmp_path: Path):
        log = tmp_path / "logs" / "a.csv"
        log.parent.mkdir()
        log.write_text("user_id,item_id,timestamp\n1,2,3\n")
        source = Table(str(log.parent))
        ensure_store(source, Filters(), tmp_path / "store")
        log.write_text("user_id,item_id,timestamp\n1,2,33\n")
        with pytest.raises(StoreError, match=r"a\.csv has 33 bytes; it had 32 bytes when .* was prepared"):
            ensure_store(source, Filters(), tmp_path / "store")
        log.rename(log.with_name("b.csv"))
        with pytest.raises(StoreError, match=r"b\.csv has 33 bytes; it was not there when"):
            ensure_store(source, Filters(), tmp_path / "store")
        log.with_name("b.csv").unlink()
        assert ensure_store(source, Filters(), tmp_path / "store").num_events == 1

    def test_a_store_of_unknown_origin_is_refused(self, tmp_path: Path):
        prepare(small(), Filters(), tmp_path / "store")
        path = tmp_path / "store" / "manifest.json"
        manifest = json.loads(path.read_text())
        del manifest["source"]
        path.write_text(json.dumps(manifest))
        with pytest.raises(StoreError, match="does not say what log it was prepared from"):
            ensure_store(small(), Filters(), tmp_path / "store")

    def test_of_several_processes_one_prepares_and_the_others_wait(self, tmp_path: Path):
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        processes = [
            context.Process(target=ensure_in_a_process, args=(tmp_path / "store", queue)) for _ in range(3)
        ]
        for process in processes:
            process.start()
        results = [queue.get(timeout=60) for _ in processes]
        for process in processes:
            process.join(timeout=60)
        assert sorted(prepared for prepared, _ in results) == [False, False, True]
        assert len({events for _, events in results}) == 1


def ensure_in_a_process(directory: Path, queue: Any) -> None:
    lines: list[str] = []
    store = ensure_store(Synthetic(num_users=500), Filters(), directory, progress=lines.append)
    queue.put((bool(lines), store.num_events))


def test_fingerprint_tells_settings_apart():
    prints = {
        fingerprint(Synthetic(), Filters()),
        fingerprint(Synthetic(seed=1), Filters()),
        fingerprint(Synthetic(), Filters(min_history=3)),
        fingerprint(ML1M(), Filters()),
    }
    assert len(prints) == 4
    assert fingerprint(Synthetic(), Filters()) in prints
    assert all(len(digits) == 12 for digits in prints)


@pytest.mark.parametrize(
    ("name", "source", "counts"),
    [
        ("ml-1m/ml-1m.zip", ML1M, (1_000_209, 6_040, 3_706)),
        ("ml-1m/ml-1m.sasrec.txt.gz", Sequences, (999_611, 6_040, 3_416)),
        (
            "kuairand-excerpt/log_like_hate_kcore15.tsv.gz",
            lambda path: Table(path, item="video_id", features=["is_click"]),
            (41_828, 664, 9_359),
        ),
    ],
)
def test_real_logs_have_the_counts_known_of_them(real_data, tmp_path: Path, name, source, counts):
    store = prepare(source(str(real_data(name))), Filters(), tmp_path / "store")
    assert (store.num_events, store.num_users, store.num_items) == counts


def test_five_core_of_ml_1m_is_the_published_file(real_data, tmp_path: Path):
    core = prepare(ML1M(str(real_data("ml-1m/ml-1m.zip"))), Filters(5, 5), tmp_path / "core")
    published = prepare(
        Sequences(str(real_data("ml-1m/ml-1m.sasrec.txt.gz"))), Filters(), tmp_path / "published"
    )
    assert (core.num_events, core.num_users, core.num_items) == (999_611, 6_040, 3_416)
    lengths = [sorted(store.offsets[1:] - store.offsets[:-1]) for store in (core, published)]
    assert lengths[0] == lengths[1]
