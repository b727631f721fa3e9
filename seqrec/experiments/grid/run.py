"""Run the cells of a grid that are not finished.

Several commands may work on one grid: each claims a cell before it runs it. The system gives up a claim when its
command ends, in any way, so a cell of a killed command is free again.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from seqrec.data.output import show
from seqrec.data.progress import Progress, Stage
from seqrec.errors import InputError
from seqrec.experiments import runner
from seqrec.experiments.grid.cells import TRIALS, Cell, Settings
from seqrec.experiments.grid.result import (
    METRICS,
    RUN_FOLDER,
    failure_of,
    read_result,
    result_file,
    result_of,
    row_of,
    write_result,
)
from seqrec.experiments.grid.tuning import choice_of, choice_table
from seqrec.experiments.runner import Slot

LOG_FILE, CONFIG_FILE, CHOICE_FILE = "log.txt", "cell.yaml", "tuned.json"
CELLS_FOLDER, CLAIMS_FOLDER = "cells", ".claims"


def run_grid(
    folder: Path,
    results: Path,
    cells: Sequence[Cell],
    settings: Settings,
    slots: Sequence[Slot],
    progress: Progress,
    made_by: str,
    *,
    keep_checkpoints: bool,
) -> None:
    """Run the cells that have no result, in their order; those that tune others, or train the model of others, first.

    A cell that was stopped starts anew: its times are those of one complete run. While another command runs the last
    cells, this one waits for them, and takes over those that it leaves.

    Args:
        folder: Folder of the runs, which may be deleted when the command has ended.
        results: Folder of the results, a small JSON file for each cell.
        cells: Cells of the grid.
        settings: Settings that they share.
        slots: Places for one cell at a time.
        progress: Shows a line for each cell.
        made_by: The command that makes the grid, for its tables.
        keep_checkpoints: Whether those of finished cells stay.

    Raises:
        InputError: if a result of other settings is there, or cells fail; the others are finished then.
    """
    grid = _Grid(folder, results, settings, list(cells), progress, made_by, keep_checkpoints)
    grid.skip_finished()
    try:
        runner.run_all(grid.ready(), slots, grid.start, grid.finish, grid.show_state)
        grid.stage.end()
    finally:
        grid.release_all()
    if grid.failed:
        logs = "; ".join(f"{cell}: {reason}" for cell, reason in grid.failed.items())
        raise InputError(
            f"{len(grid.failed)} of {len(cells)} cells failed, see {logs}; the same command tries them again"
        )


@dataclass
class _Grid:
    """The state of a grid while a command works on it. `failed` has a reason for each cell."""

    folder: Path
    results: Path
    settings: Settings
    waiting: list[Cell]
    progress: Progress
    made_by: str
    keep_checkpoints: bool
    failed: dict[Cell, str] = field(default_factory=dict)
    claims: dict[Cell, list[FileLock]] = field(default_factory=dict)
    began: dict[Cell, float] = field(default_factory=dict)
    prepared: set[str] = field(default_factory=set)
    chosen: dict[tuple[Cell, ...], dict[str, Any]] = field(default_factory=dict)
    # Settings of cells, and results that have been read: they do not change.
    records: dict[Cell, dict[str, Any]] = field(default_factory=dict)
    known: dict[Cell, dict[str, Any]] = field(default_factory=dict)
    to_run: int = 0
    stage: Stage = field(init=False)

    def skip_finished(self) -> None:
        """Leave out the cells that are finished, and show how many are."""
        count, found = len(self.waiting), [(cell, self._with_choice(cell)) for cell in list(self.waiting)]
        self.waiting = [cell for cell, chosen in found if chosen is None or not self._is_finished(chosen)]
        self.to_run = len(self.waiting)
        self.progress.note(f"{count} cells, {count - self.to_run} of them finished before")
        self.stage = self.progress.stage("grid", self.to_run, unit="cells")

    def ready(self) -> Iterator[Cell | None]:
        """Yield cells as they can be run, claimed, without their trials; None if all depend on cells that are running,
        here or by another command.
        """
        is_told = False
        while self.waiting:
            cell = self._next()
            if cell is None and not self.claims and self.waiting and not is_told:
                self.progress.note(
                    f"another command runs the last {len(self.waiting)} cells, or what they need; waiting"
                )
                is_told = True
            if cell is not None or self.waiting:
                yield cell

    def start(self, cell: Cell, slot: Slot) -> subprocess.Popen[bytes]:
        """Start the command of a cell in a folder of its own."""
        self.began[cell] = time.monotonic()
        place = self._place(cell)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        config = self.settings.config(cell)
        config["trainer"] |= slot.trainer(place, RUN_FOLDER)
        file = place / CONFIG_FILE
        file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        words = self._words("fit" if cell.model_of is None else "test", cell, [file])
        if cell.model_of is not None:
            words += ["--ckpt", str(self._checkpoint(cell))]
        return runner.start(words, place / LOG_FILE, slot.environment)

    def finish(self, cell: Cell, process: subprocess.Popen[bytes]) -> None:
        """Write the result of a cell after the end of its process, and release its claim."""
        place = self._place(cell)
        try:
            if process.returncode != 0:
                self._fail(cell)
                return
            trained = None if cell.model_of is None else self._result(cell.model_of)
            content = result_of(place / RUN_FOLDER, cell, trained)
            self._write(cell, content)
            seconds = time.monotonic() - self.began[cell]
            self._count(f"{cell}: {METRICS[1]} {content['metrics'][METRICS[1]]:.4f}, {seconds:,.0f} s")
            self._drop_checkpoints(cell)
        finally:
            self._release(cell)

    def show_state(self) -> None:
        """Show how many cells have ended, the time left, and the last lines of the logs of those that are running."""
        if self.stage.is_due:
            self.stage.total = self.to_run
            logs = {cell: self._place(cell) / LOG_FILE for cell in self.claims}
            running = [f"{cell}: {runner.last_line(log)}" for cell, log in logs.items() if log.is_file()]
            self.stage.refresh("; ".join(running))

    def release_all(self) -> None:
        """Release the claims of cells that were stopped."""
        for cell in list(self.claims):
            self._release(cell)

    def _next(self) -> Cell | None:
        """Return the next cell that can run, claimed; None if there is none now. Finished cells wait no longer."""
        for cell in list(self.waiting):
            found = self._with_choice(cell)
            if found is None or not self._can_start(found):
                continue
            if self._is_finished(found):
                self.waiting.remove(cell)
            elif self._claim(found):
                self.waiting.remove(cell)
                # Another command may have finished it before the claim.
                if not self._is_finished(found) and not self._take_from_trial(cell, found):
                    self._prepare(found)
                    return found
                self._release(found)
        return None

    def _can_start(self, cell: Cell) -> bool:
        """Return whether the model that a cell tests is there; one that is not trains again, unless that has failed.

        A cell that trains, or that another command has finished, needs none.
        """
        trained = cell.model_of
        if trained is None or self._result(cell) is not None:
            return True
        if self._result(trained) is not None and self._checkpoint(cell).is_file():
            return True
        if trained in self.failed:
            self._give_up(cell, f"{trained} failed")
        elif trained not in self.waiting and trained not in self.claims:
            self.waiting.insert(0, trained)
            self.to_run += 1
        return False

    def _with_choice(self, cell: Cell) -> Cell | None:
        """Return a cell with the changes that its trials choose; None before all have ended."""
        if not cell.trials:
            return cell
        results = [self._result(trial) for trial in cell.trials]
        found = [result for result in results if result is not None]
        if len(found) < len(results):
            if any(trial in self.failed for trial in cell.trials):
                self._give_up(cell, "a trial failed")
            return None
        if cell.trials not in self.chosen:
            try:
                choice = choice_of(found)
            except InputError as error:
                self._give_up(cell, str(error))
                return None
            self.chosen[cell.trials], first = choice["chosen"], cell.trials[0]
            show(choice_table(choice), tuned=[choice])
            if self._claim(first):
                write_result((self.results / first.place).parents[2] / CHOICE_FILE, choice)
                self._release(first)
        return replace(cell, trials=(), changes=(*cell.changes, *self.chosen[cell.trials]))

    def _take_from_trial(self, cell: Cell, chosen: Cell) -> bool:
        """Return whether the chosen trial is a cell's own run, and its result that of the cell."""
        record = self._record(chosen)
        for trial in cell.trials:
            content = self._result(trial)
            if content is not None and "failure" not in content and content["settings"] == record:
                self._write(chosen, {**content, **row_of(chosen)})
                self._count(f"{cell}: the same run as {trial}")
                return True
        return False

    def _give_up(self, cell: Cell, reason: str) -> None:
        self.failed[cell] = reason
        self.waiting.remove(cell)

    def _count(self, text: str) -> None:
        """Show that a cell has ended, with words about it."""
        self.stage.total = self.to_run
        self.stage.complete(1, text)

    def _fail(self, cell: Cell) -> None:
        place = self._place(cell)
        diverged = failure_of(place / RUN_FOLDER, cell) if cell.label.startswith(TRIALS) else None
        reason = runner.last_line(place / LOG_FILE)
        self.progress.note(f"{cell}: {'diverged' if diverged else 'FAILED'}, {reason}")
        self.stage.advance(1)
        if diverged is not None:
            # A result, too: this step size is too large.
            self._write(cell, diverged)
        else:
            self.failed[cell] = str(place / LOG_FILE)

    def _is_finished(self, cell: Cell) -> bool:
        """Return whether a cell has a result of its settings, and none that waits needs its model trained again."""
        return self._result(cell) is not None and all(
            self._checkpoint(each).is_file()
            for each in self.waiting
            if each.model_of == cell and self._result(each) is None
        )

    def _record(self, cell: Cell) -> dict[str, Any]:
        if cell not in self.records:
            self.records[cell] = self.settings.record(cell)
        return self.records[cell]

    def _result(self, cell: Cell) -> dict[str, Any] | None:
        if cell not in self.known:
            found = read_result(self._file(cell), self._record(cell))
            if found is None:
                return None
            self.known[cell] = found
        return self.known[cell]

    def _write(self, cell: Cell, content: dict[str, Any]) -> None:
        terms = {"budget": str(self.settings.budget), "made_by": self.made_by, "settings": self._record(cell)}
        write_result(self._file(cell), content | terms)

    def _claim(self, cell: Cell) -> bool:
        """Return whether no other command runs a cell, which none starts to until this one has released it."""
        held: list[FileLock] = []
        # Other commands may share the results, the folder of the runs, or both.
        for root in dict.fromkeys((self.results, self.folder)):
            claims = root / CLAIMS_FOLDER
            # The claims of a folder that is committed stay out of it.
            ignore = claims / ".gitignore"
            if not ignore.is_file():
                claims.mkdir(parents=True, exist_ok=True)
                ignore.write_text("*\n", encoding="utf-8")
            lock = FileLock(claims / f"{'--'.join(cell.place.parts)}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                for each in held:
                    each.release()
                return False
            held.append(lock)
        self.claims[cell] = held
        return True

    def _release(self, cell: Cell) -> None:
        for lock in self.claims.pop(cell):
            lock.release()

    def _drop_checkpoints(self, cell: Cell) -> None:
        trained = cell.model_of or cell
        left = (each for each in (*self.waiting, *self.claims, *self.failed) if each != cell)
        if not self.keep_checkpoints and not any(each.model_of == trained for each in left):
            shutil.rmtree(self._place(trained) / RUN_FOLDER / "checkpoints", ignore_errors=True)

    def _prepare(self, cell: Cell) -> None:
        # Before any cell needs the event store: no cell's time includes it.
        if cell.data in self.prepared:
            return
        log = self.folder / CELLS_FOLDER / cell.data / "prepare.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        runner.run_one(
            self._words("prepare", cell, []),
            log,
            Slot(),
            f"{cell.data} could not be prepared",
            lambda line: self.progress.update(f"preparing {cell.data}: {line}"),
        )
        self.prepared.add(cell.data)

    def _words(self, command: str, cell: Cell, further: Sequence[Path]) -> list[str]:
        files = [*self.settings.fragments(cell), *further]
        configs = [word for file in files for word in ("--config", str(file))]
        given = [f"--{key}={value}" for key, value in self.settings.arguments(cell).items()]
        return ["seqrec", command, *configs, *given, *self.settings.path_words(cell)]

    def _checkpoint(self, cell: Cell) -> Path:
        assert cell.model_of is not None
        return self._place(cell.model_of) / RUN_FOLDER / "checkpoints" / f"{cell.checkpoint}.ckpt"

    def _place(self, cell: Cell) -> Path:
        return self.folder / CELLS_FOLDER / cell.place

    def _file(self, cell: Cell) -> Path:
        return result_file(self.results, cell)
