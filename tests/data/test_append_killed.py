"""`kill -9` at any moment of an append or a compaction, two appends at once, and readers meanwhile."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from forked_commands import ForkedCommand
from growing_logs import NEW, OLD, SCHEMA, Row, events, files_of, write

from seqrec import EventStore, Filters, Table, prepare
from seqrec.data.prepare import append, compact
from seqrec.data.prepare.prepare import store_locked

pytestmark = [pytest.mark.faults, pytest.mark.process]
TIMEOUT = 120
LATER: list[Row] = [(2, 9, 12, "d", 1.0), (4, 10, 13, "a", 2.0)]
FILES = {"old": OLD, "new": NEW, "later": LATER}

# Appends the files that it is given, or compacts. It makes a file when all is imported. It ends before its n-th change
# of a file or folder, or tells how many changes there were, and which one gave the store another content.
PROGRAM = """
import os, signal, sys
from pathlib import Path
import seqrec.data.prepare.new_segment, seqrec.data.prepare.stages
from seqrec import Filters, Schema, Table
from seqrec.data.prepare import append, compact
name, stop, *files = sys.argv[1:]
made = switch = 0

def count(event, arguments):
    global made, switch
    changes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "ctypes.dlsym")
    if changes or (event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wax"):
        made += 1
        if made == int(stop):
            os.kill(os.getpid(), signal.SIGKILL)
        # The manifest takes its place, or two folders are exchanged.
        if event in ("os.rename", "ctypes.dlsym") and str(arguments[1]).endswith(("manifest.json", "renameat2")):
            switch = made

Path(f"begun_{name}").touch()
sys.addaudithook(count)
schema = Schema(events={"kind": "categorical", "score": "numeric"})
for file in files:
    append(Table("old.parquet"), Filters(), "store", file, schema=schema)
if not files:
    compact("store")
print(made, switch)
"""


def start(folder: Path, stop: int = 0, *files: str, name: str = "one") -> ForkedCommand:
    return ForkedCommand(folder, "-c", PROGRAM, name, str(stop), *files, log=folder / f"{name}.txt")


def begun(folder: Path, name: str = "one") -> float:
    """Wait until a process begins, and return the time."""
    deadline = time.monotonic() + TIMEOUT
    while not (folder / f"begun_{name}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return time.monotonic()


def append_here(file: str, store: str = "store") -> EventStore:
    return append(Table("old.parquet"), Filters(), store, file, schema=SCHEMA)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a store of the first file."""
    monkeypatch.chdir(tmp_path)
    for name, rows in FILES.items():
        write(tmp_path, f"{name}.parquet", rows)
    prepare(Table("old.parquet"), Filters(), "store", schema=SCHEMA)
    return tmp_path


@pytest.mark.parametrize("kills", [3, pytest.param(25, marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", ["append", "compact"])
def test_a_killed_command_leaves_the_store_as_before_or_as_after(folder: Path, kills: int, command: str):
    files = ("new.parquet",) if command == "append" else ()
    before = EventStore.open("store") if command == "append" else append_here("new.parquet")
    states = [(files_of(before), events(before))]
    shutil.copytree("store", "before")
    process = start(folder, 0, *files)
    began = begun(folder)
    assert process.wait(TIMEOUT) == 0, Path("one.txt").read_text()
    seconds = time.monotonic() - began
    changes, switch = map(int, Path("one.txt").read_text().split())
    after = EventStore.open("store")
    states.append((files_of(after), events(after)))
    followed = []
    for store in ("store", "before"):
        shutil.copytree(store, "copy")
        followed.insert(0, events(append_here("later.parquet", "copy")))
        shutil.rmtree("copy")
    chance, killed, seen = random.Random(0), 0, set()
    # Just before the switch and just after it, before other changes of files, and after some time.
    moments: list[tuple[int, float]] = [(switch, 0), (switch + 1, 0)]
    moments += [(chance.randint(1, changes), 0) for _ in range((kills - 2) // 2)]
    moments += [(0, chance.uniform(0, seconds)) for _ in range(kills - len(moments))]
    for change, moment in moments:
        shutil.rmtree("store")
        shutil.copytree("before", "store")
        Path("begun_one").unlink()
        process = start(folder, change, *files)
        if not change:
            time.sleep(max(0, begun(folder) + moment - time.monotonic()))
            process.kill()
        killed += process.wait(TIMEOUT) == -signal.SIGKILL
        store = EventStore.open("store")
        store.verify()
        found = (files_of(store), events(store))
        assert found in states, (change, moment)
        seen.add(states.index(found))
        expected = followed[states.index(found)]
        assert events(append_here("later.parquet")) == expected
        assert events(compact("store")) == expected
        assert not [name for name in os.listdir() if name.startswith("store.")]
        assert not list(Path("store").glob("segment_*"))
    assert seen == {0, 1}
    assert killed >= 2 + kills // 4


@pytest.mark.parametrize("step", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_the_next_append_removes_what_a_kill_left_of_temporary_files(folder: Path, step: int):
    # Their mark goes last, so that what is left of them is known as such.
    assert start(folder, 0, "new.parquet").wait(TIMEOUT) == 0
    changes, switch = map(int, Path("one.txt").read_text().split())
    for change in range(switch + 1, changes, step):
        shutil.rmtree("store")
        prepare(Table("old.parquet"), Filters(), "store", schema=SCHEMA)
        assert start(folder, change, "new.parquet").wait(TIMEOUT) == -signal.SIGKILL
        append_here("later.parquet")
        assert not [name for name in os.listdir() if name.startswith("store.")]


def test_of_two_appends_at_once_one_waits(folder: Path):
    before = files_of(EventStore.open("store"))
    with store_locked(Path("store")):
        both = [start(folder, 0, f"{name}.parquet", name=name) for name in ("new", "later")]
        for name in ("new", "later"):
            begun(folder, name)
        time.sleep(0.2)
        assert [process.poll() for process in both] == [None, None]
        assert files_of(EventStore.open("store")) == before
    for process in both:
        assert process.wait(TIMEOUT) == 0
    store = EventStore.open("store")
    store.verify()
    whole = prepare(Table([f"{name}.parquet" for name in FILES]), Filters(), "whole", schema=SCHEMA)
    assert events(store) == events(whole)
    assert len(store.manifest["segments"]) == 3


# Opens the store again and again, and tells the number of events each time.
READER = """
import sys
from pathlib import Path
from seqrec import EventStore
while not Path("enough").exists():
    store = EventStore.open("store")
    assert len(store.item_ids[:]) == store.offsets[-1] == store.num_events
    print(store.num_events)
    Path("begun_reader").touch()
"""


def test_readers_see_the_store_before_or_after(folder: Path):
    reader = ForkedCommand(folder, "-c", READER, log=folder / "reader.txt")
    begun(folder, "reader")
    shutil.copytree("store", "before")
    for _ in range(4):
        append_here("new.parquet")
        compact("store")
        prepare(Table("old.parquet"), Filters(), "store", schema=SCHEMA, overwrite=True)
    Path("enough").touch()
    assert reader.wait(TIMEOUT) == 0, Path("reader.txt").read_text()
    assert set(Path("reader.txt").read_text().split()) <= {"4", "8"}
