"""`seqrec serve` under many clients for a long time: nothing fails, memory stays, `/live` answers at once.

SEQREC_SOAK_SECONDS=60 pytest -n 0 -s -m slow tests/serving/test_soak.py
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import httpx
import pytest
from mixed_load import Found, mixed_load, quantiles
from served_processes import resident_bytes, server

from seqrec.data.store import EventStore

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]
SECONDS = float(os.environ.get("SEQREC_SOAK_SECONDS", 600))
CLIENTS = 24
MIB = 1 << 20


def known_items(checkpoint: Path) -> list[int]:
    items = EventStore.open(checkpoint.parent / "store").item_vocabulary
    return [int(item) for item in items.external_ids(range(1, len(items) + 1))]


def report(found: Found, live: list[float], memory: list[int]) -> str:
    everything = [seconds for own in found.seconds.values() for seconds in own]
    lines = [
        f"all: {quantiles(everything)}, {len(everything) / SECONDS:.0f} per second",
        *(f"  {name}: {quantiles(seconds)}" for name, seconds in sorted(found.seconds.items())),
        f"/live: {quantiles(live)}",
        f"statuses: {dict(sorted(found.statuses.items()))}",
        f"memory in MiB: {[value // MIB for value in memory[:: max(1, len(memory) // 20)]]}",
        f"failures: {found.failures[:10]}",
    ]
    return "\n".join(lines)


def test_a_soak_of_right_and_wrong_requests(checkpoint: Path, tmp_path: Path):
    live, memory = [], []
    with server(checkpoint, tmp_path, token=None) as (process, url):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context) as pool, httpx.Client(base_url=url, timeout=30) as client:
            load = pool.submit(mixed_load, url, CLIENTS, known_items(checkpoint), SECONDS)
            while not load.done():
                begin = time.perf_counter()
                assert client.get("/live").status_code == 200
                live.append(time.perf_counter() - begin)
                if len(live) % 50 == 1:
                    memory.append(resident_bytes(process))
                time.sleep(0.02)
            found = load.result()
    print("\n" + report(found, live, memory))
    assert not found.failures
    early = memory[len(memory) // 5]
    assert max(memory) < early + 96 * MIB
    ordered = sorted(live)
    assert ordered[len(ordered) // 2] < 0.010
    assert ordered[int(0.99 * (len(ordered) - 1))] < 0.100
    assert (tmp_path / "errors.txt").stat().st_size < 10_000
