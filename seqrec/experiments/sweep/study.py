"""The study of a sweep: its trials and their results, in an SQLite file that survives a kill."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from seqrec.errors import InputError
from seqrec.experiments.sweep.settings import FILE_NAME as SETTINGS
from seqrec.experiments.sweep.settings import SweepSettings, optuna

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

FILE_NAME = "study.db"
NAME = "sweep"
# Attributes of trials: number of the killed trial that one repeats; reason of a failure; epoch of pruning.
REPEATS, REASON, PRUNED = "repeats", "reason", "pruned"


@contextmanager
def open_study(settings: SweepSettings) -> Iterator[Study]:
    """Open the study in the sweep's folder; create it if it does not exist."""
    package = optuna()
    # It would log each time that the study exists.
    package.logging.set_verbosity(package.logging.WARNING)
    file = Path(settings.folder) / FILE_NAME
    file.parent.mkdir(parents=True, exist_ok=True)
    storage = package.storages.RDBStorage(f"sqlite:///{file.resolve()}")
    try:
        create = partial(package.create_study, storage=storage, study_name=NAME, load_if_exists=True)
        yield create(direction=settings.direction, pruner=settings.make_pruner())
    finally:
        storage.remove_session()
        storage.engine.dispose()


def repeat_killed(study: Study) -> list[int]:
    """Mark trials that were running at a kill as failed, enqueue them again, and return their numbers."""
    states = optuna().trial.TrialState
    running = study.get_trials(deepcopy=False, states=(states.RUNNING,))
    repeated = {trial.user_attrs.get(REPEATS) for trial in study.get_trials(deepcopy=False)}
    for trial in running:
        # First: a kill in between loses nothing.
        if trial.number not in repeated:
            study.enqueue_trial(trial.params, user_attrs={REPEATS: trial.number})
        study.tell(trial.number, state=states.FAIL)
    return [trial.number for trial in running]


def ended(study: Study) -> list[FrozenTrial]:
    """Return the trials that were not killed: complete, pruned, or failed for a reason of their own."""
    states = optuna().trial.TrialState
    done = study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED, states.FAIL))
    return [trial for trial in done if trial.state != states.FAIL or REASON in trial.user_attrs]


def ask(study: Study, settings: SweepSettings) -> Trial:
    """Return the next trial: one that is to be repeated, or the sampler's choice."""
    chosen = [trial for trial in study.get_trials(deepcopy=False) if REPEATS not in trial.user_attrs]
    study.sampler = settings.make_sampler(len(chosen))
    return study.ask(settings.distributions())


class TrialReporter(pl.Callback):
    """Report the sweep's metric after each epoch with a validation, and stop the run if the sweep prunes it.

    Only the first rank opens the study. A trial that has ended is left unchanged, for example if its run is resumed by
    hand.

    Args:
        folder: The sweep's folder.
        trial: Number of the trial.

    Attributes:
        pruned: Whether the run was stopped.

    Example:
        >>> TrialReporter("sweep", trial=3).pruned
        False
    """

    def __init__(self, folder: str, trial: int) -> None:
        self.folder = folder
        self.trial = trial
        self.pruned = False
        self._validated = self._is_there = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Log if the sweep is not there, as for a trial that is resumed by hand from another folder."""
        self._is_there = (Path(self.folder) / SETTINGS).is_file()
        if stage == "fit" and not self._is_there:
            rank_zero_info(f"there is no sweep in {self.folder} here: the run trains as a run of its own")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record that validation has logged a value."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report, and stop if the trial is pruned.

        Raises:
            InputError: if validation does not log the metric.
        """
        if not (self._validated and self._is_there):
            return
        self._validated = False
        settings = SweepSettings.read(self.folder)
        values = trainer.callback_metrics
        if settings.metric not in values:
            known = ", ".join(sorted(name for name in values if name.startswith("val_")))
            raise InputError(f"metric={settings.metric!r} is not logged by validation; it logs {known}")
        stop = False
        if trainer.is_global_zero:
            with open_study(settings) as study:
                stop = self._report(study, float(values[settings.metric]), trainer.current_epoch)
        if trainer.strategy.broadcast(stop):
            self.pruned = trainer.should_stop = True

    def _report(self, study: Study, value: float, epoch: int) -> bool:
        package = optuna()
        (mine,) = (trial for trial in study.get_trials(deepcopy=False) if trial.number == self.trial)
        if mine.state != package.trial.TrialState.RUNNING:
            return False
        trial = package.trial.Trial(study, mine._trial_id)
        trial.report(value, epoch)
        if not trial.should_prune():
            return False
        trial.set_user_attr(PRUNED, epoch)
        return True
