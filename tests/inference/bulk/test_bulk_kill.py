"""`kill -9` at random moments of `seqrec recommend`."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars
import pytest
from bulk_jobs import log_of, read, summary_of
from polars.testing import assert_frame_equal

from seqrec.inference.bulk.command import recommend

pytestmark = pytest.mark.process

TIMEOUT = 300
PARTS = 30


def start(ckpt: Path) -> subprocess.Popen[bytes]:
    words = ["--ckpt", str(ckpt), "--output", "killed", "--input", "new.parquet", "--top-k", "5"]
    with Path("log.txt").open("ab") as log:
        command = [sys.executable, "-m", "seqrec", "recommend", *words, "--part-users", "2"]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def kill_at(process: subprocess.Popen[bytes], folder: Path, parts: int, seconds: float) -> bool:
    """Kill the process some time behind its so-manieth part; False where it ends before."""
    deadline = time.monotonic() + TIMEOUT
    while process.poll() is None and len(list(folder.glob("*"))) < parts:
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    time.sleep(seconds)
    if process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, 8])
def test_a_job_that_is_killed_ends_with_the_rows_of_one_that_is_not(
    ckpt: Path,
    kills: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    log_of(ckpt).with_columns(item_id=polars.col("item_id") * 2).write_parquet("new.parquet")
    chance, done = random.Random(kills), 0
    for kill in range(kills):
        parts = kill * PARTS // (kills + 1)  # the first one while the input is read or before
        done += kill_at(start(ckpt), Path("killed"), parts, chance.uniform(0, 0.03) + 2 * (kill == 0))
    assert done >= kills / 2, "the job ended before it was killed often enough"
    assert not Path("killed_summary.json").exists()
    assert start(ckpt).wait(TIMEOUT) == 0, Path("log.txt").read_text()
    recommend(ckpt=str(ckpt), output="whole", input="new.parquet", top_k=5, part_users=2)
    assert_frame_equal(read("killed"), read("whole"), check_exact=True)
    assert summary_of("killed") == summary_of("whole")
    assert not Path("killed.work").exists()
    assert len(list(Path("killed").iterdir())) == PARTS
