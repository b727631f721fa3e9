"""Loader processes among the signals of their run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from seqrec.data.loader import outlive_signals

pytestmark = pytest.mark.process


def load(connection) -> None:
    outlive_signals(0)
    connection.send("ready")
    while True:
        connection.send(connection.recv())


def pending(pid: int) -> int:
    """The signals that a process has not taken yet, as bits."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("ShdPnd:")[2].split()[0], 16)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo") or not Path("/proc/self/status").exists(), reason="needs Linux")
def test_a_loader_lives_on_until_its_run_ends_it():
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=load, args=(theirs,), daemon=True)
    process.start()
    assert ours.recv() == "ready"
    # Another process sends to all, as a cluster does.
    names = "SIGTERM", "SIGINT", "SIGUSR1", "SIGTERM"
    script = f"import os, signal\nfor name in {names}: os.kill({process.pid}, getattr(signal, name))"
    assert os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-c", script) == 0
    ours.send("alive")
    assert ours.poll(30)
    assert ours.recv() == "alive"
    # A signal that is still pending would be one with the next of its kind.
    while pending(process.pid):
        time.sleep(0.01)
    # As multiprocessing does when the run ends, once, and then waits.
    process.terminate()
    process.join(30)
    assert process.exitcode == 0
