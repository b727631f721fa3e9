"""A run as a job of the machine: the lock on its folder, signals to stop it, and SLURM's queue."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from filelock import FileLock, Timeout
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from seqrec.errors import LockedError
from seqrec.files import write_bytes, write_text
from seqrec.runs.lightning_internals import cluster_environment

LOCK_FILE = ".lock"
JOB_FILE = ".job.json"
# Loader processes notice within 5 s that their job was killed, and keep the folder locked until then.
PATIENCE_SECONDS = 8.0
STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")


class FolderLock:
    """Locks a folder for one job, until it is released or the process ends in any way.

    Args:
        folder: The folder, which is created.

    Raises:
        LockedError: if another job is running there; the message names it.
    """

    def __init__(self, folder: Path) -> None:
        self._made = [each for each in (folder, *folder.absolute().parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        self._job = folder / JOB_FILE
        self._job_before = self._job.read_bytes() if self._job.is_file() else None
        self._lock = FileLock(folder / LOCK_FILE)
        try:
            self._lock.acquire(timeout=PATIENCE_SECONDS, poll_interval=0.1)
        except Timeout:
            raise LockedError(
                f"{folder} is in use by another job{_owner(self._job)}: its checkpoints would be overwritten. "
                "Wait for it, or choose another folder (--resume_points.dirpath)"
            ) from None
        content = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
        }
        write_text(self._job, json.dumps(content) + "\n")

    def release(self, *, undo: bool = False) -> None:
        """Release the lock, and delete its file.

        The job's name stays in the folder: SLURM may start the job again, to resume there. With `undo` the folder is
        left as it was before.
        """
        with suppress(OSError):  # Windows deletes no open file
            if undo and self._job_before is None:
                self._job.unlink()
            elif undo and self._job_before is not None:
                write_bytes(self._job, self._job_before)
            (self._job.parent / LOCK_FILE).unlink()
        self._lock.release()
        with suppress(OSError):
            for folder in self._made if undo else []:
                folder.rmdir()


def folder_of_slurm_job(base: Path, job: str) -> Path | None:
    """Return the folder below `base` that a SLURM job locked last; None if it locked none."""
    found = [file for file in base.rglob(JOB_FILE) if _content(file).get("slurm_job") == job]
    return max(found, key=lambda file: file.stat().st_mtime).parent if found else None


def _owner(file: Path) -> str:
    job = _content(file)
    return f" (process {job['process']} on {job['host']} since {job['since']})" if job else ""


def _content(file: Path) -> dict[str, str | int | None]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class StopSignals:
    """Records that the process was asked to stop, by SIGTERM, SIGINT (Ctrl-C) or the cluster's SIGUSR1.

    It replaces Lightning's handlers. For SIGTERM these send to other processes in the middle of other communication,
    and for SLURM's signal they save in the middle of a step. Only the main thread can handle signals; in others the
    handlers stay unchanged. A second SIGINT raises Python's `KeyboardInterrupt` at once. Other repeated signals have
    no effect, because clusters send several before they kill.

    Attributes:
        received: Number of the first signal; None before.
        at: Time of the first signal, by `time.monotonic`.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.at = 0.0
        self._before: dict[int, Any] = {}

    def listen(self, trainer: pl.Trainer) -> None:
        """Replace the present handlers, Lightning's among them."""
        if threading.current_thread() is not threading.main_thread():
            return
        numbers = {getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)}
        announced = requeue_signal(trainer)
        for number in numbers | ({announced} if announced is not None else set()):
            self._before[number] = signal.signal(number, self._receive)

    def leave(self) -> None:
        """Restore the previous handlers."""
        while self._before:
            number, handler = self._before.popitem()
            # None is a handler that Python did not set and cannot set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self.at = number, time.monotonic()
            more = "; press again to end it at once" if number == signal.SIGINT else ""
            notice = f"\n{signal.Signals(number).name}: the run will save and stop after this step{more}\n"
            # Not `print`, because the signal may have come in the middle of one.
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, notice.encode())
        elif number == signal.SIGINT:
            self.leave()
            raise KeyboardInterrupt


def requeue_signal(trainer: pl.Trainer) -> int | None:
    """Return the signal that SLURM sends before the end of a job to be queued again; None without SLURM."""
    environment = cluster_environment(trainer)
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return environment.requeue_signal
    return None


def requeue() -> None:
    """Ask SLURM to queue this job again; it starts after all processes of this one have ended."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False, timeout=60)
        reason = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    sys.stderr.write(
        f"SLURM did not queue job {job} again: {reason}\n" if reason else f"SLURM queues job {job} again\n"
    )
