"""What came of a sweep: a table for people, one for programs, and the best config."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from seqrec.errors import InputError
from seqrec.experiments.sweep.package import optuna
from seqrec.experiments.sweep.settings import SweepSettings
from seqrec.experiments.sweep.study import REASON, REPEATS
from seqrec.runs.summary import read_summary

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

BEST_NAME, TABLE_NAME = "best.yaml", "trials.csv"
REPORTER = "TrialReporter"


def trial_folder(settings: SweepSettings, number: int) -> Path:
    """Folder of a trial's run."""
    return Path(settings.folder) / f"trial_{number:04d}"


def write_best_config(study: Study, settings: SweepSettings) -> FrozenTrial:
    """Write the config of the best trial, as a run of its own has it.

    Returns:
        The trial.

    Raises:
        InputError: no trial came to its end.
    """
    if not study.get_trials(deepcopy=False, states=(optuna().trial.TrialState.COMPLETE,)):
        raise InputError(f"no trial of the sweep in {settings.folder} came to its end; {TABLE_NAME} says why")
    best = study.best_trial
    file = trial_folder(settings, best.number) / "config.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    trainer = config["trainer"]
    others = [each for each in trainer["callbacks"] if not each["class_path"].endswith(f".{REPORTER}")]
    trainer["callbacks"] = others or None
    name = Path(settings.folder).name
    trainer["logger"] = {"class_path": "seqrec.RunFolder", "init_args": {"name": f"{name}_best"}}
    where = f"trial {best.number} of the sweep in {settings.folder}"
    text = f"# {where}: {settings.metric} {best.value:.6f}\n" + yaml.safe_dump(config, sort_keys=False)
    (Path(settings.folder) / BEST_NAME).write_text(text, encoding="utf-8")
    return best


def rows_of(study: Study, settings: SweepSettings) -> list[dict[str, Any]]:
    """Trials as rows: `trial`, `state`, the metric, `epochs`, `seconds` of training, the parameters and a `note`."""
    return [_row(trial, settings) for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def write_table(rows: list[dict[str, Any]], settings: SweepSettings) -> None:
    """Write `trials.csv` into the sweep's folder."""
    with (Path(settings.folder) / TABLE_NAME).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def table_text(rows: list[dict[str, Any]]) -> str:
    """Rows in aligned columns."""
    cells = [[_cell(value) for value in row.values()] for row in rows]
    lines = [list(rows[0]), *cells]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _row(trial: FrozenTrial, settings: SweepSettings) -> dict[str, Any]:
    values = list(trial.intermediate_values.values())
    best = max if settings.direction == "maximize" else min
    note = trial.user_attrs.get(REASON, "")
    if trial.state.name == "FAIL" and not note:
        note = "killed"
    if REPEATS in trial.user_attrs:
        note = f"{note}; repeats trial {trial.user_attrs[REPEATS]}".removeprefix("; ")
    try:
        summary = read_summary(trial_folder(settings, trial.number))
        epochs, seconds = summary.epochs, round(summary.seconds.get("train", 0.0), 1)
    except InputError:
        epochs, seconds = 0, 0.0
    return {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        settings.metric: best(values) if values else None,
        "epochs": epochs,
        "seconds": seconds,
        **{key: trial.params.get(key) for key in settings.parameters},
        "note": note,
    }


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
