"""What a finished cell has to say, and all cells of a folder as Parquet."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from seqrec.errors import MissingInputError
from seqrec.evaluation.results.file import FILE_NAME as RANKS_FILE
from seqrec.experiments.grid.cells import Cell, is_baseline
from seqrec.runs import Summary
from seqrec.runs.summary import read_summary

if TYPE_CHECKING:
    import polars

RESULT_FILE = "result.json"
RUN_FOLDER = "run"
# Gathered from all cells: one row a cell and metric, and one a cell, epoch and metric.
RESULTS_FILE = "results.parquet"
CURVES_FILE = "curves.parquet"
CELL_COLUMNS = get_type_hints(Cell)
# Said, since runs that end within their first epoch may leave no curve to tell them.
CURVE_COLUMNS = {**CELL_COLUMNS, "epoch": int, "step": int, "metric": str, "value": float}


def is_finished(folder: Path, digest: str) -> bool:
    """Whether a cell's folder holds the results of its settings."""
    found = _read(folder)
    return found is not None and found["digest"] == digest and (folder / RUN_FOLDER / RANKS_FILE).is_file()


def write_result(folder: Path, cell: Cell, **terms: Any) -> dict[str, Any]:
    """Gather what a cell's run has left in its folder; the file is written at once and last, so it says "finished".

    Args:
        folder: The cell's.
        cell: The cell.
        **terms: What else stands in the file, such as its digest and commands.

    Returns:
        The content.
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
        # The run's own model stands first, the popularity baseline behind it.
        "metrics": next(iter(judged["models"].values())),
        "curve": list(_curve(run / "metrics.csv")),
    }
    partial = folder / f"{RESULT_FILE}.partial"
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / RESULT_FILE)
    return content


def gather(folder: Path) -> None:
    """Write the Parquet files of a grid from the results of all its cells, in the order of their names.

    Args:
        folder: The grid's.
    """
    import polars

    rows: list[dict[str, Any]] = []
    points: list[dict[str, Any]] = []
    for file in sorted((folder / "cells").rglob(RESULT_FILE)):
        content = _read(file.parent)
        assert content is not None
        metrics, curve = content.pop("metrics"), content.pop("curve")
        content |= {"place": file.parent.relative_to(folder).as_posix()}
        rows += [{**content, "metric": name, "value": value} for name, value in metrics.items()]
        points += [{**{name: content[name] for name in CELL_COLUMNS}, **point} for point in curve]
    results = polars.DataFrame(rows, infer_schema_length=None)
    curves = polars.DataFrame(points, schema=CURVE_COLUMNS)
    for name, frame in ((RESULTS_FILE, results), (CURVES_FILE, curves)):
        partial = folder / f"{name}.partial"
        frame.write_parquet(partial)
        os.replace(partial, folder / name)


def read_grid(folder: Path) -> tuple[polars.DataFrame, polars.DataFrame]:
    """Results and curves of a grid.

    Returns:
        Both as they were gathered; results also have `epoch_seconds`, of training an epoch, null where none was whole.

    Raises:
        MissingInputError: the folder holds none, or no cell of it is finished.
    """
    import polars

    file = folder / RESULTS_FILE
    if not file.is_file():
        raise MissingInputError(f"no {RESULTS_FILE} in {folder}; give a folder of seqrec benchmark paper")
    results = polars.read_parquet(file)
    if results.is_empty():
        raise MissingInputError(
            f"no cell of {folder} is finished; run the command again that made it, and see the log.txt of its cells"
        )
    curves = polars.read_parquet(folder / CURVES_FILE)
    ends = curves.group_by(*CELL_COLUMNS, epochs="epoch").agg(whole_steps=polars.col("step").max())
    results = results.join(ends, on=[*CELL_COLUMNS, "epochs"], how="left", maintain_order="left")
    # Without the share of steps in an epoch that the budget cut.
    share = polars.col("whole_steps") / polars.col("steps")
    seconds = polars.col("train_seconds") * share / polars.col("epochs")
    return results.with_columns(epoch_seconds=seconds).drop("whole_steps"), curves


def _costs(summary: Summary, *, trained: bool) -> dict[str, Any]:
    """What a run took, as columns of a table."""
    machine, peak = summary.hardware, summary.peak_memory
    on_cpu = f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores"
    return {
        # Lightning counts the batches of a baseline as steps, though nothing is optimised.
        "epochs": summary.epochs if trained else 0,
        "steps": summary.steps if trained else 0,
        "events": summary.events if trained else 0,
        "events_per_second": summary.events_per_second if trained else None,
        "train_seconds": summary.seconds.get("train", 0.0) if trained else 0.0,
        "validation_seconds": summary.seconds.get("validate", 0.0),
        "test_seconds": summary.seconds.get("test", 0.0),
        # On a GPU its tensors; on a CPU all that the process holds, interpreter and libraries included.
        "peak_memory": peak["host"] if peak["device"] is None else peak["device"],
        "table_parameters": summary.parameters["item_table"],
        "encoder_parameters": summary.parameters["encoder"],
        "other_parameters": summary.parameters["other"],
        "hardware": on_cpu if summary.job["device"] == "cpu" else machine["gpus"][0],
        "versions": ", ".join(f"{name} {version}" for name, version in summary.versions.items()),
        "commit": None if summary.git is None else summary.git["commit"],
    }


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return content


def _curve(file: Path) -> Iterator[dict[str, Any]]:
    """Validation metrics and training loss after each epoch, as the run's log has them."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8", newline="") as lines:
        for line in csv.DictReader(lines):
            for name, value in line.items():
                if value and (name.startswith("val_") or name == "train_loss_epoch"):
                    # The log counts the epochs that were over before.
                    place = {"epoch": int(line["epoch"]) + 1, "step": int(line["step"]) + 1}
                    yield {**place, "metric": name.removeprefix("val_"), "value": float(value)}
