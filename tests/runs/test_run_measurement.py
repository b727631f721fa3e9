from __future__ import annotations

import os
import resource
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from seqrec.runs import measurement
from seqrec.runs.measurement import PhaseClock, memory_peaks


class Time:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(measurement, "time", SimpleNamespace(perf_counter=lambda: self.now))


def test_a_phase_within_another_stops_the_outer_ones_clock(monkeypatch: pytest.MonkeyPatch):
    time, clock = Time(monkeypatch), PhaseClock()
    time.now += 5  # of no phase
    clock.start("train")
    time.now += 1
    clock.start("validate")
    time.now += 10
    clock.start("checkpoint")
    time.now += 100
    assert clock.seconds == {"train": 1, "validate": 10, "checkpoint": 100}
    clock.stop("checkpoint")
    time.now += 20
    clock.stop("validate")
    time.now += 2
    clock.stop("train")
    time.now += 1000
    clock.stop("train")
    assert clock.seconds == {"train": 3, "validate": 30, "checkpoint": 100}
    clock.restore({"train": 7})
    clock.add("prepare", 4)
    assert clock.seconds == {"train": 7, "prepare": 4}


def test_the_device_is_waited_for_when_a_phase_starts_or_ends_but_not_after_a_failure(
    monkeypatch: pytest.MonkeyPatch,
):
    time, clock, waits = Time(monkeypatch), PhaseClock(), []

    def work() -> None:
        waits.append(time.now)
        time.now += 3

    clock.synchronise = work
    clock.start("train")
    clock.start("validate")
    clock.stop("validate")
    assert clock.seconds == {"train": 6, "validate": 3}
    assert len(waits) == 3
    clock.start("test")
    before = len(waits)
    clock.stop_all()
    time.now += 50
    assert clock.seconds["train"] == 9
    assert len(waits) == before


def test_peak_memory_is_that_of_the_kernel_and_is_never_below_the_present_memory():
    peak, no_gpu, nothing_kept = memory_peaks(torch.device("cpu"))
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    # The kernel counts a process's pages in batches, so its own figures differ by a little.
    slack = 4 << 20
    assert peak >= pages * os.sysconf("SC_PAGE_SIZE") - slack
    # `getrusage` includes the process that started this one.
    assert peak <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + slack
    assert (no_gpu, nothing_kept) == (0, 0)
