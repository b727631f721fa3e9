"""Jobs of the command line in processes of their own, which faults befall."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

TIMEOUT = 120.0
CONFIG = {
    "recipe": False,
    "data": {
        "source": {
            "class_path": "Synthetic",
            "init_args": {"num_users": 100, "num_items": 40, "mean_events": 12},
        },
        "store": "store",
        "max_length": 10,
        "batch_size": 4,
    },
    "model": {"class_path": "GRU4Rec", "init_args": {"d_model": 4, "num_layers": 1}},
    "resume_points": {"every_n_steps": 5},
    "early_stopping": {"patience": 10_000},
    "trainer": {
        # Until something befalls it.
        "max_epochs": 10_000,
        "limit_val_batches": 1,
        "accelerator": "cpu",
        "devices": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1000,
    },
}


def command(folder: Path, words: tuple[str, ...], log: Path, environment: dict[str, str], code: str) -> None:
    """What the process of a job does: `seqrec` in a group of processes of its own."""
    os.setpgid(0, 0)
    os.chdir(folder)
    with log.open("ab", buffering=0) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    # As in a terminal, where print does not wait.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    os.environ.update(environment)
    # For loaders, as in a process that nobody forked.
    multiprocessing.set_start_method("fork", force=True)
    sys.argv = ["seqrec", *words]
    warnings.simplefilter("ignore")
    exec(code, {})
    from seqrec.cli import main

    main(words)


class Job:
    """`seqrec fit` in a process that is forked from one which has imported it.

    Args:
        folder: Where it runs, and where its config and store lie.
        words: Words behind the config.
        environment: What its environment has more.
        code: What runs in the process before.
    """

    def __init__(self, folder: Path, *words: str, environment: dict[str, str] | None = None, code: str = "") -> None:
        self.folder = folder
        self.log = folder / f"{time.monotonic_ns()}.log"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["seqrec.cli"])
        named = any(word.startswith("--ckpt_path") for word in words)
        arguments = ("fit", *(() if named else ("--config", "config.yaml")), *words)
        self.process: BaseProcess = context.Process(
            target=command, args=(folder, arguments, self.log, environment or {}, code)
        )
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def output(self) -> str:
        """What it has said so far."""
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, happened: Callable[[], object]) -> None:
        """Wait until something has happened; fails where the job ends before."""
        deadline = time.monotonic() + TIMEOUT
        while not happened():
            assert self.process.exitcode is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.005)

    def signal(self, number: int) -> None:
        """Send a signal to all its processes, as terminals and clusters do."""
        os.killpg(self.pid, number)

    def end(self, within: float = 120.0) -> int:
        """Exit status, of an end that comes in time and leaves no process."""
        self.process.join(within)
        assert self.process.exitcode is not None, f"still running after {within} s:\n{self.output}"
        deadline = time.monotonic() + 10
        while self.processes():
            assert time.monotonic() < deadline, f"left running: {self.processes()}"
            time.sleep(0.05)
        return self.process.exitcode

    def loaders(self) -> list[int]:
        """Its loader processes, which are forks of it; torch also starts a program that keeps shared memory."""
        words = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in self.processes()}
        return [pid for pid in words if pid != self.pid and words[pid] == words[self.pid]]

    def processes(self) -> list[int]:
        """Its processes that are alive, loaders among them."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
                if int(group) == self.pid and state != "Z":
                    found.append(int(stat.parent.name))
        return found
