"""Jobs of the command line in processes of their own, which faults befall."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from forked_commands import ForkedCommand

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


class Job(ForkedCommand):
    """`seqrec fit` in a forked process.

    Args:
        folder: Where it runs, and where its config and store lie.
        words: Words behind the config.
        environment: What its environment has more.
        code: What runs in the process before.
    """

    def __init__(self, folder: Path, *words: str, environment: dict[str, str] | None = None, code: str = "") -> None:
        self.folder = folder
        self.log = folder / f"{time.monotonic_ns()}.log"
        named = any(word.startswith("--ckpt_path") for word in words)
        arguments = ("fit", *(() if named else ("--config", "config.yaml")), *words)
        environment = {**os.environ, **(environment or {})}
        super().__init__(folder, *arguments, log=self.log, environment=environment, code=code)

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
