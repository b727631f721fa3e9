"""Run the cells of a grid that are not finished, and gather the results of all as Parquet."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_type_hints

import polars
import yaml

from seqrec.data.progress import Progress
from seqrec.errors import InputError, MissingInputError
from seqrec.evaluation.results.file import FILE_NAME as RANKS_FILE
from seqrec.experiments import is_baseline, runner
from seqrec.experiments.grid.cells import Cell, Settings
from seqrec.experiments.runner import Slot
from seqrec.files import move, write_json, write_parquet
from seqrec.runs import Summary
from seqrec.runs.summary import read_summary

LOG_FILE = "log.txt"
CONFIG_FILE = "cell.yaml"
RESULT_FILE = "result.json"
RUN_FOLDER = "run"
# Gathered from all cells: one row per cell and metric, and one per cell, epoch and metric.
RESULTS_FILE = "results.parquet"
CURVES_FILE = "curves.parquet"
CELL_COLUMNS = get_type_hints(Cell)
# Runs that end within their first epoch may have no curve to infer the types from.
CURVE_COLUMNS = {**CELL_COLUMNS, "epoch": int, "step": int, "metric": str, "value": float}


def run_grid(
    folder: Path,
    cells: Sequence[Cell],
    settings: Settings,
    slots: Sequence[Slot],
    progress: Progress,
    made_by: str,
    *,
    keep_checkpoints: bool,
) -> None:
    """Run the cells that are not finished, in their order, and gather the results of all that are.

    A cell that was stopped starts anew: its times are those of one complete run. A cell of other settings is run again
    in the same folder. `made_by` is the command that makes the grid, for its tables. With `keep_checkpoints` those of
    finished cells stay.

    Raises:
        InputError: if another command is running in the folder, or cells fail; the others are finished then.
    """
    with runner.alone_in(folder):
        waiting = [cell for cell in cells if not is_finished(folder / cell.place, settings.digest(cell))]
        progress.note(f"{len(cells)} cells, {len(cells) - len(waiting)} of them finished before")
        for data in dict.fromkeys(cell.data for cell in waiting):
            _prepare(folder, next(cell for cell in waiting if cell.data == data), settings)
        failed, finished = list[Cell](), list[Cell]()
        began: dict[Cell, float] = {}

        def start(cell: Cell, slot: Slot) -> subprocess.Popen[bytes]:
            began[cell] = time.monotonic()
            return _start(folder / cell.place, cell, settings, slot)

        def finish(cell: Cell, process: subprocess.Popen[bytes]) -> None:
            place = folder / cell.place
            count = f"[{len(failed) + len(finished) + 1}/{len(waiting)}] {cell}"
            if process.returncode != 0:
                failed.append(cell)
                progress.note(f"{count}: FAILED, {runner.last_line(place / LOG_FILE)}")
                return
            finished.append(cell)
            terms = {"digest": settings.digest(cell), "budget": str(settings.budget), "made_by": made_by}
            command = " ".join(_words("fit", cell, settings, [place / CONFIG_FILE]))
            result = write_result(place, cell, **terms, command=command)
            if not keep_checkpoints:
                shutil.rmtree(place / RUN_FOLDER / "checkpoints", ignore_errors=True)
            gather(folder)
            seconds = time.monotonic() - began[cell]
            progress.note(f"{count}: NDCG@10 {result['metrics']['NDCG@10']:.4f}, {seconds:,.0f} s")

        runner.run_all(waiting, slots, start, finish)
        gather(folder)
    if failed:
        logs = "; ".join(f"{cell}: {folder / cell.place / LOG_FILE}" for cell in failed)
        count = f"{len(failed)} of {len(cells)} cells failed"
        raise InputError(f"{count}, see {logs}; the same command tries them again")


def _prepare(folder: Path, cell: Cell, settings: Settings) -> None:
    # Before any cell needs the event store: no cell's time includes it.
    log = folder / "cells" / cell.data / "prepare.txt"
    log.parent.mkdir(parents=True, exist_ok=True)

    def finish(words: list[str], process: subprocess.Popen[bytes]) -> None:
        if process.returncode != 0:
            reason = runner.last_line(log)
            raise InputError(f"{cell.data} could not be prepared: {reason} (full log: {log})")

    words = _words("prepare", cell, settings, [])
    runner.run_all([words], [Slot()], lambda words, slot: runner.start(words, log, slot.environment), finish)


def _start(place: Path, cell: Cell, settings: Settings, slot: Slot) -> subprocess.Popen[bytes]:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    run = {"save_dir": str(place), "version": RUN_FOLDER, "tensorboard": False}
    config = settings.config(cell)
    logger = {"class_path": "seqrec.RunFolder", "init_args": run}
    # Rows of a table share their settings, whatever the log.
    config["recipe"] = False
    config["trainer"] |= {"accelerator": slot.accelerator, "devices": 1, "logger": logger}
    file = place / CONFIG_FILE
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return runner.start(_words("fit", cell, settings, [file]), place / LOG_FILE, slot.environment)


def _words(command: str, cell: Cell, settings: Settings, further: Sequence[Path]) -> list[str]:
    files = [*settings.fragments(cell), *further]
    configs = [word for file in files for word in ("--config", str(file))]
    return ["seqrec", command, *configs, *settings.words(cell)]


def is_finished(folder: Path, digest: str) -> bool:
    """Return whether a cell's folder contains the results of its settings."""
    file = folder / RESULT_FILE
    if not file.is_file() or not (folder / RUN_FOLDER / RANKS_FILE).is_file():
        return False
    return bool(json.loads(file.read_text(encoding="utf-8"))["digest"] == digest)


