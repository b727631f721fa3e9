"""Results of cells as small JSON: metrics of each user, costs and the curve, without the folder of the run.

U users, M metrics.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec.errors import InputError, MissingInputError, first_difference
from seqrec.evaluation.results import Results, read_results
from seqrec.experiments import is_baseline
from seqrec.experiments.grid.cells import Cell
from seqrec.files import write_text
from seqrec.runs.summary import Summary, read_summary

# Metrics of each user that a result keeps.
METRICS = ("HR@10", "NDCG@10")
# Folder of results in the folder of a grid, and the folder of a run within that of its cell.
RESULTS_FOLDER, RUN_FOLDER = "results", "run"
SCHEMA = "seqrec-cell-1"
# The end of a run after which it would train no longer, whatever its budget.
_PATIENCE = "patience"


@dataclass(frozen=True)
class UserMetrics:
    """`METRICS` of each user, in ascending order of the log's user ids.

    Attributes:
        values: (U, M) float64.
        users: Hash of the users' ids.
        targets: Hash of the users' and their held-out items' ids.

    Example:
        >>> metrics = UserMetrics(np.array([[0.0, 0.0], [1.0, 0.5], [0.0, 0.0]]), "a", "b")
        >>> metrics.as_plain()["distinct"]
        [[0.0, 0.0], [1.0, 0.5]]
        >>> UserMetrics.from_plain(metrics.as_plain()).values.tolist()
        [[0.0, 0.0], [1.0, 0.5], [0.0, 0.0]]
    """

    values: NDArray[np.float64]
    users: str
    targets: str

    @staticmethod
    def of(results: Results) -> UserMetrics:
        """Return the metrics of a run's results file."""
        frame = results.frame
        ids = frame.select("user_id").unique(maintain_order=True), frame.select("user_id", "item_id")
        hashes = (hashlib.sha256(each.write_csv().encode()).hexdigest()[:16] for each in ids)
        return UserMetrics(results.metrics(METRICS), *hashes)

    def as_plain(self) -> dict[str, Any]:
        """Return plain values for JSON: the distinct rows of values, and the number of each user's row.

        `rows` are base64 of zlib of U integers of 4 bytes, least byte first. Most users have one of few rows.
        """
        distinct, rows = np.unique(self.values, axis=0, return_inverse=True)
        packed = zlib.compress(rows.reshape(-1).astype("<u4").tobytes(), 9)
        text = base64.b64encode(packed).decode()
        about = {"metrics": list(METRICS), "users": self.users, "targets": self.targets}
        return {**about, "distinct": distinct.tolist(), "rows": text}

    @staticmethod
    def from_plain(content: dict[str, Any]) -> UserMetrics:
        """Return what `as_plain` returned plain values of."""
        rows = np.frombuffer(zlib.decompress(base64.b64decode(content["rows"])), dtype="<u4")
        return UserMetrics(np.array(content["distinct"])[rows], content["users"], content["targets"])


def result_file(results: Path, cell: Cell) -> Path:
    """Return the file of a cell's result below the folder of results."""
    # The name of a label may contain points.
    return results / cell.place.with_name(f"{cell.place.name}.json")


def write_result(file: Path, content: dict[str, Any]) -> None:
    """Write a result as JSON with a line for each key. It is written atomically: it marks the cell as finished."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in content.items())
    write_text(file, "{\n" + ",\n".join(lines) + "\n}\n")


def read_result(file: Path, record: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result of a cell, None if there is none.

    Args:
        file: Its file.
        record: Its settings, as from `Settings.record`.

    Raises:
        InputError: if the file contains the result of other settings.
    """
    if not file.is_file():
        return None
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for key, value in record.items():
        if (theirs := content["settings"].get(key)) != value:
            other = first_difference(key, theirs, value)
            raise InputError(f"{file} is the result of other settings, {other}: choose another folder, or delete it")
    return content


def row_of(cell: Cell) -> dict[str, Any]:
    """Return the columns that identify a cell."""
    return {name: getattr(cell, name) for name in ("data", "length", "model", "ablation", "label", "seed", "changes")}


