"""The command line in processes that are forked from one which has imported it, so that none imports torch again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import warnings
from multiprocessing.context import ForkServerContext
from pathlib import Path
from subprocess import TimeoutExpired

import torch
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import seqrec

PRELOADED = ["polars", "seqrec.cli.lightning_cli", "seqrec.inference", "seqrec.serving.app", "tensorboardX"]


def forkserver() -> ForkServerContext:
    """Processes that have imported what they need, without the threads and open files of this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def command(
    folder: Path, words: tuple[str, ...], log: Path, errors: Path, environment: dict[str, str], code: str
) -> None:
    """What the process does: `seqrec`, or `-c PROGRAM`, in a group of processes of its own."""
    os.setpgid(0, 0)
    os.chdir(folder)
    for number, file in ((1, log), (2, errors)):
        with file.open("ab", buffering=0) as stream:
            os.dup2(stream.fileno(), number)
    # As in a terminal, where print does not wait.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    os.environ.clear()
    os.environ.update(environment)
    # What Lightning and torch read from the environment when they were imported.
    rank_zero_only.rank = _get_rank() or 0
    if "OMP_NUM_THREADS" in environment:
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    # For loaders, as in a process that was started normally.
    multiprocessing.set_start_method("fork", force=True)
    warnings.simplefilter("ignore")
    exec(code, {})
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(words[1], {"__name__": "__main__"})
        return
    # As after `python -m seqrec`: Lightning starts other ranks with it.
    sys.argv = [str(Path(seqrec.__file__).with_name("__main__.py")), *words]
    from seqrec.cli import main

    main(words)


class ForkedCommand:
    """A command of `seqrec` in a forked process, with methods of `subprocess.Popen`.

    Args:
        folder: Where it runs.
        words: The command and its arguments; `-c` runs a program in Python instead.
        log: File to which its output is appended.
        errors: The same for its error output; None is `log`.
        environment: None is that of this process.
        code: What runs in the process before.
    """

    def __init__(
        self,
        folder: Path,
        *words: str,
        log: Path,
        errors: Path | None = None,
        environment: dict[str, str] | None = None,
        code: str = "",
    ) -> None:
        arguments = (folder, words, log, errors or log, dict(os.environ) if environment is None else environment, code)
        self.process = forkserver().Process(target=command, args=arguments)
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def poll(self) -> int | None:
        """Exit status, that of a signal below 0; None while it runs."""
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise TimeoutExpired(str(self.process), timeout or 0)
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process alone, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def free_port() -> int:
    """A port on this host that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def run_ranks(folder: Path, ranks: int, program: str, *words: str) -> None:
    """Run a program in Python on so many ranks, which do not start each other, and wait for them."""
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    logs = [folder / f"rank-{rank}-of-{ranks}.txt" for rank in range(ranks)]
    started = []
    for rank, log in enumerate(logs):
        own = {} if ranks == 1 else {**job, "RANK": str(rank), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
        started.append(ForkedCommand(folder, "-c", program, *words, log=log, environment={**os.environ, **own}))
    try:
        for process, log in zip(started, logs, strict=True):
            assert process.wait(300) == 0, log.read_text()
    finally:
        for process in started:
            process.kill()
