"""The study of a sweep: what was tried and what came of it, in an SQLite file that survives a kill."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from seqrec.experiments.sweep.package import optuna
from seqrec.experiments.sweep.settings import SweepSettings

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

FILE_NAME = "study.db"
NAME = "sweep"
# Attributes of trials: the number of the killed trial that one repeats; why a trial failed; where it was pruned.
REPEATS, REASON, PRUNED = "repeats", "reason", "pruned"


@contextmanager
def open_study(settings: SweepSettings) -> Iterator[Study]:
    """The study in the sweep's folder, made where there is none."""
    package = optuna()
    # It would say of each opening that the study is there already.
    package.logging.set_verbosity(package.logging.WARNING)
    file = Path(settings.folder) / FILE_NAME
    file.parent.mkdir(parents=True, exist_ok=True)
    storage = package.storages.RDBStorage(f"sqlite:///{file.resolve()}")
    try:
        yield package.create_study(
            storage=storage,
            study_name=NAME,
            direction=settings.direction,
            pruner=settings.make_pruner(),
            load_if_exists=True,
        )
    finally:
        storage.remove_session()
        storage.engine.dispose()


def repeat_killed(study: Study) -> list[int]:
    """Mark trials that were running when the sweep was killed as failed, and enqueue their parameters again.

    Returns:
        Their numbers.
    """
    states = optuna().trial.TrialState
    running = study.get_trials(deepcopy=False, states=(states.RUNNING,))
    repeated = {trial.user_attrs.get(REPEATS) for trial in study.get_trials(deepcopy=False)}
    for trial in running:
        # First, so that a kill in between loses nothing.
        if trial.number not in repeated:
            study.enqueue_trial(trial.params, user_attrs={REPEATS: trial.number})
        study.tell(trial.number, state=states.FAIL)
    return [trial.number for trial in running]


def ended(study: Study) -> list[FrozenTrial]:
    """Trials that ended by themselves: complete, pruned, or failed for a reason of their own."""
    states = optuna().trial.TrialState
    done = study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED, states.FAIL))
    return [trial for trial in done if trial.state != states.FAIL or REASON in trial.user_attrs]


def ask(study: Study, settings: SweepSettings) -> Trial:
    """The next trial: one that waits to be repeated, or the sampler's choice."""
    chosen = [trial for trial in study.get_trials(deepcopy=False) if REPEATS not in trial.user_attrs]
    study.sampler = settings.make_sampler(len(chosen))
    return study.ask(settings.distributions())
