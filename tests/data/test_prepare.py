from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest
from forked_commands import forkserver
from slow_preparation import Frame, contents, histories, small

from seqrec.data.manifest import DIGEST
from seqrec.data.prepare import Filters, ensure_store, fingerprint, prepare
from seqrec.data.schema import Schema
from seqrec.data.sources import ML1M, Sequences, Synthetic, Table
from seqrec.data.sources.source import Malformed
from seqrec.data.store import EventStore
from seqrec.errors import InputError, StoreError

# The package has a function of this name, too.
PREPARE = importlib.import_module("seqrec.data.prepare.prepare")


def _dying(function: Callable[..., Any], die: Callable[[], None]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        die()
        return function(*args, **options)

    return call


def _is_whole(folder: Path) -> bool:
    try:
        EventStore.open(folder).verify()
    except StoreError:
        return False
    return True


def _not_supported(first: Path, second: Path) -> None:
    raise OSError(errno.ENOSYS, "not supported")


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


def test_items_of_users_without_minimum_history_alone_are_no_items(tmp_path: Path):
    source = Frame(user_id=[1, 1, 2, 3, 3], item_id=["c", "d", "a", "d", "e"])
    store = prepare(source, Filters(min_history=2), tmp_path / "store")
    assert histories(store) == {1: ["c", "d"], 3: ["d", "e"]}
    assert (store.num_items, store.item_vocabulary.lookup(["a", "c", "d", "e"]).tolist()) == (3, [0, 1, 2, 3])


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
        ({"duplicates": "remove"}, r"filters\.duplicates='remove' must be one of keep, drop, refuse"),
        (
            {"event_features": "rating"},
            r"event_features=\['rating'\] is now .* schema: \{events: \{rating: numeric\}\}",
        ),
        ({"event_features": ["a", "b"]}, r"leave it out, .* schema: \{events: \{a: numeric, b: numeric\}\}"),
    ],
)
def test_filters_out_of_range_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Filters(**arguments)


class TestDuplicates:
    # User 1 repeats (a, 5) twice, with another event of that time between; (a, 6) is no duplicate.
    COLUMNS: ClassVar = {
        "user_id": [1, 1, 1, 1, 1, 2],
        "item_id": ["a", "b", "a", "a", "a", "a"],
        "timestamp": [5, 5, 5, 6, 5, 5],
        "place": [0, 1, 2, 3, 4, 5],
    }

    def prepared(self, directory: Path, lines: list[str], **filters: Any) -> EventStore:
        schema = Schema(events={"place": "numeric"})
        return prepare(Frame(**self.COLUMNS), Filters(**filters), directory, schema=schema, progress=lines.append)

    def test_are_kept_and_told(self, tmp_path: Path):
        lines: list[str] = []
        store = self.prepared(tmp_path / "store", lines)
        assert histories(store) == {1: ["a", "b", "a", "a", "a"], 2: ["a"]}
        assert store.manifest["counts"]["duplicates"] == 2
        assert "2 events repeat user, item and timestamp of an earlier one: kept" in lines

    def test_are_dropped_but_for_the_first_in_log_order(self, tmp_path: Path):
        lines: list[str] = []
        store = self.prepared(tmp_path / "store", lines, duplicates="drop")
        assert store.event_columns["place"].values.tolist() == [0, 1, 3, 5]
        assert store.manifest["counts"] == {
            "users": 2,
            "items": 2,
            "events": 4,
            "rows_read": 6,
            "events_after_filter": 6,
            "duplicates": 2,
        }
        assert "2 events repeat user, item and timestamp of an earlier one: dropped" in lines

    def test_that_are_dropped_do_not_count_for_the_core(self, tmp_path: Path):
        store = self.prepared(tmp_path / "store", [], duplicates="drop", min_user_events=3)
        assert histories(store) == {1: ["a", "b", "a"]}
        with pytest.raises(InputError, match=r"no event of 6 is left .*min_user_events=4"):
            self.prepared(tmp_path / "other", [], duplicates="drop", min_user_events=4)

    def test_are_refused_with_the_first_one(self, tmp_path: Path):
        first = "2 events .* first user_id=1, item_id='a', timestamp=5; clean the log, or choose drop or keep"
        with pytest.raises(InputError, match=rf"filters\.duplicates='refuse': {first}"):
            self.prepared(tmp_path / "store", [], duplicates="refuse")
        assert not (tmp_path / "store").exists()
        source = small()
        assert prepare(source, Filters(duplicates="refuse"), tmp_path / "other").num_events == 5

    def test_of_the_first_user_are_named_where_others_have_some(self, tmp_path: Path, monkeypatch):
        monkeypatch.setattr("seqrec.data.prepare.partitions.PARTITION_EVENTS", 2)
        source = Frame(user_id=[9, 9, 4, 4], item_id=[1, 1, 2, 2], timestamp=[3, 3, 8, 8])
        with pytest.raises(InputError, match=r"2 events .* first user_id=4, item_id=2, timestamp=8"):
            prepare(source, Filters(duplicates="refuse"), tmp_path / "store")

    @pytest.mark.parametrize("duplicates", ["drop", "refuse"])
    def test_need_timestamps_to_be_told(self, tmp_path: Path, duplicates):
        source = Sequences(str(tmp_path / "log.txt"))
        (tmp_path / "log.txt").write_text("1 2\n1 2\n")
        with pytest.raises(InputError, match=f"duplicates='{duplicates}' needs timestamps, .*; use keep"):
            prepare(source, Filters(duplicates=duplicates), tmp_path / "store")
        assert prepare(source, Filters(), tmp_path / "store").manifest["counts"]["duplicates"] is None