def result_of(run: Path, cell: Cell, trained: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the result of a run, without the terms of its grid.

    Args:
        run: Folder of the run.
        cell: The cell that it ran.
        trained: Result of the run that trained the model, if this one only tested it: costs and curve of training
            are those.
    """
    judged = json.loads((run / "test_metrics.json").read_text(encoding="utf-8"))
    summary = read_summary(run)
    costs = _costs(run, summary, is_trained=not is_baseline(cell.model))
    if trained is not None:
        costs = {name: trained[name] for name in costs} | {"test_seconds": costs["test_seconds"]}
    return {
        "schema": SCHEMA,
        **row_of(cell),
        "protocol": judged["protocol"],
        "users": judged["users"],
        # The run's own model is first, baselines follow.
        "metrics": next(iter(judged["models"].values())),
        **costs,
        "user_metrics": UserMetrics.of(read_results(run)).as_plain(),
    }


def failure_of(run: Path, cell: Cell) -> dict[str, Any] | None:
    """Return the result of a run with a loss that stopped being finite; None if it ended for another reason."""
    try:
        error = read_summary(run).error or ""
    except InputError:
        return None
    if not error.startswith("DivergenceError"):
        return None
    return {"schema": SCHEMA, **row_of(cell), "failure": error, "validation": None}


def read_grid(folder: Path) -> list[dict[str, Any]]:
    """Return the results of a grid's cells, trials and steps of ladders left out, in the order of their places.

    Args:
        folder: Folder of results, or the folder of a grid that contains one.

    Raises:
        MissingInputError: if the folder contains none.
    """
    root = folder / RESULTS_FOLDER if (folder / RESULTS_FOLDER).is_dir() else folder
    files = sorted(root.glob("*/*/*/seed_*.json"))
    if not files:
        hint = "give a folder of seqrec benchmark paper, or of a run; if cells failed, run its command again"
        raise MissingInputError(f"no results of cells in {root}; {hint}")
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def hardware_of(summary: Summary) -> str:
    """Return the processor or GPU that a run was computed on."""
    machine = summary.hardware
    on_cpu = f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores"
    return on_cpu if summary.job["device"] == "cpu" else str(machine["gpus"][0])


def _costs(run: Path, summary: Summary, *, is_trained: bool) -> dict[str, Any]:
    """Return the costs and the curve of a run, as columns of a table."""
    peak = summary.peak_memory
    parts = ("item_table", "encoder", "other")
    curve, whole_steps = _curve(run / "metrics.csv")
    # Without the steps of an epoch that the budget cut short.
    share = whole_steps / summary.steps / summary.epochs if summary.epochs and summary.steps else None
    train_seconds = summary.seconds.get("train", 0.0)
    return {
        # Lightning counts the batches of a baseline as steps, though nothing is optimised.
        **{name: getattr(summary, name) if is_trained else 0 for name in ("epochs", "steps", "events")},
        "validation": _validation(summary, curve) if is_trained else None,
        "events_per_second": summary.events_per_second if is_trained else None,
        "train_seconds": train_seconds if is_trained else 0.0,
        "epoch_seconds": train_seconds * share if is_trained and share else None,
        "validation_seconds": summary.seconds.get("validate", 0.0),
        "test_seconds": summary.seconds.get("test", 0.0),
        # On a GPU its tensors; on a CPU the process, interpreter and libraries included.
        "peak_memory": peak["host"] if peak["device"] is None else peak["device"],
        **{f"{part.removeprefix('item_')}_parameters": summary.parameters[part] for part in parts},
        "hardware": hardware_of(summary),
        "versions": ", ".join(f"{name} {version}" for name, version in summary.versions.items()),
        "commit": None if summary.git is None else summary.git["commit"],
        "curve": curve,
    }


def _validation(summary: Summary, curve: dict[str, list[float]]) -> dict[str, Any] | None:
    """Return when validation was best, why training ended, and whether validation still rose then.

    It still rose if the last validation was the best, and training ended for another reason than patience.
    """
    if summary.best is None or summary.ended is None:
        return None
    best = {name: summary.best[name] for name in ("metric", "value", "step")}
    rising = summary.ended["by"] != _PATIENCE and best["step"] == max(curve["step"], default=0)
    return {**best, "ended_by": summary.ended["by"], "rising": rising}


def _curve(file: Path) -> tuple[dict[str, list[float]], int]:
    """Return validation metrics by the update after which they were computed, and the updates of complete epochs."""
    names = {"step": "step", "epoch": "epoch", **{name: f"val_{name}" for name in METRICS}}
    curve: dict[str, list[float]] = {name: [] for name in names}
    whole_steps = 0
    if not file.is_file():
        return curve, whole_steps
    with file.open(encoding="utf-8", newline="") as lines:
        for line in csv.DictReader(lines):
            # The log counts from 0.
            line |= {name: str(int(line[name]) + 1) for name in ("step", "epoch") if line.get(name)}
            if line.get("train_loss_epoch"):
                whole_steps = int(line["step"])
            if line.get(f"val_{METRICS[0]}"):
                for name, column in names.items():
                    curve[name].append(round(float(line[column]), 6))
    curve |= {name: [int(value) for value in curve[name]] for name in ("step", "epoch")}
    return curve, whole_steps
