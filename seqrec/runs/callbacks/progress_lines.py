"""Progress of a trainer as lines, where no terminal shows a bar."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar

from seqrec.data.progress import Progress, Show, Stage


class ProgressLines(ProgressBar):
    """Shows steps or batches, their rate, the time left and what is logged for progress bars, as lines.

    Training ends with a line, and so do validation, test and prediction unless they are part of training. The time left
    is that of the whole budget: early stopping may end training before.

    Args:
        show: Shows a line; `seqrec.data.progress.STATUS` shows at most one a minute for each stage.

    Example:
        >>> import lightning.pytorch as pl
        >>> trainer = pl.Trainer(callbacks=[ProgressLines(print)], logger=False, enable_checkpointing=False)
    """

    def __init__(self, show: Show) -> None:
        super().__init__()
        self._progress = Progress(show, unit="batches")
        self._training: Stage | None = None
        self._judging: Stage | None = None
        self._is_shown = True

    def disable(self) -> None:
        """Show nothing."""
        self._is_shown = False

    def enable(self) -> None:
        """Show lines again."""
        self._is_shown = True

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Show nothing in other processes than the first."""
        super().setup(trainer, pl_module, stage)
        if not trainer.is_global_zero:
            self.disable()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start to count steps."""
        if self._is_shown:
            total, done = planned_steps(trainer), trainer.global_step
            self._training = self._progress.stage("training", total, done=done, unit="steps")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step."""
        if self._training is not None:
            about = self._about(trainer, pl_module) if self._training.is_due else ""
            self._training.advance_to(trainer.global_step, about)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show what was trained."""
        if self._training is not None:
            self._training.end()
            self._training = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start to count batches."""
        if self._is_shown and not trainer.sanity_checking:
            batches: Any = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
            batches = trainer.num_predict_batches if trainer.predicting else batches
            name = "test" if trainer.testing else "prediction" if trainer.predicting else "validation"
            self._judging = self._progress.stage(name, sum(batches))

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Count a batch."""
        if self._judging is not None:
            self._judging.advance(1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show what was judged, unless training continues."""
        if self._judging is not None and self._training is None:
            self._judging.end()
        self._judging = None

    on_test_start = on_predict_start = on_validation_start
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end
    on_test_end = on_predict_end = on_validation_end

    def _about(self, trainer: pl.Trainer, model: pl.LightningModule) -> str:
        logged = self.get_metrics(trainer, model)
        logged.pop("v_num", None)
        values = (f"{name} {value:.4g}" for name, value in logged.items() if isinstance(value, float))
        return ", ".join([f"epoch {trainer.current_epoch}", *values])


def planned_steps(trainer: pl.Trainer) -> float | None:
    """Return the steps that a trainer makes unless it is stopped before; None if only time limits it."""
    limits: list[float] = [trainer.max_steps] if trainer.max_steps >= 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        of_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
        limits.append(trainer.max_epochs * (math.ceil(of_epoch) if math.isfinite(of_epoch) else of_epoch))
    return min(limits, default=None)
