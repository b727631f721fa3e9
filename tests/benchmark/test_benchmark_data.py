from __future__ import annotations

import json
import shutil
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from seqrec import Filters, Table, prepare
from seqrec.benchmark import data
from seqrec.benchmark.data import append_day, benchmark_data, prepare_store, sort_with_polars, time_loader, yardstick
from seqrec.benchmark.measurement import Measurement, MemoryLimitError, run_measured
from seqrec.data.store import EventStore
from seqrec.errors import InputError

pytestmark = pytest.mark.process

if sys.platform != "linux":
    pytest.skip("memory limits need Linux", allow_module_level=True)

DONE = Measurement(seconds=1.0, peak_anonymous=10, peak_resident=20, anonymous_before=5, value=None)
LOADED = {
    "events": 10,
    "batches": 1,
    "bytes": 80,
    "padding": 0.0,
    "seconds": 1.0,
    "copy_seconds": 0.5,
    "memory": 3,
}


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> dict:
    """What to give or raise, by function, in place of running it; the arguments of each call are kept."""
    answers: dict = {
        sort_with_polars: DONE,
        prepare_store: replace(DONE, value={"sha256": {"item_ids.npy": "ab"}}),
        time_loader: replace(DONE, value=LOADED),
        "calls": [],
    }

    def run(function, arguments, **options):
        answers["calls"].append((function, arguments, options))
        if function is prepare_store:
            Path(arguments["store"]).mkdir()
        answer = answers[function]
        answer = answer(arguments) if callable(answer) else answer
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(data, "run_measured", run)
    return answers


def measure(folder: Path, **settings) -> dict:
    """Run the benchmark in `folder`, and return its JSON."""
    written = folder.parent / "figures.json"
    benchmark_data(
        **{
            "events": "1000",
            "memory_limit": "1GiB",
            "folder": str(folder),
            "json_file": str(written),
            **settings,
        }
    )
    return json.loads(written.read_text())


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    (folder := tmp_path / "benchmark").mkdir()
    return folder


@pytest.mark.slow
def test_a_small_log_is_measured_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    written = tmp_path / "figures.json"
    benchmark_data("100k", memory_limit="2GiB", folder=str(tmp_path / "folder"), json_file=str(written))
    said = capsys.readouterr()
    for line in (
        "prepare, 2.0 GiB ",
        "without the limit the store has the same bytes",
        "16 windows a batch ",
        "80,000 tokens a batch ",
        "2.0 GiB enforced by RLIMIT_DATA",
    ):
        assert line in said.out
    assert "generating 100,000 events: " in said.err
    assert "measuring: 7 cells, " in said.err
    figures = json.loads(written.read_text())
    assert figures["same_bytes"] is True
    for stage in (*figures["plain"], *figures["prepared"]):
        assert stage["seconds"] > 0
        assert 0 < stage["peak_anonymous"] < 2 << 30
    for loader in figures["loaders"]:
        # All events but what validation and test hold out of the 8 users' histories.
        assert 99_900 < loader["events"] < 100_000
        assert 0 <= loader["padding"] < 0.5
        # At least an item and its successor as 8-byte integers.
        assert loader["bytes"] > 16 * loader["events"]
    store = EventStore.open(tmp_path / "folder/kuairand-100000-seed0.store")
    assert store.num_events == 100_000
    left = {path.name for path in (tmp_path / "folder").iterdir() if path.suffix != ".lock"}
    assert left == {"kuairand-100000-seed0", "kuairand-100000-seed0.store"}


@pytest.mark.slow
def test_a_hundred_million_events_are_prepared_within_an_enforced_limit(tmp_path: Path):
    figures = measure(tmp_path, events="100M", memory_limit="3GiB", compare_bytes=True)
    shutil.rmtree(tmp_path)
    assert figures["log_bytes"] > 1.5e9
    assert figures["same_bytes"]
    for loader in figures["loaders"]:
        assert loader["padding"] < 0.05


