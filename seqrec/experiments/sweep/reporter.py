"""What tells a sweep how a trial is doing, from within the trial's run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning.pytorch as pl

from seqrec.errors import InputError
from seqrec.experiments.sweep.package import optuna
from seqrec.experiments.sweep.settings import SweepSettings
from seqrec.experiments.sweep.study import PRUNED, open_study

if TYPE_CHECKING:
    from optuna.study import Study


class TrialReporter(pl.Callback):
    """Reports the sweep's metric behind each epoch with a validation, and stops the run where the sweep prunes it.

    The first rank alone opens the study. A trial that has ended, as where its run is resumed by hand, is left alone.

    Args:
        folder: The sweep's folder.
        trial: Number of the trial.

    Attributes:
        pruned: Whether the run was stopped.
    """

    def __init__(self, folder: str, trial: int) -> None:
        self.folder = folder
        self.trial = trial
        self.pruned = False
        self._validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember that there is something to report."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report, and stop if the trial is pruned.

        Raises:
            InputError: validation does not log the metric.
        """
        if not self._validated:
            return
        self._validated = False
        settings = SweepSettings.read(self.folder)
        values = trainer.callback_metrics
        if settings.metric not in values:
            known = ", ".join(sorted(name for name in values if name.startswith("val_")))
            raise InputError(f"metric={settings.metric!r} is not what validation logs; it logs {known}")
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
