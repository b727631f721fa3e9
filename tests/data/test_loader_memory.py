"""What a loader holds must not grow with the store: it reads a map, whose pages belong to the page cache."""

from __future__ import annotations

import re
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from forked_commands import forkserver
from torch.utils.data import DataLoader
from written_stores import write_store

from seqrec.data.collate import WindowDataset
from seqrec.data.sampler import BatchSampler
from seqrec.data.store import EventStore
from seqrec.data.windows import StridedWindows

pytestmark = pytest.mark.process

EVENTS_A_USER = 1000


def write_events(directory: Path, num_events: int) -> None:
    """A store of one user, and beside it the columns of a large log, which would take long to write as a store."""
    directory.mkdir()
    write_store(directory, np.array([1]), np.array([0, 1]), np.array([0]), np.array([0]), np.array([5]), {})
    for name, dtype in (("large_items", np.uint32), ("large_times", np.int64)):
        np.lib.format.open_memmap(directory / f"{name}.npy", mode="w+", dtype=dtype, shape=(num_events,))[:] = 1


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def events_and_memory(directory: Path) -> tuple[int, int]:
    """Events that a pass over all training windows delivers, and the most memory that the process has in it."""
    store = EventStore.open(directory)
    store.item_ids = np.load(directory / "large_items.npy", mmap_mode="r")
    store.timestamps = np.load(directory / "large_times.npy", mmap_mode="r")
    offsets = np.arange(0, len(store.item_ids) + 1, EVENTS_A_USER)
    store.offsets = offsets
    windows = partial(StridedWindows().index, offsets[:-1], offsets[1:] - 1, 500)
    sampler = BatchSampler(windows, batch_size=64, shuffle=True)
    events, memory = 0, 0
    for batch in DataLoader(WindowDataset(store, offsets[1:]), batch_size=None, sampler=sampler):
        events += int(batch.history.lengths.sum())
        memory = max(memory, anonymous_bytes())
    return events, memory


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which Linux alone has")
def test_memory_does_not_grow_with_the_store(tmp_path: Path):
    sizes, measured = (10**6, 50 * 10**6), []
    for size in sizes:
        directory = tmp_path / str(size)
        write_events(directory, size)
        # A process each, as memory that was freed is not always given back.
        with ProcessPoolExecutor(1, mp_context=forkserver()) as process:
            measured.append(process.submit(events_and_memory, directory).result())
        for file in directory.glob("large_*"):
            file.unlink()
    # Each user's first event is a target only.
    assert [events for events, _ in measured] == [size - size // EVENTS_A_USER for size in sizes]
    small, large = (memory for _, memory in measured)
    # The large one has 600 MB of columns, and 100,000 windows, which the sampler does hold.
    assert large - small < 64 * 2**20, f"{small:,} bytes with the small store, {large:,} with the large one"
