"""Run the trials of a sweep one after the other, and write its table and its best config."""

from __future__ import annotations

import csv
import gc
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from seqrec.data.output import show
from seqrec.data.progress import STATUS, Progress, print_line
from seqrec.data.report_table import report_table
from seqrec.errors import InputError
from seqrec.experiments.runner import Call, Slot, alone_in, run_all
from seqrec.experiments.sweep.settings import SweepSettings, optuna
from seqrec.experiments.sweep.study import PRUNED, REASON, REPEATS, ask, ended, open_study, repeat_killed
from seqrec.runs.summary import read_summary

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

Fit = Callable[[Sequence[str]], object]
BEST_NAME, TABLE_NAME, REPORTER = "best.yaml", "trials.csv", "TrialReporter"


def run_sweep(settings: SweepSettings, fit: Fit) -> str:
    """Run the trials that a sweep still lacks; show and return the table of all and the file of the best config.

    Trials that were running when the sweep was killed are marked as failed and repeated. A trial's value is its best
    metric of all epochs, which is that of its best checkpoint. A trial that fails is left out and the sweep continues.
    If the first one fails, the sweep ends, because the others would fail, too. `fit` runs the words of a `seqrec`
    command in this process.

    Raises:
        InputError: if a setting is wrong, another process runs this sweep, or no trial completes.
    """
    settings.check()
    with alone_in(Path(settings.folder)):
        settings.write()
        with open_study(settings) as study:
            if killed := repeat_killed(study):
                print_line(f"trials that were killed and are repeated: {', '.join(map(str, killed))}")

            def trials() -> Iterator[Trial]:
                while len(ended(study)) < settings.trials:
                    yield ask(study, settings)

            def start(trial: Trial, _: Slot) -> Call:
                return _call(fit, study, settings, trial)

            done = len(ended(study))
            stage = Progress(STATUS).stage("sweep", settings.trials, done=done, unit="trials")

            def finish(trial: Trial, call: Call) -> None:
                _finish(study, settings, trial, call.failure)
                stage.complete(1)

            run_all(trials(), [Slot()], start, finish)
            stage.end()
            finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
            rows = [_row(trial, settings) for trial in finished]
            _write_table(rows, settings)
            best = _write_best_config(study, settings)
            file = Path(settings.folder) / BEST_NAME
            table = report_table(list(rows[0]), [list(map(_cell, row.values())) for row in rows], words=len(rows[0]))
            line = f"best: trial {best.number}, seqrec fit --config {file}"
            show(table, line, trials=rows, best={"trial": best.number, "config": str(file)})
            return f"{table}\n{line}"


def _call(fit: Fit, study: Study, settings: SweepSettings, trial: Trial) -> Call:
    chosen = ", ".join(f"{key} {_cell(value)}" for key, value in trial.params.items())
    print_line(f"\ntrial {trial.number}: {chosen}")
    failure = None
    try:
        fit(_words(settings, trial.number, trial.params))
    except (Exception, SystemExit) as error:
        # A command that is refused ends with status 2; any other exit was requested from outside.
        if isinstance(error, SystemExit) and error.code != 2:
            raise
        failure = _reason(settings, trial.number, error)
        if not ended(study):
            study.tell(trial, state=optuna().trial.TrialState.FAIL)
            raise InputError(f"the first trial failed, as the others would: {failure}") from error
    # Models refer to each other in cycles, which keeps their memory.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Call(failure)


def _words(settings: SweepSettings, number: int, parameters: dict[str, Any]) -> list[str]:
    run = {"save_dir": settings.folder, "name": "", "version": _trial_folder(settings, number).name}
    arguments = {"folder": settings.folder, "trial": number}
    reporter = {"class_path": f"seqrec.experiments.sweep.{REPORTER}", "init_args": arguments}
    watched = {
        f"{callback}.{key}": value
        for callback in ("checkpoint", "early_stopping")
        for key, value in {"monitor": settings.metric, "mode": settings.direction[:3]}.items()
    }
    logger = {"trainer.logger": {"class_path": "seqrec.RunFolder", "init_args": run}}
    words = ["fit", *(word for config in settings.configs for word in ("--config", config))]
    for key, value in {**watched, **settings.fixed, **parameters, **logger}.items():
        words.append(f"--{key}={value if isinstance(value, str) else json.dumps(value)}")
    return [*words, f"--trainer.callbacks+={json.dumps(reporter)}"]


