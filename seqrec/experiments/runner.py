"""Many runs of one command, on one slot per device.

A command may be killed at any time. Its processes end with it, and the same command started again resumes.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock, Timeout

from seqrec.errors import InputError, check_at_least

LOCK_FILE = ".lock"
_POLL_SECONDS = 0.1
# Of a log, its last line is in them.
_END_BYTES = 1 << 16
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Call:
    """A run in this process that has returned; `failure` is the reason if it failed."""

    failure: str | None = None

    def poll(self) -> int:
        """Return the status, as a process does."""
        return self.failure is not None


@dataclass(frozen=True)
class Slot:
    """A place for one run at a time, on "cpu" or "gpu", with environment variables in addition to this process's."""

    accelerator: str = "cpu"
    environment: dict[str, str] = field(default_factory=dict)

    def trainer(self, place: Path, version: str) -> dict[str, Any]:
        """Return the trainer's settings of a run here, which has the folder `version` in `place`."""
        run = {"save_dir": str(place), "name": "", "version": version, "tensorboard": False}
        logger = {"class_path": "seqrec.RunFolder", "init_args": run}
        return {"accelerator": self.accelerator, "devices": 1, "logger": logger}


Job = TypeVar("Job")
Run = TypeVar("Run", "subprocess.Popen[bytes]", Call)


def run_all(
    jobs: Iterable[Job | None],
    slots: Sequence[Slot],
    start: Callable[[Job, Slot], Run],
    finish: Callable[[Job, Run], None],
    wait: Callable[[], object] = lambda: None,
) -> None:
    """Run jobs, each in a slot of its own; runs that have not ended are killed if this is interrupted.

    Jobs are drawn one at a time when a slot is free: they may depend on the results of finished ones. None is
    a job that cannot start yet: it is asked for again later. `start` starts one as a process, or runs it in this one;
    `finish` is called when its run has ended, and `wait` again and again while any runs, to show progress.

    Example:
        >>> def start(job: str, slot: Slot) -> subprocess.Popen[bytes]:
        ...     return subprocess.Popen([sys.executable, "-c", "pass"])
        >>> run_all(["a", "b"], [Slot()], start, lambda job, run: print(job, run.returncode))
        a 0
        b 0
    """
    queue, free = iter(jobs), list(slots)
    running: list[tuple[Job, Slot, Run]] = []
    are_left = True
    try:
        while are_left or running:
            while free and are_left:
                try:
                    job = next(queue)
                except StopIteration:
                    are_left = False
                    break
                if job is None:
                    break
                slot = free.pop(0)
                running.append((job, slot, start(job, slot)))
            for each in [each for each in running if each[2].poll() is not None]:
                running.remove(each)
                free.append(each[1])
                finish(each[0], each[2])
            if running or are_left:
                wait()
                time.sleep(_POLL_SECONDS)
    finally:
        for _, _, run in running:
            if isinstance(run, subprocess.Popen):
                run.kill()
                run.wait()


def run_one(words: Sequence[str], log: Path, slot: Slot, failure: str, show: Callable[[str], object]) -> None:
    """Run one command, as `start` does, until it has ended; `show` is called again and again with its last line.

    Raises:
        InputError: if it fails; the message begins with `failure`.
    """

    def finish(_: object, process: subprocess.Popen[bytes]) -> None:
        if process.returncode != 0:
            raise InputError(f"{failure}: {last_line(log)} (full log: {log})")

    run_all(
        [words], [slot], lambda job, place: start(job, log, place.environment), finish, lambda: show(last_line(log))
    )


def make_slots(jobs: int, device: str) -> list[Slot]:
    """Return one slot per visible GPU for the device cuda, or auto if there are any; else `jobs` that share the CPU.

    Raises:
        InputError: if a value is out of range, or no GPU is visible for cuda.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device={device!r} must be auto, cpu or cuda")
    check_at_least(1, jobs=jobs)
    gpus = 0 if device == "cpu" else torch.cuda.device_count()
    if device == "cuda" and not gpus:
        raise InputError("device='cuda', but no GPU is visible here; use cpu")
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        return [Slot("gpu", {"CUDA_VISIBLE_DEVICES": number}) for number in visible[:gpus]]
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    return [Slot("cpu", {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)})] * jobs


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other commands out of a folder, which is made.

    Raises:
        InputError: if another command is running there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"another command is running in {folder}; wait, or choose another folder") from None
    try:
        yield
    finally:
        lock.release()


def start(words: Sequence[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start words such as `seqrec fit --config a.yaml` in a process that ends with this one and writes a log."""
    # `-m` puts the working folder first, where its files hide installed packages.
    hidden = {} if sys.path[0] in ("", os.getcwd()) else {"PYTHONSAFEPATH": "1"}
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **hidden, **environment},
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )


def last_line(log: Path) -> str:
    """Return the last line of a log that is not empty; of a long log, only the end is read."""
    with log.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - _END_BYTES))
        lines = stream.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def _end_with_parent() -> None:
    # A run that outlives its command would write into the folder of the command that replaces it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
