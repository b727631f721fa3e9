"""The checkpoint that a run which was killed goes on from."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from seqrec.callbacks.finite import all_finite
from seqrec.distributed import ranks_where
from seqrec.errors import DivergenceError, InputError

FILE_NAME = "last.ckpt"
# Several ranks compare clocks only every so many steps, since each comparison makes them wait for each other.
STEPS_BETWEEN_CLOCKS = 20


class ResumePoints(Checkpoint):
    """Keeps the run's newest state as `checkpoints/last.ckpt`: every few steps or minutes, and at each epoch's end.

    A run that is resumed from there trains on the batches that the run would have seen, with its randomness, and
    validates when it would have. The file is replaced in one move, so that one that is there is whole. It is not
    written in the middle of accumulated gradients, nor just before a validation, which resuming would skip.

    Args:
        every_n_steps: Optimiser steps between points within an epoch; None for none.
        every_minutes: Minutes between points within an epoch; None for none.
        dirpath: Folder of the file; None is `checkpoints` in the run's folder.

    Raises:
        InputError: a distance is not positive.
    """

    def __init__(
        self,
        *,
        every_n_steps: int | None = None,
        every_minutes: float | None = 10.0,
        dirpath: str | None = None,
    ) -> None:
        for name, value in {"every_n_steps": every_n_steps, "every_minutes": every_minutes}.items():
            if value is not None and value <= 0:
                raise InputError(f"{name}={value} must be positive, or null for none")
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self.dirpath = dirpath
        self._saved_at = 0.0
        self._saved_step = -1

    @property
    def path(self) -> Path | None:
        """Where the file is or will be; None before the run has a folder."""
        return None if self.dirpath is None else Path(self.dirpath) / FILE_NAME

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Settle where the file goes."""
        # Asks all ranks, so not only where it is saved.
        folder = trainer.log_dir or trainer.default_root_dir
        if self.dirpath is None:
            self.dirpath = str(Path(folder) / "checkpoints")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is time, if this is a place to go on from."""
        if trainer.fit_loop._should_accumulate() or trainer.global_step == self._saved_step:
            return
        if not self._validation_follows(trainer, batch_idx) and self._is_due(trainer):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save at the epoch's end, behind its validation and the decision to stop."""
        self._save(trainer)

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
        partial = file.with_name(FILE_NAME + ".partial")
        trainer.save_checkpoint(partial, weights_only=False)
        if trainer.is_global_zero:
            os.replace(partial, file)
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step