def _finish(study: Study, settings: SweepSettings, trial: Trial, failure: str | None) -> None:
    states = optuna().trial.TrialState
    if failure is not None:
        trial.set_user_attr(REASON, failure)
        study.tell(trial, state=states.FAIL)
        print_line(f"trial {trial.number} failed: {failure}")
        return
    frozen = study.get_trials(deepcopy=False)[trial.number]
    value = _best_value(frozen, settings)
    if value is None:
        raise InputError("the trial ended without a validation: let it train for an epoch and validate")
    if PRUNED in frozen.user_attrs:
        study.tell(trial, state=states.PRUNED)
        print_line(f"trial {trial.number} pruned after epoch {frozen.user_attrs[PRUNED]}")
        return
    study.tell(trial, value)
    print_line(f"trial {trial.number}: {settings.metric} {value:.4f}")


def _reason(settings: SweepSettings, number: int, error: BaseException) -> str:
    # From the run's summary, or if the trial has none, from the error.
    try:
        reason = read_summary(_trial_folder(settings, number)).error
    except InputError:
        reason = None
    if reason is None and isinstance(error, SystemExit):
        return "its command was refused, see above"
    return reason or f"{type(error).__name__}: {error}"


def _best_value(trial: FrozenTrial, settings: SweepSettings) -> float | None:
    best = max if settings.direction == "maximize" else min
    return best(trial.intermediate_values.values(), default=None)


def _trial_folder(settings: SweepSettings, number: int) -> Path:
    return Path(settings.folder) / f"trial_{number:04d}"


def _write_best_config(study: Study, settings: SweepSettings) -> FrozenTrial:
    # The config of the best trial, as for a run of its own.
    if not study.get_trials(deepcopy=False, states=(optuna().trial.TrialState.COMPLETE,)):
        raise InputError(f"no trial of the sweep in {settings.folder} completed; see {TABLE_NAME}")
    best = study.best_trial
    file = _trial_folder(settings, best.number) / "config.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    trainer = config["trainer"]
    others = [each for each in trainer["callbacks"] if not each["class_path"].endswith(f".{REPORTER}")]
    trainer["callbacks"] = others or None
    name = Path(settings.folder).name
    trainer["logger"] = {"class_path": "seqrec.RunFolder", "init_args": {"name": f"{name}_best"}}
    title = f"# trial {best.number} of the sweep in {settings.folder}: {settings.metric} {best.value:.6f}\n"
    text = title + yaml.safe_dump(config, sort_keys=False)
    (Path(settings.folder) / BEST_NAME).write_text(text, encoding="utf-8")
    return best


def _row(trial: FrozenTrial, settings: SweepSettings) -> dict[str, Any]:
    note = trial.user_attrs.get(REASON, "")
    if trial.state.name == "FAIL" and not note:
        note = "killed"
    if REPEATS in trial.user_attrs:
        note = f"{note}; repeats trial {trial.user_attrs[REPEATS]}".removeprefix("; ")
    try:
        summary = read_summary(_trial_folder(settings, trial.number))
        epochs, seconds = summary.epochs, round(summary.seconds.get("train", 0.0), 1)
    except InputError:
        epochs, seconds = 0, 0.0
    return {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        settings.metric: _best_value(trial, settings),
        "epochs": epochs,
        "seconds": seconds,
        **{key: trial.params.get(key) for key in settings.parameters},
        "note": note,
    }


def _write_table(rows: list[dict[str, Any]], settings: SweepSettings) -> None:
    with (Path(settings.folder) / TABLE_NAME).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
