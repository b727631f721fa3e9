"""Checkpoints from which a stopped or killed run resumes."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from seqrec.catalogue.distributed import ranks_where
from seqrec.errors import DivergenceError, InputError, LockedError, StoppedError
from seqrec.runs.checkpoints import NEWEST, all_finite, keeping_points
from seqrec.runs.job import FolderLock, StopSignals, requeue, requeue_signal
from seqrec.runs.lightning_internals import cluster_environment, is_accumulating, validation_follows

# Number of steps between comparisons of clocks, each of which makes several processes wait for each other.
STEPS_BETWEEN_CLOCKS = 20
# A validation that ends within this time is finished first, because a run can resume from the epoch's end after it.
VALIDATION_SECONDS = 10.0


class ResumePoints(Checkpoint):
    """Saves the run's state as `checkpoints/last.ckpt` every few steps or minutes, and at each epoch's end.

    A run that resumes from there trains on the same remaining batches, with the same randomness and validations, as
    if it had not stopped. The file is replaced in one move and therefore always complete. Earlier states stay as
    `last-1.ckpt`, .., and are used if the newest is damaged. None is written while gradients accumulate, nor just
    before a validation, which resuming would skip.

    On SIGTERM, Ctrl-C or SIGUSR1 the run saves after the present step, prints the command to resume with, and ends
    with status 128 + the signal's number: 143 for SIGTERM. A validation gets 10 seconds to finish; after that the run
    ends with its newest point. Several processes stop at the same step. A SLURM job that gets the signal before its
    end (`#SBATCH --signal=USR1@120`) is queued again, and `seqrec fit` then resumes by itself.

    The folder is locked while the job trains.

    Args:
        every_n_steps: Optimiser steps between points within an epoch; None for none.
        every_minutes: Minutes between points within an epoch; None for none.
        keep: Number of points to keep, the newest among them.
        dirpath: Folder of the files; None is `checkpoints` in the run's folder.

    Raises:
        InputError: if a distance or number is not positive.
        LockedError: if another job trains in the folder when training starts.
        StoppedError: if the run was asked to stop; its state is saved.

    Example:
        >>> from seqrec import ResumePoints
        >>> ResumePoints(every_n_steps=500, dirpath="checkpoints").path.name
        'last.ckpt'
    """

    def __init__(
        self,
        *,
        every_n_steps: int | None = None,
        every_minutes: float | None = 10.0,
        keep: int = 2,
        dirpath: str | None = None,
    ) -> None:
        for name, value in {"every_n_steps": every_n_steps, "every_minutes": every_minutes}.items():
            if value is not None and value <= 0:
                raise InputError(f"{name}={value} must be positive, or null for none")
        if keep < 1:
            raise InputError(f"keep={keep} must be at least 1: the newest point")
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self.keep = keep
        self.dirpath = dirpath
        self._saved_at = 0.0
        self._saved_step = -1
        self._signals = StopSignals()
        self._lock: FolderLock | None = None
        self._config: Path | None = None

    @property
    def path(self) -> Path | None:
        """Path of the newest point, written or not; None before the run has a folder."""
        return None if self.dirpath is None else Path(self.dirpath) / NEWEST

    @property
    def resume_command(self) -> str | None:
        """Command that resumes the run; None without a point, or if `seqrec fit` did not start it."""
        if self.path is None or not self.path.is_file() or self._config is None or not self._config.is_file():
            return None
        return shlex.join(["seqrec", "fit", "--config", str(self._config), "--ckpt_path", str(self.path)])

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Choose the folder, and lock it for training."""
        # All processes must read `log_dir`.
        folder = trainer.log_dir or trainer.default_root_dir
        self._config = Path(folder) / "config.yaml"
        if self.dirpath is None:
            self.dirpath = str(Path(folder) / "checkpoints")
        if stage == "fit" and not getattr(trainer, "fast_dev_run", False):
            self._lock_folder(trainer, Path(self.dirpath))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and listen for signals."""
        self._saved_at = time.monotonic()
        self._signals = StopSignals()
        self._signals.listen(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if a point is due and a run can resume from here; stop if the run was asked to."""
        stop = self._stop_is_wanted(trainer)
        if is_accumulating(trainer) or validation_follows(trainer, batch_idx):
            return
        if trainer.global_step != self._saved_step and (stop or self._is_due(trainer)):
            self._save(trainer)
        if stop:
            self._stop(trainer)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Stop a validation that takes too long for a run that was asked to stop."""
        if trainer.state.fn == TrainerFn.FITTING and self._stop_is_wanted(trainer, after=VALIDATION_SECONDS):
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save at the epoch's end, after its validation and the decision to stop."""
        self._save(trainer)
        if self._stop_is_wanted(trainer):
            self._stop(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the signal handlers."""
        self._signals.leave()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Release the folder lock."""
        self._unlock_folder()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Print how to resume, if the run was asked to stop, or had begun to train and has a point."""
        self._signals.leave()
        asked = isinstance(exception, StoppedError) or self._signals.received is not None
        begun = self._saved_at > 0 and self.path is not None and self.path.is_file()
        if (asked or begun) and trainer.is_global_zero:
            sys.stderr.write(self._closing_message(trainer, exception) + "\n")
            sys.stderr.flush()
        self._unlock_folder(undo=self._saved_at == 0)

    def _lock_folder(self, trainer: pl.Trainer, folder: Path) -> None:
        refusal: LockedError | None = None
        if trainer.is_global_zero:
            try:
                self._lock = FolderLock(folder)
            except LockedError as error:
                refusal = error
        if ranks_where(refusal is not None, trainer.strategy.root_device):
            raise refusal or LockedError(f"{folder} is in use by another job; process 0's message names it")

    def _unlock_folder(self, *, undo: bool = False) -> None:
        if self._lock is not None:
            self._lock.release(undo=undo)
            self._lock = None

    def _stop_is_wanted(self, trainer: pl.Trainer, after: float = 0.0) -> bool:
        """Return whether a process was asked to stop at least `after` seconds ago; all processes must call it."""
        received, at = self._signals.received, self._signals.at
        wanted = received is not None and time.monotonic() - at >= after
        return bool(ranks_where(wanted, trainer.lightning_module.device))

    def _stop(self, trainer: pl.Trainer) -> None:
        number = self._signals.received or signal.SIGTERM
        if trainer.is_global_zero and number == requeue_signal(trainer):
            requeue()
        # If Lightning started the other processes, it kills their parent if one of them ends with another status.
        started = isinstance(cluster_environment(trainer), LightningEnvironment)
        raise StoppedError(0 if started and trainer.local_rank else 128 + number)

    def _closing_message(self, trainer: pl.Trainer, exception: BaseException) -> str:
        number = self._signals.received
        asked = isinstance(exception, StoppedError) or number == signal.SIGINT
        by = signal.Signals(number).name if number is not None else "another process's signal"
        end = f"stopped by {by}" if asked else f"ended by {type(exception).__name__}"
        lines = [f"The run was {end} at epoch {trainer.current_epoch}, step {trainer.global_step}."]
        if self.path is None or not self.path.is_file():
            return " ".join([*lines, "It has no resume point yet."])
        step = "" if self._saved_step < 0 else f", of step {self._saved_step}"
        lines.append(f"Newest resume point: {self.path}{step}.")
        call = f"trainer.fit(.., ckpt_path={str(self.path)!r})"
        lines.append(f"Resume with: {self.resume_command or call}")
        if trainer.world_size > 1:
            lines.append("(started in the same way: by torchrun, srun or alone)")
        return " ".join(lines)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        if self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0:
            return True
        if self.every_minutes is None or (trainer.world_size > 1 and trainer.global_step % STEPS_BETWEEN_CLOCKS != 0):
            return False
        # Clocks differ, and all processes take part in saving.
        waited: float = trainer.strategy.broadcast(time.monotonic() - self._saved_at)
        return waited >= self.every_minutes * 60

    def _save(self, trainer: pl.Trainer) -> None:
        if getattr(trainer, "fast_dev_run", False):
            return
        file = self.path
        assert file is not None
        # Saved weights must be finite, because a run that resumes from others would end at once.
        # Processes have different rows of sharded tables, so they must agree to stop.
        module = trainer.lightning_module
        if ranks_where(not all_finite(module), module.device):
            kept = f"{file} is from before" if file.is_file() else "there is no checkpoint yet"
            raise DivergenceError(
                f"weights are not finite after step {trainer.global_step} though losses were, so this point is not "
                f"saved; {kept}. Lower the step size, or set --trainer.gradient_clip_val 1.0"
            )
        if trainer.is_global_zero:
            file.parent.mkdir(parents=True, exist_ok=True)
        with keeping_points(file.parent, self.keep) if trainer.is_global_zero else nullcontext():
            trainer.save_checkpoint(file, weights_only=False)
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step
