"""Validation every N updates, across epochs."""

from __future__ import annotations

import sys
from typing import Any

import lightning.pytorch as pl

from seqrec.errors import InputError, check_at_least
from seqrec.runs.lightning_internals import is_accumulating


class ValidationSteps(pl.Callback):
    """Validates every N updates instead of at the end of epochs, and after the last update.

    An update is a step of the optimizer: with `accumulate_grad_batches` several batches, with several processes one
    batch of each. They are counted from the start of the run, also if it is resumed. Epochs may be shorter or longer
    than N. Lightning's `val_check_interval` counts batches instead.

    In a trainer's list it must precede the callbacks that act on validations.

    Args:
        every_n_steps: Updates N between two validations; None leaves the validations to the trainer.

    Raises:
        InputError: if `every_n_steps` is below 1, the trainer's own arguments also set validations, or a callback
            that stops early precedes this one.

    Example:
        >>> from seqrec.runs.callbacks import ValidationSteps
        >>> ValidationSteps(every_n_steps=200).every_n_steps
        200
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None:
            check_at_least(1, every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let validations start within epochs."""
        if self.every_n_steps is None or stage != "fit" or getattr(trainer, "fast_dev_run", False):
            return
        epochs, share = trainer.check_val_every_n_epoch, trainer.val_check_interval
        if epochs not in (1, None) or share != 1.0:
            name = "check_val_every_n_epoch" if epochs not in (1, None) else "val_check_interval"
            raise InputError(
                f"validation.every_n_steps={self.every_n_steps} and trainer.{name}={getattr(trainer, name)} both set "
                "when to validate: leave one out"
            )
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by its callback connector
        early = [each for each in callbacks if isinstance(each, pl.callbacks.EarlyStopping)]
        if any(callbacks.index(each) < callbacks.index(self) for each in early):
            raise InputError("ValidationSteps must precede the callbacks that stop early in the trainer's list")
        # Other callbacks then act at each validation, and not at the end of an epoch.
        trainer.check_val_every_n_epoch = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let no validation start before one is due."""
        self._schedule(trainer, due=False)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let a validation follow if one is due."""
        if self.every_n_steps is None:
            return
        step = trainer.global_step
        last_epoch = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
        ends = step == trainer.max_steps or (last_epoch and batch_idx + 1 >= trainer.num_training_batches)
        self._schedule(trainer, due=not is_accumulating(trainer) and (ends or step % self.every_n_steps == 0))

    def _schedule(self, trainer: pl.Trainer, *, due: bool) -> None:
        """Let Lightning validate after the present batch, or not: it does after each multiple of this number."""
        if self.every_n_steps is not None and trainer.check_val_every_n_epoch is None:
            trainer.val_check_batch = 1 if due else sys.maxsize
