"""Functions that the tests run in processes of their own."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path

import numpy as np

from seqrec.benchmark.generated_log import PROFILES, ensure_log
from seqrec.errors import InputError


def hold(size: int) -> int:
    """Hold `size` bytes long enough to be seen, also on a busy machine, and no longer."""
    held = np.ones(size, np.uint8)
    time.sleep(0.5)
    return len(held)


def hold_with_polars(size: int) -> int:
    import polars as pl

    return len(pl.select(pl.int_range(size // 8)))


def hold_with_polars_again_and_again(size: int, times: int) -> None:
    """Hold columns of growing size, one at a time."""
    for extra in range(times):
        hold_with_polars(size + extra * (1 << 20))


def hold_and_refuse(size: int) -> None:
    try:
        hold(size)
    except MemoryError as error:
        raise InputError("the store cannot be written: [Errno 12] Cannot allocate memory") from error


def limit() -> int:
    return resource.getrlimit(resource.RLIMIT_DATA)[0]


def say(lines: list[str]) -> None:
    for line in lines:
        print(line)


def refuse(reason: str) -> None:
    raise InputError(reason)


def fail() -> None:
    raise KeyError("nothing there")


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def generate(folder: str, events: int) -> None:
    ensure_log(Path(folder), PROFILES["kuairand"], events)
