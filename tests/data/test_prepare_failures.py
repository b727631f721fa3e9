"""Preparation that cannot end well: killed, out of disk, out of memory, a log that changes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
from slow_preparation import Frame, contents, small

from seqrec.data.prepare import ensure_store, memory, prepare
from seqrec.data.prepare.filters import Filters
from seqrec.data.prepare.memory import MemoryLimit, machine_memory, parse_bytes, spoken_bytes
from seqrec.data.sources import Table
from seqrec.data.store import EventStore
from seqrec.errors import InputError, MissingInputError, StoreError

resource = pytest.importorskip("resource", reason="limits of a process are those of POSIX")
MIB = 1 << 20


def write_log(path: Path, events: int = 5000) -> Table:
    rows = "".join(f"{k * 7 % 50},{k * 11 % 90},{k}\n" for k in range(events))
    path.write_text("user_id,item_id,timestamp\n" + rows)
    return Table(str(path))


class TestKilled:
    STOPS = (
        "reading",
        "listing items",
        "bringing users together",
        "ordering and writing",
        "making the store",
    )
    # A child that prepares, says when it is at a stage, and goes no further.
    CODE = """
import sys, time
from seqrec.data.prepare import Filters, prepare
from seqrec.data.sources import Table

def stop_at(line):
    if line.startswith(sys.argv[3]):
        print("there", flush=True)
        time.sleep(600)