def write_result(folder: Path, cell: Cell, **terms: Any) -> dict[str, Any]:
    """Gather the results of a cell's run and further `terms` in one file, and return its content.

    The file is written atomically and last: it marks the cell as finished.
    """
    run = folder / RUN_FOLDER
    judged = json.loads((run / "test_metrics.json").read_text(encoding="utf-8"))
    summary = read_summary(run)
    content = {
        **asdict(cell),
        **terms,
        "protocol": judged["protocol"],
        "users": judged["users"],
        **_costs(summary, trained=not is_baseline(cell.model)),
        # The run's own model is first, the popularity baseline second.
        "metrics": next(iter(judged["models"].values())),
        "curve": list(_curve(run / "metrics.csv")),
    }
    write_json(folder / RESULT_FILE, content)
    return content


def gather(folder: Path) -> None:
    """Write the Parquet files of a grid from the results of all its cells, in the order of their names."""
    rows: list[dict[str, Any]] = []
    points: list[dict[str, Any]] = []
    for file in sorted((folder / "cells").rglob(RESULT_FILE)):
        content = json.loads(file.read_text(encoding="utf-8"))
        metrics, curve = content.pop("metrics"), content.pop("curve")
        content |= {"place": file.parent.relative_to(folder).as_posix()}
        rows += [{**content, "metric": name, "value": value} for name, value in metrics.items()]
        points += [{**{name: content[name] for name in CELL_COLUMNS}, **point} for point in curve]
    results = polars.DataFrame(rows, infer_schema_length=None)
    curves = polars.DataFrame(points, schema=CURVE_COLUMNS)
    for name, frame in ((RESULTS_FILE, results), (CURVES_FILE, curves)):
        partial = folder / f"{name}.partial"
        write_parquet(frame, partial)
        move(partial, folder / name)


def read_grid(folder: Path) -> tuple[polars.DataFrame, polars.DataFrame]:
    """Return results and curves of a grid.

    Returns:
        Both as they were gathered; results also have `epoch_seconds`, of training an epoch, null if none was complete.

    Raises:
        MissingInputError: if the folder contains none, or no cell of it is finished.
    """
    file = folder / RESULTS_FILE
    if not file.is_file():
        raise MissingInputError(f"no {RESULTS_FILE} in {folder}; give a folder of seqrec benchmark paper, or of a run")
    results = polars.read_parquet(file)
    if results.is_empty():
        hint = f"run the command again that made it, and see the {LOG_FILE} of its cells"
        raise MissingInputError(f"no cell of {folder} is finished; {hint}")
    curves = polars.read_parquet(folder / CURVES_FILE)
    ends = curves.group_by(*CELL_COLUMNS, epochs="epoch").agg(whole_steps=polars.col("step").max())
    results = results.join(ends, on=[*CELL_COLUMNS, "epochs"], how="left", maintain_order="left")
    # Without the steps of an epoch that the budget cut short.
    share = polars.col("whole_steps") / polars.col("steps")
    seconds = polars.col("train_seconds") * share / polars.col("epochs")
    return results.with_columns(epoch_seconds=seconds).drop("whole_steps"), curves


def _costs(summary: Summary, *, trained: bool) -> dict[str, Any]:
    """Return the costs of a run, as columns of a table."""
    machine, peak = summary.hardware, summary.peak_memory
    parts = ("item_table", "encoder", "other")
    on_cpu = f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores"
    return {
        # Lightning counts the batches of a baseline as steps, though nothing is optimised.
        **{name: getattr(summary, name) if trained else 0 for name in ("epochs", "steps", "events")},
        "events_per_second": summary.events_per_second if trained else None,
        "train_seconds": summary.seconds.get("train", 0.0) if trained else 0.0,
        "validation_seconds": summary.seconds.get("validate", 0.0),
        "test_seconds": summary.seconds.get("test", 0.0),
        # On a GPU its tensors; on a CPU the process, interpreter and libraries included.
        "peak_memory": peak["host"] if peak["device"] is None else peak["device"],
        **{f"{part.removeprefix('item_')}_parameters": summary.parameters[part] for part in parts},
        "hardware": on_cpu if summary.job["device"] == "cpu" else machine["gpus"][0],
        "versions": ", ".join(f"{name} {version}" for name, version in summary.versions.items()),
        "commit": None if summary.git is None else summary.git["commit"],
    }


def _curve(file: Path) -> Iterator[dict[str, Any]]:
    """Yield validation metrics and training loss after each epoch, from the run's log."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8", newline="") as lines:
        for line in csv.DictReader(lines):
            for name, value in line.items():
                if value and (name.startswith("val_") or name == "train_loss_epoch"):
                    # The log counts from 0.
                    place = {"epoch": int(line["epoch"]) + 1, "step": int(line["step"]) + 1}
                    yield {**place, "metric": name.removeprefix("val_"), "value": float(value)}
