"""The checkpoints that a run which was stopped or killed goes on from."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from seqrec.catalogue.distributed import ranks_where
from seqrec.errors import DivergenceError, InputError, LockedError, StoppedError
from seqrec.runs.checkpoints import NEWEST, keep_point
from seqrec.runs.finite import all_finite
from seqrec.runs.lock import FolderLock
from seqrec.runs.signals import StopSignals, requeue, requeue_signal

# Several ranks compare clocks only every so many steps, since each comparison makes them wait for each other.
STEPS_BETWEEN_CLOCKS = 20
# A validation that would end sooner is waited for, since the epoch's end behind it is a place to go on from.
VALIDATION_SECONDS = 10.0


class ResumePoints(Checkpoint):
    """Keeps the run's newest state as `checkpoints/last.ckpt`: every few steps or minutes, and at each epoch's end.

    A run that is resumed from there trains on the batches that the run would have seen, with its randomness, and
    validates when it would have. The file is replaced in one move, so that one that is there is whole; the states
    before it stay as `last-1.ckpt`, .., and are taken where the newest turns out to be damaged. None is written in the
    middle of accumulated gradients, nor just before a validation, which resuming would skip.

    On SIGTERM, Ctrl-C or SIGUSR1 the run saves behind the step that is under way (a validation is waited for 10
    seconds; after that the newest point must do), prints the command to go on with, and ends with status 128 + the
    signal's number: 143 for SIGTERM. Several ranks agree on the step. A job of SLURM that gets the signal before its
    end (`#SBATCH --signal=USR1@120`) is queued again; `seqrec fit` then goes on by itself.

    The folder is the job's alone while it trains.

    Args:
        every_n_steps: Optimiser steps between points within an epoch; None for none.
        every_minutes: Minutes between points within an epoch; None for none.
        keep: Points that are kept, the newest among them.
        dirpath: Folder of the files; None is `checkpoints` in the run's folder.

    Raises:
        InputError: a distance or number is not positive.
        LockedError: at the start of training, another job trains in the folder.
        StoppedError: the run was asked to stop, and its state is saved.
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
        """Where the newest point is or will be; None before the run has a folder."""
        return None if self.dirpath is None else Path(self.dirpath) / NEWEST

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Settle where the files go, and keep other jobs from there while training."""
        # Asks all ranks, so not only where it is saved.
        folder = trainer.log_dir or trainer.default_root_dir
        self._config = Path(folder) / "config.yaml"
        if self.dirpath is None:
            self.dirpath = str(Path(folder) / "checkpoints")
        if stage == "fit" and not getattr(trainer, "fast_dev_run", False):
            self._take_folder(trainer, Path(self.dirpath))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and listen for signals."""
        self._saved_at = time.monotonic()
        self._signals = StopSignals()
        self._signals.listen(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is time, if this is a place to go on from; stop there if that is wanted."""
        stop = self._stop_is_wanted(trainer)
        if trainer.fit_loop._should_accumulate() or self._validation_follows(trainer, batch_idx):
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
        """Save at the epoch's end, behind its validation and the decision to stop."""
        self._save(trainer)
        if self._stop_is_wanted(trainer):
            self._stop(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen no more."""
        self._signals.leave()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let other jobs in."""
        self._leave_folder()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Say how to go on, if training had begun and there is something to go on from."""
        self._signals.leave()
        told = isinstance(exception, StoppedError) or self._signals.received is not None
        begun = self._saved_at > 0 and self.path is not None and self.path.is_file()
        if (told or begun) and trainer.is_global_zero:
            sys.stderr.write(self._farewell(trainer, exception) + "\n")
            sys.stderr.flush()
        self._leave_folder()

    def _take_folder(self, trainer: pl.Trainer, folder: Path) -> None:
        refusal: LockedError | None = None
        if trainer.is_global_zero:
            try:
                self._lock = FolderLock(folder)
            except LockedError as error:
                refusal = error
        if ranks_where(refusal is not None, trainer.strategy.root_device):
            raise refusal or LockedError(f"{folder} belongs to another job; rank 0 says to which")

    def _leave_folder(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _stop_is_wanted(self, trainer: pl.Trainer, after: float = 0.0) -> bool:
        """Whether a rank was asked to stop, that many seconds ago or more; all ranks ask at once."""
        received, at = self._signals.received, self._signals.at
        wanted = received is not None and time.monotonic() - at >= after
        return bool(ranks_where(wanted, trainer.lightning_module.device))

    def _stop(self, trainer: pl.Trainer) -> None:
        number = self._signals.received or signal.SIGTERM
        if trainer.is_global_zero and number == requeue_signal(trainer):
            requeue()
        # Lightning kills the process that started the others where one of these ends otherwise than with 0.
        started = isinstance(trainer._accelerator_connector.cluster_environment, LightningEnvironment)
        raise StoppedError(0 if started and trainer.local_rank else 128 + number)

    def _farewell(self, trainer: pl.Trainer, exception: BaseException) -> str:
        number = self._signals.received
        told = isinstance(exception, StoppedError) or number == signal.SIGINT
        by = signal.Signals(number).name if number is not None else "another rank's signal"
        what = f"stopped by {by}" if told else f"ended by {type(exception).__name__}"
        lines = [f"The run was {what} at epoch {trainer.current_epoch}, step {trainer.global_step}."]
        if self.path is None or not self.path.is_file():
            return " ".join([*lines, "It has no resume point yet."])
        step = "" if self._saved_step < 0 else f", of step {self._saved_step}"
        lines.append(f"Newest resume point: {self.path}{step}.")
        if self._config is not None and self._config.is_file():
            words = ["seqrec", "fit", "--config", str(self._config), "--ckpt_path", str(self.path)]
            lines.append(f"Go on with: {shlex.join(words)}")
        else:
            lines.append(f"Go on with: trainer.fit(.., ckpt_path={str(self.path)!r})")
        if trainer.world_size > 1:
            lines.append("(started as before: by torchrun, srun or alone)")
        return " ".join(lines)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        if self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0:
            return True
        if self.every_minutes is None or (
            trainer.world_size > 1 and trainer.global_step % STEPS_BETWEEN_CLOCKS != 0
        ):
            return False
        # Clocks differ, and all ranks take part in saving.
        waited: float = trainer.strategy.broadcast(time.monotonic() - self._saved_at)
        return waited >= self.every_minutes * 60

    @staticmethod
    def _validation_follows(trainer: pl.Trainer, batch_idx: int) -> bool:
        if batch_idx + 1 >= trainer.num_training_batches:
            return True
        loop = trainer.fit_loop
        assert loop._data_fetcher is not None
        return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)

    def _save(self, trainer: pl.Trainer) -> None:
        if getattr(trainer, "fast_dev_run", False):
            return
        file = self.path
        assert file is not None
        # A file that is there has finite weights, since a run that went on from others would end at once.
        # Ranks hold different rows of sharded tables, so they must agree to stop.
        module = trainer.lightning_module
        if ranks_where(not all_finite(module), module.device):
            kept = f"{file} is from before" if file.is_file() else "there is no checkpoint yet"
            raise DivergenceError(
                f"weights are not finite after step {trainer.global_step} though losses were, so this point is not "
                f"saved; {kept}. Lower the step size, or set --trainer.gradient_clip_val 1.0"
            )
        if trainer.is_global_zero:
            file.parent.mkdir(parents=True, exist_ok=True)
            keep_point(file.parent, self.keep)
        trainer.save_checkpoint(file, weights_only=False)
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step