prepare(Table(sys.argv[1]), Filters(), sys.argv[2], progress=stop_at)
"""

    @pytest.mark.parametrize("stop", STOPS)
    def test_leaves_nothing_that_is_taken_for_a_store(self, tmp_path: Path, stop: str):
        source = write_log(tmp_path / "log.csv")
        directory = tmp_path / "store"
        arguments = [sys.executable, "-c", self.CODE, source.path, str(directory), stop]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "there\n"
            child.kill()
        assert child.returncode == -signal.SIGKILL
        assert (tmp_path / "store.partial" / "spool").is_dir()
        with pytest.raises(MissingInputError, match="no event store at"):
            EventStore.open(directory)
        ensure_store(source, Filters(), directory).verify()
        prepare(source, Filters(), tmp_path / "whole")
        assert contents(directory) == contents(tmp_path / "whole")
        assert not (tmp_path / "store.partial").exists()


class Usage(NamedTuple):
    total: int
    used: int
    free: int


class TestDisk:
    @contextmanager
    def largest_file(self, size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def test_that_fills_up_is_told_with_what_is_needed_and_free(self, tmp_path: Path):
        source = write_log(tmp_path / "log.csv", 100_000)
        message = r"writing the store to .* failed \(File too large\): about 3 MiB are needed, .*B are free"
        with self.largest_file(50_000), pytest.raises(StoreError, match=message):
            prepare(source, Filters(), tmp_path / "store")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv"]

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
    def test_that_fills_up_late_leaves_the_store_that_was_there(self, tmp_path: Path, monkeypatch, number):
        prepare(small(), Filters(), tmp_path / "store")
        before = contents(tmp_path / "store")

        def full(*_: object) -> None:
            raise OSError(number, "full")

        monkeypatch.setattr("seqrec.data.array_files.ArrayFile._write", full)
        with pytest.raises(StoreError, match=r"failed \(full\): about \d+ bytes are needed, .* are free"):
            prepare(small(), Filters(min_history=2), tmp_path / "store", overwrite=True)
        assert contents(tmp_path / "store") == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]

    def test_that_fails_otherwise_says_how(self, tmp_path: Path, monkeypatch):
        def broken(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr("seqrec.data.array_files.ArrayFile._write", broken)
        with pytest.raises(StoreError, match=r"store cannot be written: .*Input/output error"):
            prepare(small(), Filters(), tmp_path / "store")

    @pytest.mark.parametrize("filters", [Filters(), Filters(min_history=2)])
    def test_that_is_too_small_is_told_before_the_long_work(self, tmp_path: Path, monkeypatch, filters):
        lines: list[str] = []
        monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(0, 0, 10))
        with pytest.raises(StoreError, match=r"partial is too small: \d+ bytes more are needed, 10 bytes are"):
            prepare(small(), filters, tmp_path / "store", progress=lines.append)
        assert not any("ordering" in line or "bringing" in line for line in lines)
        assert not list(tmp_path.iterdir())

    def test_takes_no_more_than_was_estimated(self, tmp_path: Path, monkeypatch):
        # The most that lies in the folder, seen at every stage, against what was asked for before ordering.
        source = write_log(tmp_path / "log.csv", 50_000)
        asked: list[int] = []
        monkeypatch.setattr("seqrec.data.prepare.spool.Workspace.require", lambda work, _: asked.append(work.needed))

        for filters in (Filters(), Filters(5, 5)):
            seen: list[int] = []
            prepare(
                source,
                filters,
                tmp_path / "store",
                overwrite=True,
                progress=lambda _, seen=seen: seen.append(
                    sum(p.stat().st_size for p in (tmp_path / "store.partial").rglob("*") if p.is_file())
                ),
            )
            assert 0.5 * asked[-1] < max(seen) <= asked[-1]


class TestChangingLog:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Table:
        (tmp_path / "logs").mkdir()
        write_log(tmp_path / "logs" / "a.csv")
        write_log(tmp_path / "logs" / "b.csv")
        return Table(str(tmp_path / "logs"))

    def refused(self, source: Table, directory: Path, message: str, change: Any) -> None:
        scan = source.scan

        def scan_and_change(progress: Any = None) -> pl.LazyFrame:
            frame = scan(progress)
            change()
            return frame

        source.scan = scan_and_change  # type: ignore[method-assign]
        with pytest.raises(InputError, match=message):
            prepare(source, Filters(), directory)
        assert not directory.exists()

    def test_a_file_that_grows_is_refused(self, source: Table, tmp_path: Path):
        def grow() -> None:
            with (tmp_path / "logs" / "b.csv").open("a") as stream:
                stream.write("1,2,3\n")

        self.refused(source, tmp_path / "store", r"b\.csv has changed while it was read; prepare again", grow)

    def test_a_file_that_is_written_anew_is_refused(self, source: Table, tmp_path: Path):
        def touch() -> None:
            os.utime(tmp_path / "logs" / "a.csv", ns=(1, 1))

        self.refused(source, tmp_path / "store", r"a\.csv has changed while it was read", touch)

    def test_a_file_that_appears_or_goes_is_refused(self, source: Table, tmp_path: Path):
        def add() -> None:
            write_log(tmp_path / "logs" / "c.csv")

        def remove() -> None:
            (tmp_path / "logs" / "c.csv").unlink()

        self.refused(source, tmp_path / "store", r"c\.csv was added while it was read", add)
        source = Table(source.path)
        self.refused(source, tmp_path / "store", r"c\.csv was removed while it was read", remove)

    def test_rows_that_were_not_counted_first_are_refused(self, tmp_path: Path):
        source = small()
        source.num_rows = 6
        with pytest.raises(InputError, match="Frame: 6 rows were counted first, 5 were read then"):
            prepare(source, Filters(event_filter="user_id = 1"), tmp_path / "store")

    def test_a_log_that_appears_with_the_scan_has_not_changed(self, tmp_path: Path):
        class Downloaded(Frame):
            def files(self) -> list[Path]:
                return [path for path in [tmp_path / "log"] if path.exists()]

            def scan(self, progress: object = None) -> pl.LazyFrame:
                (tmp_path / "log").write_text("content")
                return super().scan()

        store = prepare(Downloaded(user_id=[1], item_id=[2]), Filters(), tmp_path / "store")
        assert store.manifest["source_files"] == [{"name": (tmp_path / "log").as_posix(), "bytes": 7}]


class TestMemoryLimit:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (5, 5),
            ("3221225472", 3 << 30),
            ("3GiB", 3 << 30),
            ("1500MB", 1_500_000_000),
            ("1.5 gib", 3 << 29),
            ("2tb", 2 * 10**12),
            ("7 B", 7),
            ("64KiB", 1 << 16),
        ],
    )
    def test_sizes_are_read(self, text, expected):
        assert parse_bytes(text) == expected

    @pytest.mark.parametrize("text", ["", "GiB", "3 GB more", "-3GiB", "3XB", "1e9", "3iB"])
    def test_what_is_no_size_is_refused(self, text):
        with pytest.raises(InputError, match=r"memory_limit='.*' is not a size in bytes; write it as 3GiB"):
            parse_bytes(text)

    @pytest.mark.parametrize(
        ("size", "expected"),
        [(3 << 30, "3.0 GiB"), (1500 * MIB, "1.5 GiB"), (3 * MIB, "3 MiB"), (2048, "2 KiB"), (7, "7 bytes")],
    )
    def test_sizes_are_spoken(self, size, expected):
        assert spoken_bytes(size) == expected

    def test_of_less_than_the_minimum_is_refused(self, tmp_path: Path, monkeypatch):
        with pytest.raises(InputError, match=r"memory_limit='900MB' is too little; .* at least 1\.0 GiB"):
            prepare(small(), Filters(), tmp_path / "store", memory_limit="900MB")
        monkeypatch.setattr(memory, "machine_memory", lambda: 1 << 30)
        with pytest.raises(InputError, match=r"half of this machine's memory is too little"):
            MemoryLimit()

    def test_is_half_of_the_machine_by_default(self, monkeypatch):
        monkeypatch.setattr(memory, "machine_memory", lambda: 6 << 30)
        assert MemoryLimit().bytes == 3 << 30

    def test_without_room_for_the_reader_is_refused(self, tmp_path: Path, monkeypatch):
        monkeypatch.setattr(memory, "resident_bytes", lambda: 900 * MIB)
        message = r"memory_limit=1\.0 GiB is too little: the buffers of polars .* give at least 1\."
        with pytest.raises(InputError, match=message):
            prepare(small(), Filters(), tmp_path / "store", memory_limit="1GiB")

    def test_names_the_user_whose_history_does_not_fit(self, tmp_path: Path, monkeypatch):
        monkeypatch.setattr("seqrec.data.prepare.stages.ordering_bytes", lambda _: 2 << 30)
        message = r"too little: 2 events that must be ordered at a time \(of user_id=7\) take 4\.0 GiB beside"
        with pytest.raises(InputError, match=message):
            prepare(Frame(user_id=[7, 7], item_id=[1, 2]), Filters(), tmp_path / "store", memory_limit="4GiB")

    def test_without_room_to_count_users_and_items_is_refused(self, tmp_path: Path, monkeypatch):
        monkeypatch.setattr("seqrec.data.prepare.stages._COUNT_BYTES", 1 << 30)
        message = r"memory_limit=4\.0 GiB is too little: counts of users and items take 6\.0 GiB beside"
        with pytest.raises(InputError, match=message):
            prepare(small(), Filters(2), tmp_path / "store", memory_limit="4GiB")

    def test_is_that_of_the_control_group_where_it_is_smaller(self, tmp_path: Path):
        groups = {
            "unified/app/memory.max": "5000\n",
            "app/job/memory.max": "max\n",
            "app/memory.max": "7000\n",
            "memory/batch/memory.limit_in_bytes": "9000\n",
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
        }
        for name, text in groups.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        membership = tmp_path / "membership"
        membership.write_text("4:cpu,memory:/batch\n3:cpu:/batch\n0::/app/job\n")
        found = memory._control_group_limits(membership, tmp_path)
        assert sorted(found) == [5000, 7000, 9000, 9223372036854771712]
        assert memory._control_group_limits(tmp_path / "none", tmp_path) == []
        assert 0 < machine_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class TestPeakMemory:
    # Twelve million events are 288 MB as three columns of eight bytes; sorting them in memory takes over 1 GiB.
    EVENTS, PART = 12_000_000, 2_000_000
    CODE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))
from seqrec import Filters, Schema, Table, prepare

schema = Schema(events={"is_click": "categorical", "seconds": "numeric"})
prepare(Table(sys.argv[1]), Filters(), sys.argv[2], schema=schema, memory_limit="1GiB").verify()
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""

    @pytest.mark.process
    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
    def test_is_set_by_the_limit_and_not_by_the_log(self, tmp_path: Path):
        (tmp_path / "log").mkdir()
        places = pl.int_range(self.PART, eager=True)
        for part in range(self.EVENTS // self.PART):
            # Users and items scattered over the log, 2,000 events a user, rows in the order of time.
            pl.DataFrame(
                {
                    "user_id": (places * 7919 + part) % 10_007,
                    "item_id": (places * 104_729 + part) % 500_009,
                    "timestamp": places + part * self.PART,
                    "is_click": places % 2 == 0,
                    "seconds": places / 7,
                }
            ).write_parquet(tmp_path / "log" / f"{part}.parquet", row_group_size=250_000)
        arguments = [sys.executable, "-c", self.CODE, str(tmp_path / "log"), str(tmp_path / "store")]
        environment = {**os.environ, "POLARS_MAX_THREADS": "2"}
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) < 512 << 10
        assert EventStore.open(tmp_path / "store").num_events == self.EVENTS
