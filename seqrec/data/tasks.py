"""Run the stages of a preparation over parts of a log: in this process, in a pool of processes, or on a dask cluster.

A task is a pure function of its arguments and of files in the work folder, and each attempt writes files of its own. A
task that is lost with its worker runs again on another one, and whichever attempt is reported counts.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import platform
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar
from uuid import uuid4

from seqrec.aliases import __version__
from seqrec.data.progress import Progress, Stage
from seqrec.errors import InputError, MissingInputError, check_at_least

Shared = TypeVar("Shared")
Argument = TypeVar("Argument")
Result = TypeVar("Result")
# A task gets what all tasks of a stage share, its argument, and a function to call with numbers of rows that are done.
Task = Callable[[Shared, Argument, Callable[[int], None]], Result]
# Tasks that wait for each worker, so that none is idle while results are read, and few results lie on disk.
_WAITING = 2
# How often a pool of processes is started again after one of them was killed; dask has a limit of its own.
_RESTARTS = 3
# File by which a worker knows that it sees the work folder.
_MARK = "mark"


class Tasks:
    """Runs tasks in this process, one after the other.

    Attributes:
        width: Tasks that run at a time.
    """

    width = 1

    def map(
        self, stage: Stage, task: Task[Shared, Argument, Result], shared: Shared, arguments: Iterable[Argument]
    ) -> Iterator[Result]:
        """Yield the results of a task for each argument, in order, as one stage of progress."""
        for argument in arguments:
            yield task(shared, argument, stage.advance)
        stage.end()


class _Remote(Tasks):
    # Runs tasks on an executor. What the tasks of a stage share, and their results, are in files.

    def __init__(self, start: Callable[[], Executor], width: int, folder: Path, lost: str, progress: Progress) -> None:
        self.width = width
        self._start, self._folder, self._lost, self._progress = start, folder, lost, progress
        self._executor, self._restarts = start(), 0
        folder.mkdir()
        (folder / _MARK).touch()

    def map(
        self, stage: Stage, task: Task[Shared, Argument, Result], shared: Shared, arguments: Iterable[Argument]
    ) -> Iterator[Result]:
        place = _written(self._folder, shared)
        payloads = (pickle.dumps((task, place, argument)) for argument in arguments)
        waiting: deque[bytes] = deque()
        futures: deque[Future[tuple[str, int]]] = deque()
        while True:
            try:
                while len(waiting) < _WAITING * self.width and (payload := next(payloads, None)) is not None:
                    waiting.append(payload)
                # After a restart all of them.
                while len(futures) < len(waiting):
                    futures.append(self._submit(waiting[len(futures)]))
                if not waiting:
                    break
                name, rows = futures[0].result()
            except BrokenProcessPool as error:
                self._restart(error)
                futures.clear()
                continue
            except CancelledError as error:
                raise InputError(f"{self._lost}; prepare again") from error
            except ImportError as error:
                if (error.name or "").partition(".")[0] != "seqrec":
                    raise
                raise InputError(
                    f"workers: a worker has no seqrec of this version ({error}); install it there"
                ) from error
            waiting.popleft()
            futures.popleft()
            with open(name, "rb") as stream:
                result = pickle.load(stream)
            os.unlink(name)
            stage.advance(rows)
            yield result
        os.unlink(place)
        stage.end()

    def _submit(self, payload: bytes) -> Future[tuple[str, int]]:
        return self._executor.submit(run_task, _versions(), str(self._folder), payload)

    def _restart(self, error: Exception) -> None:
        self._restarts += 1
        if self._restarts > _RESTARTS:
            raise InputError(
                f"{self._lost} {self._restarts} times: give fewer workers if memory ran out, and start a script's work "
                'below if __name__ == "__main__"'
            ) from error
        self._progress.note(f"{self._lost}; its tasks run again")
        self._executor.shutdown()
        self._executor = self._start()

    def end(self) -> None:
        self._executor.shutdown(cancel_futures=True)


def run_task(versions: str, folder: str, payload: bytes) -> tuple[str, int]:
    """Run a task in a worker, and return the file with its result and the number of rows that it has done.

    Raises:
        InputError: if the worker has other versions than `versions`, or does not see `folder`.
    """
    worker = f"the worker {os.getpid()} on {platform.node()}"
    if versions != _versions():
        raise InputError(f"workers: {worker} has {_versions()}, but this process {versions}; install the same on all")
    if not Path(folder, _MARK).is_file():
        raise InputError(
            f"workers: {worker} does not see the work folder {folder}; put the store (data.store) on a file system "
            "that all workers share"
        )
    task, place, argument = pickle.loads(payload)
    done: list[int] = []
    result = task(_shared(place), argument, done.append)
    return _written(Path(folder), result), sum(done)


def _written(folder: Path, content: object) -> str:
    """Write an object into a file that only this attempt has, and return its name."""
    name = own_name(folder)
    with open(name, "xb") as stream:
        pickle.dump(content, stream, protocol=5)
    return str(name)


def own_name(folder: Path) -> Path:
    """Return a name in a folder that no other attempt of a task uses."""
    return folder / uuid4().hex


@lru_cache(maxsize=1)
def _shared(name: str) -> Any:
    with open(name, "rb") as stream:
        return pickle.load(stream)


@lru_cache(maxsize=1)
def _versions() -> str:
    others = ", ".join(f"{package} {version(package)}" for package in ("polars", "numpy"))
    return f"seqrec {__version__}, {others}, Python {sys.version_info.major}.{sys.version_info.minor}"


@cache
def require_seen(file: Path, size: int) -> None:
    """Refuse, in a task, a file of the log that does not exist in this process, or has another size in bytes.

    Raises:
        InputError: if it does not, or has.
    """
    found = file.stat().st_size if file.exists() else None
    if found != size:
        sees = "does not see" if found is None else f"sees {found:,} bytes, not {size:,}, of"
        raise InputError(f"workers: {platform.node()} {sees} {file}; put the log where all workers see it")


def check_workers(workers: int | str) -> None:
    """Refuse a number of processes below 1, and an address that is none.

    Raises:
        InputError: if it is one.
    """
    if isinstance(workers, int):
        check_at_least(1, workers=workers)
    elif "://" not in workers:
        raise InputError(
            f"workers={workers!r} must be a number of processes, or the address of a dask scheduler such as "
            "tcp://node1:8786"
        )


@contextmanager
def tasks_on(workers: int | str, folder: Path, progress: Progress) -> Iterator[Tasks]:
    """Give what runs tasks: this process for `workers=1`, so many processes, or the cluster of a dask scheduler.

    Args:
        workers: The number of processes, or the address of the scheduler.
        folder: A new folder for arguments and results, which all workers must see.
        progress: Shows that a task was lost.

    Raises:
        InputError: if the scheduler does not answer, or has no workers.
        MissingInputError: if dask.distributed is not installed.
    """
    if workers == 1:
        yield Tasks()
        return
    opened = _on_cluster(workers, folder, progress) if isinstance(workers, str) else _pool(workers, folder, progress)
    with opened as tasks:
        yield tasks


@contextmanager
def _pool(workers: int, folder: Path, progress: Progress) -> Iterator[Tasks]:
    # A new process for each worker: threads of polars do not survive a fork.
    threads = max((os.cpu_count() or 1) // workers, 1)
    start = partial(ProcessPoolExecutor, workers, multiprocessing.get_context("spawn"), _begin, (threads,))
    tasks = _Remote(start, workers, folder, f"a process of workers={workers} was killed", progress)
    try:
        yield tasks
    finally:
        tasks.end()


def _begin(threads: int) -> None:
    # Runs first in each process of a pool. polars, which is not imported yet, shares the cores with the others.
    os.environ.setdefault("POLARS_MAX_THREADS", str(threads))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _on_cluster(address: str, folder: Path, progress: Progress) -> Iterator[Tasks]:
    try:
        from distributed import Client
        from distributed.scheduler import KilledWorker
    except ImportError as error:
        raise MissingInputError(
            f'workers={address!r} needs dask.distributed, which is not installed: pip install "seqrec[cluster]"'
        ) from error
    try:
        client = Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"workers={address!r}: no scheduler answers there ({error}); start one by: dask scheduler"
        ) from error
    with client:
        if not (width := sum(client.nthreads().values())):
            raise InputError(f"workers={address!r}: the scheduler has no workers; start some by: dask worker {address}")
        try:
            yield _Remote(client.get_executor, width, folder, f"workers={address!r}: the scheduler was lost", progress)
        except KilledWorker as error:
            raise InputError(
                f"workers={address!r}: a task was lost with {error.allowed_failures + 1} workers, perhaps for memory; "
                "give them more, or fewer threads each"
            ) from error