def uniform(seed: int, events: int, start: int) -> pl.DataFrame:
    """Events of 100,000 users and as many items, in the order of time."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, 100_000, events), (100_000 * rng.random(events) ** 3).astype(np.int64)
    times = start + np.sort(rng.integers(0, 10**6, events))
    return pl.DataFrame({"user_id": users, "item_id": items, "timestamp": times})


@pytest.mark.slow
@pytest.mark.parametrize("millions", [10, 100])
def test_a_day_costs_the_same_whatever_the_size_of_its_store(tmp_path: Path, millions: int):
    uniform(99, 10**6, 10**8).write_parquet(tmp_path / "day.parquet")
    seconds = []
    for parts in (1, millions):
        log, store = tmp_path / f"{parts}", tmp_path / f"{parts}.store"
        log.mkdir()
        for part in range(parts):
            uniform(part, 10**6, part * 10**6).write_parquet(log / f"{part:03}.parquet")
        prepare(Table(str(log)), Filters(), store)
        day = {"log": str(log), "store": str(store), "day": str(tmp_path / "day.parquet"), "memory_limit": 1 << 30}
        measured = run_measured(append_day, day, memory_limit=1 << 30)
        assert measured.value["counts"]["events"] == (parts + 1) * 10**6
        seconds.append(measured.value["cpu_seconds"])
    assert seconds[1] < 1.4 * seconds[0], seconds


def test_the_process_that_prepares_gets_the_limit_twice(tmp_path: Path, instead: dict):
    measure(tmp_path)
    limits = [
        (arguments["memory_limit"], options["memory_limit"])
        for function, arguments, options in instead["calls"]
        if function is prepare_store
    ]
    assert limits == [(1 << 30, 1 << 30), (None, None)]


def test_a_preparation_that_needs_more_than_its_limit_is_refused_by_name(tmp_path: Path, instead: dict):
    instead[prepare_store] = MemoryLimitError("not enough memory under memory_limit=1 GiB")
    with pytest.raises(MemoryLimitError, match=r"^prepare, 1\.0 GiB: not enough memory under memory_limit=1 GiB"):
        measure(tmp_path)


def test_a_plain_pipeline_that_does_not_fit_the_machine_is_no_obstacle(tmp_path: Path, instead: dict):
    instead[sort_with_polars] = lambda arguments: (
        DONE if arguments["streaming"] else MemoryLimitError("not enough memory")
    )
    figures = measure(tmp_path)
    assert [stage["failure"] for stage in figures["plain"]] == [None, "not enough memory"]
    assert yardstick(figures["plain"]) == figures["plain"][0]


def test_other_bytes_without_the_limit_are_told(tmp_path: Path, instead: dict):
    instead[prepare_store] = lambda arguments: replace(
        DONE, value={"sha256": {"item_ids.npy": str(arguments["memory_limit"])}}
    )
    assert measure(tmp_path)["same_bytes"] is False
    (tmp_path / "kuairand-1000-seed0.store").rmdir()
    assert measure(tmp_path, compare_bytes=False)["same_bytes"] is None


def test_a_log_that_is_there_is_not_timed(tmp_path: Path, instead: dict):
    assert measure(tmp_path, compare_bytes=False)["generated"] is not None
    (tmp_path / "kuairand-1000-seed0.store").rmdir()
    assert measure(tmp_path, compare_bytes=False)["generated"] is None


def test_the_loader_is_timed_by_windows_and_by_a_token_budget(tmp_path: Path, instead: dict):
    figures = measure(tmp_path, max_length=50, batch_size=4)
    calls = [arguments for function, arguments, _ in instead["calls"] if function is time_loader]
    sizes = [(arguments["batch_size"], arguments.get("max_tokens")) for arguments in calls]
    assert sizes == [(4, None), (4, 200)]
    assert [loader["name"] for loader in figures["loaders"]] == ["4 windows a batch", "200 tokens a batch"]


@pytest.mark.usefixtures("instead")
def test_a_temporary_folder_is_deleted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    benchmark_data("1000")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("events", "stores"), [("20M", 2), ("20.1M", 1)])
def test_large_logs_are_prepared_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, events: str, stores: int):
    def check_disk(*_: object, stores: int) -> None:
        raise InputError(f"{stores} stores")

    monkeypatch.setattr(data, "_check_disk", check_disk)
    with pytest.raises(InputError, match=f"{stores} stores"):
        benchmark_data(events, folder=str(tmp_path))


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 10**9, 50_000))
    with pytest.raises(InputError, match=r"events=1000 needs about .* of disk in .*, 49 KiB are free; choose an"):
        measure(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"profile": "netflix"}, "profile='netflix' must be one of kuairand, lfm1b"),
        ({"events": "many"}, "events='many' must be a whole number"),
        ({"memory_limit": "some"}, "memory_limit='some' is not a size"),
        (
            {"memory_limit": "500MB"},
            r"memory_limit='500MB' is too little; preparation needs at least 1\.0 GiB",
        ),
        ({"json_file": "nowhere/a.json"}, "json_file='nowhere/a.json' is in a folder that does not exist"),
        ({"max_length": 0}, "max_length=0 must be at least 1"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"events": "10"}, "events=10 must be at least 1000"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, settings: dict, message: str):
    with pytest.raises(InputError, match=message):
        benchmark_data(**{"events": "1000", "folder": str(tmp_path), **settings})
