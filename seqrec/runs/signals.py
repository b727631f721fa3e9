"""Signals that ask a run to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

WANTED = ("SIGTERM", "SIGINT", "SIGUSR1")


class StopSignals:
    """Remembers that the process was asked to stop, by SIGTERM, SIGINT (Ctrl-C) or the cluster's SIGUSR1.

    It takes the place of Lightning's handlers, which for SIGTERM send to other ranks in the middle of whatever these
    are sending, and for SLURM's signal save in the middle of a step. Only the main thread can listen; in others,
    signals are left as they are. A second SIGINT is Python's `KeyboardInterrupt`, at once; of other signals a second
    one changes nothing, as clusters send several and kill for good when their patience ends.

    Attributes:
        received: Number of the first signal; None before.
        at: When it came, by `time.monotonic`.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.at = 0.0
        self._before: dict[int, Any] = {}

    def listen(self, trainer: pl.Trainer) -> None:
        """Take over from the handlers that are there, Lightning's among them."""
        if threading.current_thread() is not threading.main_thread():
            return
        numbers = {getattr(signal, name) for name in WANTED if hasattr(signal, name)}
        requeue = requeue_signal(trainer)
        for number in numbers | ({requeue} if requeue is not None else set()):
            self._before[number] = signal.signal(number, self._receive)

    def leave(self) -> None:
        """Put the handlers back that were there before."""
        while self._before:
            number, handler = self._before.popitem()
            # None is a handler that Python did not set and cannot set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self.at = number, time.monotonic()
            more = "; once more ends it at once" if number == signal.SIGINT else ""
            # Not `print`: the signal may have come in the middle of one.
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, _notice(number, more))
        elif number == signal.SIGINT:
            self.leave()
            raise KeyboardInterrupt


def _notice(number: int, more: str) -> bytes:
    return f"\n{signal.Signals(number).name}: the run will stop after this step, and save{more}\n".encode()


def requeue_signal(trainer: pl.Trainer) -> int | None:
    """The signal by which SLURM announces the end of a job that is to be queued again; None without SLURM."""
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return environment.requeue_signal
    return None


def requeue() -> None:
    """Ask SLURM to queue this job again; it starts once this process and the others of the job have ended."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, check=False, timeout=60
        )
        reason = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    sys.stderr.write(
        f"SLURM did not queue job {job} again: {reason}\n" if reason else f"SLURM queues job {job} again\n"
    )