def test_a_source_that_yields_no_interaction_frame_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="yields no column 'item_id'"):
        prepare(Frame(user_id=[1]), Filters(), tmp_path / "store")
    with pytest.raises(InputError, match="the log has no events"):
        prepare(Eventless(), Filters(), tmp_path / "store")
    for name in ("user_id", "item_id", "timestamp"):
        columns = {name: pl.Series([1, 2, None, 4, 5])}
        with pytest.raises(InputError, match=f"source Frame yields a null in {name}; every event must"):
            prepare(small(**columns), Filters(), tmp_path / "store")


class Eventless(Synthetic):
    def scan(self, progress: object = None) -> pl.LazyFrame:
        frame = super().scan().head(0)
        self.num_rows = 0
        return frame


class TestStoreOnDisk:
    def test_preparing_twice_gives_the_same_bytes(self, tmp_path: Path):
        source = Synthetic(num_users=30, num_items=40)
        for name in "ab":
            prepare(source, Filters(2, 2), tmp_path / name).verify()
        assert contents(tmp_path / "a") == contents(tmp_path / "b")

    def test_manifest_says_where_the_store_comes_from(self, tmp_path: Path):
        (tmp_path / "log.txt").write_text("1 2\n1 3\n")
        manifest = prepare(Sequences(str(tmp_path / "log.txt")), Filters(), tmp_path / "store").manifest
        log = (tmp_path / "log.txt").as_posix()
        assert manifest["counts"] == {
            "users": 1,
            "items": 2,
            "events": 2,
            "rows_read": 2,
            "events_after_filter": 2,
            "duplicates": None,
        }
        assert manifest["source"]["name"] == "sequences"
        assert manifest["source"]["arguments"]["path"] == log
        assert manifest["source_files"] == [{"name": log, "bytes": 8}]
        assert manifest["filters"]["min_user_events"] == 1

    def test_rows_left_out_as_malformed_are_told_and_kept_in_the_manifest(self, tmp_path: Path):
        source, lines = small(), []
        source.malformed = (Malformed("log.csv", 2, 7, ("line 3: no id", "line 5: no time")),)
        manifest = prepare(source, Filters(), tmp_path / "store", progress=lines.append).manifest
        assert manifest["malformed"] == [
            {"file": "log.csv", "count": 2, "rows": 7, "places": ["line 3: no id", "line 5: no time"]}
        ]
        assert "log.csv: left out 2 malformed of 7 rows: line 3: no id; line 5: no time" in lines

    def test_progress_tells_stages_and_rows(self, tmp_path: Path):
        lines: list[str] = []
        prepare(small(), Filters(), tmp_path / "all", progress=lines.append)
        reading = ["reading Frame", "listing users", "listing items", "counting the users' events"]
        stages = [line.split(":")[0] for line in lines if ": 5 rows, 0." in line]
        assert stages == [*reading, "bringing users together", "ordering and writing"]
        assert [line.removesuffix(" ...") for line in lines if line.endswith(" ...")] == [
            *stages,
            "making the store last on disk",
        ]
        lines.clear()
        prepare(small(), Filters(2), tmp_path / "core", progress=lines.append)
        stages = [line.split(":")[0] for line in lines if line.endswith("rows/s")]
        assert stages[-4:] == ["ordering", "k-core, pass 1", "k-core, pass 2", "writing"]

    def test_a_failed_preparation_leaves_no_store(self, tmp_path: Path, monkeypatch):
        def fail(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("seqrec.data.prepare.stages.write_manifest", fail)
        with pytest.raises(KeyboardInterrupt):
            prepare(small(), Filters(), tmp_path / "store")
        assert [file.name for file in tmp_path.iterdir() if file.is_dir()] == []

    def test_leftovers_of_a_killed_preparation_are_cleared(self, tmp_path: Path):
        (tmp_path / "store.partial" / "spool").mkdir(parents=True)
        (tmp_path / "store.partial" / "item_ids.npy").write_text("half")
        prepare(small(), Filters(), tmp_path / "store").verify()
        assert not (tmp_path / "store.partial").exists()

    def test_overwriting_replaces_and_a_failure_keeps_the_old_store(self, tmp_path: Path, monkeypatch):
        prepare(small(), Filters(), tmp_path / "store")
        with pytest.raises(StoreError, match=r"already contains an event store; .* --overwrite true"):
            prepare(small(), Filters(), tmp_path / "store")
        store = prepare(small(), Filters(min_history=2), tmp_path / "store", overwrite=True)
        assert store.num_users == 2
        monkeypatch.setattr("seqrec.data.prepare.stages.write_manifest", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(small(), Filters(), tmp_path / "store", overwrite=True)
        assert EventStore.open(tmp_path / "store").num_users == 2

    def test_a_folder_of_others_with_the_name_of_a_leftover_is_not_deleted(self, tmp_path: Path):
        for name in ("store.partial", "store.replaced"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "thesis.txt").write_text("three years")
            with pytest.raises(StoreError, match=rf"{name} is in the way: .* rename it, or choose another"):
                prepare(small(), Filters(), tmp_path / "store")
            assert (tmp_path / name / "thesis.txt").read_text() == "three years"
            shutil.rmtree(tmp_path / name)

    @pytest.mark.parametrize("supported", [True, False])
    def test_at_each_moment_of_an_overwrite_there_is_a_whole_store(self, tmp_path: Path, monkeypatch, supported: bool):
        """Ends the process before each rename, exchange and deletion, then looks, and prepares as a later run would."""

        class Killed(BaseException):
            pass

        directory, log = tmp_path / "store", small()
        if not supported:
            monkeypatch.setattr(PREPARE, "exchange", _not_supported)
        for point in range(200):
            for folder in tmp_path.glob("store*/"):
                shutil.rmtree(folder)
            prepare(log, Filters(), directory)
            left = [point]

            def die_at(left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed

            with monkeypatch.context() as patched:
                for module, name in ((os, "replace"), (shutil, "rmtree"), (os, "unlink"), (os, "rmdir")):
                    patched.setattr(module, name, _dying(getattr(module, name), die_at))
                for name in ("exchange", "rename"):
                    patched.setattr(PREPARE, name, _dying(getattr(PREPARE, name), die_at))
                try:
                    prepare(log, Filters(min_history=2), directory, overwrite=True)
                    finished = True
                except Killed:
                    finished = False
            assert any(_is_whole(path) for path in tmp_path.glob("store*/"))
            if supported:
                assert EventStore.open(directory).num_users in (2, 3)
            users = EventStore.open(directory).num_users if directory.exists() else 3
            filters = Filters() if users == 3 else Filters(min_history=2)
            assert ensure_store(log, filters, directory).num_users == users
            if finished:
                break
        assert finished

    def test_a_folder_of_something_else_is_never_overwritten(self, tmp_path: Path):
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(StoreError, match="exists and is not an event store"):
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
        with pytest.raises(StoreError, match=r"b\.csv has 33 bytes; it did not exist when"):
            ensure_store(source, Filters(), tmp_path / "store")
        log.with_name("b.csv").unlink()
        assert ensure_store(source, Filters(), tmp_path / "store").num_events == 1

    def test_a_store_of_unknown_origin_is_refused(self, tmp_path: Path):
        prepare(small(), Filters(), tmp_path / "store")
        path = tmp_path / "store" / "manifest.json"
        manifest = json.loads(path.read_text())
        del manifest["source"], manifest[DIGEST]
        path.write_text(json.dumps(manifest))
        with pytest.raises(StoreError, match=r"the manifest of .* does not name its log"):
            ensure_store(small(), Filters(), tmp_path / "store")

    def test_of_several_processes_one_prepares_and_the_others_wait(self, tmp_path: Path):
        context = forkserver()
        queue = context.Queue()
        processes = [context.Process(target=ensure_in_a_process, args=(tmp_path / "store", queue)) for _ in range(3)]
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
    published = prepare(Sequences(str(real_data("ml-1m/ml-1m.sasrec.txt.gz"))), Filters(), tmp_path / "published")
    assert (core.num_events, core.num_users, core.num_items) == (999_611, 6_040, 3_416)
    lengths = [sorted(store.offsets[1:] - store.offsets[:-1]) for store in (core, published)]
    assert lengths[0] == lengths[1]
