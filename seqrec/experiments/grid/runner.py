"""Runs the cells of a grid, each in a process of its own, on as many devices as there are."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from filelock import FileLock, Timeout

from seqrec.data.progress import Progress
from seqrec.errors import InputError
from seqrec.experiments.grid.cells import Cell, Settings
from seqrec.experiments.grid.outcome import RUN_FOLDER, gather, is_finished, write_result

LOG_FILE = "log.txt"
CONFIG_FILE = "cell.yaml"
_POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Slot:
    """A place where one cell runs at a time.

    Attributes:
        accelerator: "cpu" or "gpu".
        environment: What its processes have beside this one's environment.
    """

    accelerator: str
    environment: dict[str, str]


@dataclass(frozen=True)
class _Running:
    cell: Cell
    process: subprocess.Popen[bytes]
    began: float


def make_slots(jobs: int, device: str) -> list[Slot]:
    """One slot for each visible GPU, or `jobs` of the CPU, which share its cores.

    Args:
        jobs: Slots of the CPU.
        device: "auto" takes GPUs where there are any, "cpu" and "cuda" as asked.

    Raises:
        InputError: a value is none of these, or there is no GPU.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device={device!r} must be auto, cpu or cuda")
    if jobs < 1:
        raise InputError(f"jobs={jobs} must be at least 1")
    gpus = 0 if device == "cpu" else torch.cuda.device_count()
    if device == "cuda" and not gpus:
        raise InputError("device='cuda', but no GPU is visible here; take cpu")
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        return [Slot("gpu", {"CUDA_VISIBLE_DEVICES": number}) for number in visible[:gpus]]
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    return [Slot("cpu", {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)})] * jobs


def run_grid(
    folder: Path,
    cells: Sequence[Cell],
    settings: Settings,
    slots: Sequence[Slot],
    *,
    made_by: str,
    keep_checkpoints: bool,
    progress: Progress,
) -> None:
    """Run the cells that are not finished, and gather the results of all that are.

    A cell that was stopped starts anew, so that its times are those of one whole run. Cells of other settings are run
    again in the same place.

    Args:
        folder: Of the grid; one command at a time works in it.
        cells: What is run, in this order.
        settings: What they share.
        slots: Where they run.
        made_by: The command that makes the grid, for its tables.
        keep_checkpoints: Whether checkpoints stay when a cell is finished.
        progress: Told of each cell.

    Raises:
        InputError: another command works in the folder, or cells failed; the others are finished then.
    """
    with _alone(folder):
        waiting = [cell for cell in cells if not is_finished(folder / cell.place, settings.digest(cell))]
        progress.note(f"{len(cells)} cells, {len(cells) - len(waiting)} of them finished before")
        grid = _Grid(folder, settings, made_by, keep_checkpoints, progress, len(waiting))
        for data in dict.fromkeys(cell.data for cell in waiting):
            grid.prepare(next(cell for cell in waiting if cell.data == data))
        grid.run(waiting, list(slots))
        gather(folder)
        if grid.failed:
            logs = "; ".join(f"{cell}: {folder / cell.place / LOG_FILE}" for cell in grid.failed)
            raise InputError(
                f"{len(grid.failed)} of {len(cells)} cells failed, see {logs}; the same command tries them again"
            )


class _Grid:
    """The work on one folder: starts cells, sees them to their end, keeps count."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        made_by: str,
        keep_checkpoints: bool,
        progress: Progress,
        total: int,
    ) -> None:
        self.failed: list[Cell] = []
        self._folder = folder
        self._settings = settings
        self._made_by = made_by
        self._keep_checkpoints = keep_checkpoints
        self._progress = progress
        self._total, self._done = total, 0

    def prepare(self, cell: Cell) -> None:
        """Prepare the event store before any cell needs it, so that none of them is measured doing so."""
        words = self._words("prepare", cell, [])
        log = self._folder / "cells" / cell.data / "prepare.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        process = _start(words, log, {})
        with _ended([process]):
            if process.wait() != 0:
                raise InputError(f"{cell.data} could not be prepared: {_last_line(log)} (all of it: {log})")

    def run(self, waiting: Sequence[Cell], free: list[Slot]) -> None:
        """Run all cells."""
        queue, running = list(waiting), dict[int, tuple[Slot, _Running]]()
        try:
            while queue or running:
                while queue and free:
                    slot = free.pop(0)
                    started = self._begin(queue.pop(0), slot)
                    running[started.process.pid] = (slot, started)
                for pid, (slot, each) in list(running.items()):
                    if each.process.poll() is not None:
                        del running[pid]
                        free.append(slot)
                        self._finish(each)
                time.sleep(_POLL_SECONDS)
        finally:
            for _, each in running.values():
                each.process.kill()
                each.process.wait()

    def _begin(self, cell: Cell, slot: Slot) -> _Running:
        place = self._folder / cell.place
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        run = {"save_dir": str(place), "version": RUN_FOLDER, "tensorboard": False}
        config = self._settings.config(cell)
        config["trainer"] |= {
            "accelerator": slot.accelerator,
            "devices": 1,
            "logger": {"class_path": "seqrec.RunFolder", "init_args": run},
        }
        file = place / CONFIG_FILE
        file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        words = self._words("fit", cell, [file])
        return _Running(cell, _start(words, place / LOG_FILE, slot.environment), time.monotonic())

    def _finish(self, ended: _Running) -> None:
        cell, place = ended.cell, self._folder / ended.cell.place
        self._done += 1
        count = f"[{self._done}/{self._total}] {cell}"
        if ended.process.returncode != 0:
            self.failed.append(cell)
            self._progress.note(f"{count}: FAILED, {_last_line(place / LOG_FILE)}")
            return
        result = write_result(
            place,
            cell,
            digest=self._settings.digest(cell),
            budget=str(self._settings.budget),
            made_by=self._made_by,
            command=" ".join(self._words("fit", cell, [place / CONFIG_FILE])),
        )
        if not self._keep_checkpoints:
            shutil.rmtree(place / RUN_FOLDER / "checkpoints", ignore_errors=True)
        gather(self._folder)
        seconds = time.monotonic() - ended.began
        self._progress.note(f"{count}: NDCG@10 {result['metrics']['NDCG@10']:.4f}, {seconds:,.0f} s")

    def _words(self, command: str, cell: Cell, further: Sequence[Path]) -> list[str]:
        files = [*self._settings.fragments(cell), *further]
        configs = [word for file in files for word in ("--config", str(file))]
        return ["seqrec", command, *configs, *self._settings.words(cell)]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"another command works in {folder}; wait for it, or take another folder") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _ended(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _start(words: Sequence[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )


def _end_with_parent() -> None:
    # A grid that is killed must not leave a cell behind, which would go on in the folder of the one that replaces it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "without a word")
