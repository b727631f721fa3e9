"""Runs the trials of a sweep, one behind the other."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout

from seqrec.errors import InputError
from seqrec.experiments.sweep.package import optuna
from seqrec.experiments.sweep.results import (
    BEST_NAME,
    rows_of,
    table_text,
    trial_folder,
    write_best_config,
    write_table,
)
from seqrec.experiments.sweep.settings import SweepSettings
from seqrec.experiments.sweep.study import PRUNED, REASON, ask, ended, open_study, repeat_killed
from seqrec.runs.summary import read_summary

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial

LOCK_NAME = ".lock"


def run_sweep(settings: SweepSettings, fit: Callable[[Sequence[str]], object]) -> str:
    """Run the trials that a sweep still lacks, and say what came of all.

    Trials that were running when the sweep was killed are marked as failed and repeated. A trial's value is its best
    metric of all epochs, as its best checkpoint has it. A trial that fails is left out, and the sweep goes on; if the
    first one does, the sweep ends, as all would fail.

    Args:
        settings: The sweep.
        fit: Runs the words of a `seqrec` command.

    Returns:
        The table of trials and where the best config is.

    Raises:
        InputError: settings that cannot be, another process runs this sweep, or no trial came to an end.
    """
    settings.check()
    Path(settings.folder).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(settings.folder) / LOCK_NAME)
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"another process runs the sweep in {settings.folder}: wait for it, or stop it"
        ) from None
    with held:
        settings.write()
        with open_study(settings) as study:
            if killed := repeat_killed(study):
                print(f"trials that were killed and are repeated: {', '.join(map(str, killed))}")
            while (done := len(ended(study))) < settings.trials:
                _run_trial(study, settings, fit, first=done == 0)
            rows = rows_of(study, settings)
            write_table(rows, settings)
            best = write_best_config(study, settings)
            file = Path(settings.folder) / BEST_NAME
            return f"{table_text(rows)}\nbest: trial {best.number}, seqrec fit --config {file}"


def trial_words(settings: SweepSettings, number: int, parameters: dict[str, Any]) -> list[str]:
    """The command of a trial, without `seqrec`."""
    run = {
        "class_path": "seqrec.RunFolder",
        "init_args": {
            "save_dir": settings.folder,
            "name": "",
            "version": trial_folder(settings, number).name,
        },
    }
    reporter = {
        "class_path": "seqrec.experiments.sweep.TrialReporter",
        "init_args": {"folder": settings.folder, "trial": number},
    }
    mode = settings.direction[:3]
    watched = {
        f"{callback}.{key}": value
        for callback in ("checkpoint", "early_stopping")
        for key, value in {"monitor": settings.metric, "mode": mode}.items()
    }
    words = ["fit"]
    for config in settings.configs:
        words += ["--config", config]
    for key, value in {**watched, **settings.fixed, **parameters, "trainer.logger": run}.items():
        words.append(f"--{key}={_word(value)}")
    return [*words, f"--trainer.callbacks+={json.dumps(reporter)}"]


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _run_trial(
    study: Study, settings: SweepSettings, fit: Callable[[Sequence[str]], object], *, first: bool
) -> None:
    trial = ask(study, settings)
    states = optuna().trial.TrialState
    words = trial_words(settings, trial.number, trial.params)
    print(f"\ntrial {trial.number}: {_in_words(trial.params)}", flush=True)
    try:
        fit(words)
    except (Exception, SystemExit) as error:
        # What the command line refuses ends with status 2; any other exit was asked for from outside.
        if isinstance(error, SystemExit) and error.code != 2:
            raise
        reason = _reason(settings, trial.number, error)
        if first:
            study.tell(trial, state=states.FAIL)
            raise InputError(f"the first trial failed, as the others would: {reason}") from error
        trial.set_user_attr(REASON, reason)
        study.tell(trial, state=states.FAIL)
        print(f"trial {trial.number} failed: {reason}", flush=True)
    else:
        _tell_end(study, settings, trial)
    # Models hold each other in cycles, and their memory with them.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _tell_end(study: Study, settings: SweepSettings, trial: Trial) -> None:
    states = optuna().trial.TrialState
    frozen = study.get_trials(deepcopy=False)[trial.number]
    values = list(frozen.intermediate_values.values())
    if not values:
        raise InputError(
            "the trial ended without a validation: let it train for an epoch, and validate behind it"
        )
    if PRUNED in frozen.user_attrs:
        study.tell(trial, state=states.PRUNED)
        print(f"trial {trial.number} pruned after epoch {frozen.user_attrs[PRUNED]}", flush=True)
        return
    value = max(values) if settings.direction == "maximize" else min(values)
    study.tell(trial, value)
    print(f"trial {trial.number}: {settings.metric} {value:.4f}", flush=True)


def _reason(settings: SweepSettings, number: int, error: BaseException) -> str:
    """Why a trial failed: what its run says, or what stopped it before it had a folder."""
    try:
        told = read_summary(trial_folder(settings, number)).error
    except InputError:
        told = None
    if told is None and isinstance(error, SystemExit):
        return "its command was refused, as said above"
    return told or f"{type(error).__name__}: {error}"


def _in_words(parameters: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in parameters.items()
    )
