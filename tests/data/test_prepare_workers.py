"""Preparation by several processes: the bytes of one process, also if some of them are killed, and errors by name."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from slow_preparation import contents

from seqrec.data import tasks
from seqrec.data.prepare import Filters, append, prepare, reading, stages
from seqrec.data.prepare.ordering import ordered_block
from seqrec.data.schema import Schema
from seqrec.data.sources import Table
from seqrec.data.store import EventStore
from seqrec.data.tasks import run_task
from seqrec.errors import InputError, MissingInputError

pytestmark = pytest.mark.process
SCHEMA = Schema(
    events={"kind": "categorical", "price": "numeric", "place": "vector"}, items={"genres": "categories"}, users={}
)
FILTERS = {
    "all events": Filters(),
    "filters": Filters(2, 2, event_filter="kind in ('view', 'buy')", duplicates="drop"),
    "a filter over the whole log": Filters(event_filter="price >= AVG(price)", items_without_events=True),
}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Table:
    # Files of other sizes and types, whose users and values lie in several of them, with ties and repeats.
    folder, generator = tmp_path_factory.mktemp("log"), np.random.default_rng(0)
    for number, size in enumerate((60, 1, 7, 40)):
        columns = {
            "user_id": pl.Series(generator.choice(["ann", "bob", "zoe", f"only {number}", "eve", "ida"], size)),
            "item_id": pl.Series(generator.integers(1, 12, size), dtype=pl.Int32 if number else pl.Int64),
            "timestamp": pl.Series(generator.integers(0, 9, size)),
            "kind": pl.Series(generator.choice(["view", "buy", f"kind {9 - number}", ""], size)).replace("", None),
            "price": pl.Series(generator.integers(0, 5, size), dtype=pl.Float64 if number == 1 else pl.Int64),
            "place": pl.Series(generator.random((size, 2)).tolist()),
        }
        frame = pl.DataFrame(columns)
        frame.write_parquet(folder / f"part_{number}.parquet", row_group_size=16)
    pl.DataFrame({"id": range(1, 13), "genres": ["b|a", "c", "a"] * 4}).write_csv(folder / "items.txt")
    items = {"path": str(folder / "items.txt"), "key": "id", "separator": ","}
    return Table(str(folder / "*.parquet"), items=items)


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    distributed = pytest.importorskip("distributed", reason="needs seqrec[cluster]")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster.scheduler_address


@pytest.fixture(autouse=True)
def small_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqrec.data.prepare.partitions.PARTITION_EVENTS", 20)
    monkeypatch.setattr("seqrec.data.prepare.reading.LEAST_ROWS", 1)


@pytest.mark.parametrize("filters", FILTERS)
def test_two_workers_write_the_bytes_of_one_process(log, tmp_path: Path, scheduler, filters):
    options = {"schema": SCHEMA}
    prepare(log, FILTERS[filters], tmp_path / "one", **options)
    lines: list[str] = []
    prepare(log, FILTERS[filters], tmp_path / "two", workers=scheduler, progress=lines.append, **options).verify()
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    alone = any("which this process reads alone" in line for line in lines)
    assert alone == (filters == "a filter over the whole log")
    assert not list(tmp_path.glob("*.partial"))


def test_text_that_is_read_as_a_stream_has_the_same_bytes(tmp_path: Path, scheduler):
    rows = "\n".join(f"{7 * k % 11},{5 * k % 13},{k // 3}" for k in range(90))
    (tmp_path / "log.csv").write_text(f"user_id,item_id,timestamp\n{rows}\n")
    log = Table(str(tmp_path / "log.csv"))
    prepare(log, Filters(), tmp_path / "one")
    prepare(log, Filters(), tmp_path / "two", workers=scheduler)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_appended_events_are_prepared_by_workers(log, tmp_path: Path, scheduler):
    first, *others = log.files()
    old = Table(str(first), items=log.items)
    for name, count in (("one", 1), ("two", scheduler)):
        prepare(old, Filters(), tmp_path / name, schema=SCHEMA)
        append(old, Filters(), tmp_path / name, [*map(str, others)], schema=SCHEMA, workers=count)
    for folder in ("", "segment_0002"):
        found = [{file.name: file for file in (tmp_path / name / folder).glob("*.*")} for name in ("one", "two")]
        assert found[0].keys() == found[1].keys()
        assert all(file.read_bytes() == found[1][name].read_bytes() for name, file in found[0].items())
    # Another numbering of ids and codes.
    for name, count in (("three", 1), ("four", scheduler)):
        prefix = EventStore.open(tmp_path / "one")
        prepare(log, Filters(), tmp_path / name, schema=SCHEMA, prefix=prefix, workers=count)
    assert contents(tmp_path / "three") == contents(tmp_path / "four")
    assert not prefix.user_vocabulary.is_ascending


def test_a_source_that_changes_the_rows_of_a_table_is_read_as_it_yields_them(log, tmp_path: Path, scheduler):
    class Fewer(Table):
        def scan(self, progress=None):
            frame = super().scan(progress).filter(pl.col("price") > 1)
            self.num_rows = None
            return frame

    fewer = Fewer(log.path)
    prepare(fewer, Filters(), tmp_path / "one")
    prepare(fewer, Filters(), tmp_path / "two", workers=scheduler)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def order_and_die(log, place, advance):
    killed = log.parts[0].folder.parents[1] / "tasks/killed"
    if place == 1 and not killed.exists():
        killed.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return ordered_block(log, place, advance)


def test_a_worker_of_a_cluster_that_is_killed_changes_no_byte(log, tmp_path: Path, scheduler, monkeypatch):
    prepare(log, Filters(), tmp_path / "one", schema=SCHEMA)
    monkeypatch.setattr(stages, "ordered_block", order_and_die)
    seen = []

    def watch(line: str) -> None:
        seen.extend((tmp_path / "two.partial/spool/tasks").glob("killed"))

    prepare(log, Filters(), tmp_path / "two", schema=SCHEMA, workers=scheduler, progress=watch)
    assert seen
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_process_of_a_pool_that_is_killed_changes_no_byte(log, tmp_path: Path):
    lines: list[str] = []

    def kill(line: str) -> None:
        lines.append(line)
        if line.startswith("checking") and not line.endswith("..."):
            # The workers of the cluster are children, too.
            next(child for child in active_children() if "Dask" not in child.name).kill()

    prepare(log, FILTERS["filters"], tmp_path / "one", schema=SCHEMA)
    prepare(log, FILTERS["filters"], tmp_path / "two", schema=SCHEMA, workers=2, progress=kill)
    assert "a process of workers=2 was killed; its tasks run again" in lines
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_pool_that_is_killed_again_and_again_is_given_up(log, tmp_path: Path, monkeypatch):
    class Killed(Executor):
        def __init__(self, *_):
            pass

        def submit(self, *_):
            raise BrokenProcessPool("a process was killed")

    monkeypatch.setattr(tasks, "ProcessPoolExecutor", Killed)
    with pytest.raises(InputError, match=r"a process of workers=2 was killed 4 times: give fewer workers if memory"):
        prepare(log, Filters(), tmp_path / "store", workers=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (Filters(event_filter="price > 0 and kind"), "filters.event_filter='price > 0 and kind' gives String"),
        (Filters(duplicates="refuse"), "filters.duplicates='refuse': "),
    ],
)
def test_an_error_of_a_worker_is_that_of_one_process(log, tmp_path: Path, scheduler, filters, message):
    messages = []
    for workers in (1, scheduler):
        with pytest.raises(InputError) as raised:
            prepare(log, filters, tmp_path / "store", workers=workers)
        messages.append(str(raised.value))
    assert messages[0].startswith(message)
    assert messages[0] == messages[1]


def test_workers_of_another_version_are_refused(log, tmp_path: Path, scheduler, monkeypatch):
    monkeypatch.setattr(tasks, "_versions", lambda: "seqrec 0.0.1, polars 2.0.0")
    with pytest.raises(InputError, match=r"has seqrec \S+, polars .*, but this process seqrec 0.0.1, polars 2.0.0; in"):
        prepare(log, Filters(), tmp_path / "store", workers=scheduler)


def test_workers_that_do_not_see_a_folder_are_refused(log, tmp_path: Path, scheduler, monkeypatch):
    with pytest.raises(InputError, match="does not see the work folder /elsewhere; put the store"):
        run_task(tasks._versions(), "/elsewhere", b"")
    elsewhere = SimpleNamespace(absolute=lambda: Path("/elsewhere/log.parquet"))
    monkeypatch.setattr(reading, "Path", lambda name: elsewhere)
    with pytest.raises(InputError, match=r"does not see /elsewhere/log\.parquet; put the log where all workers see it"):
        prepare(log, Filters(), tmp_path / "store", workers=scheduler)


def test_a_scheduler_that_does_not_answer_or_has_no_workers_is_refused(log, tmp_path: Path):
    distributed = pytest.importorskip("distributed", reason="needs seqrec[cluster]")
    dask = pytest.importorskip("dask")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "200ms"}),
        pytest.raises(InputError, match=r"workers='tcp://127.0.0.1:9': no scheduler answers there"),
    ):
        prepare(log, Filters(), tmp_path / "store", workers="tcp://127.0.0.1:9")
    with pytest.raises(InputError, match=r"workers='none://x': no scheduler answers there \(unknown address scheme"):
        prepare(log, Filters(), tmp_path / "store", workers="none://x")
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as cluster,
        pytest.raises(InputError, match=r"the scheduler has no workers; start some by: dask worker"),
    ):
        prepare(log, Filters(), tmp_path / "store", workers=cluster.scheduler_address)


@pytest.mark.parametrize(
    ("workers", "message"), [(0, "workers=0 must be at least 1"), ("node1", "workers='node1' must")]
)
def test_other_workers_are_refused(log, tmp_path: Path, workers, message):
    with pytest.raises(InputError, match=message):
        prepare(log, Filters(), tmp_path / "store", workers=workers)


def test_a_missing_package_is_named(log, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(MissingInputError, match=r"needs dask\.distributed.*pip install \"seqrec\[cluster\]\""):
        prepare(log, Filters(), tmp_path / "store", workers="tcp://node1:8786")
