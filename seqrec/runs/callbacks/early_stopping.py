"""Early stopping that a resumed run remembers."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch import callbacks


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's early stopping; a run that had stopped, and is resumed, trains no further epoch.

    Lightning keeps in a checkpoint how long the metric has not improved, but not the decision that followed.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once where the checkpoint's run had lost patience."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the metric, unless the run ends by its number of steps before it was ever validated."""
        ends = 0 < trainer.max_steps <= trainer.global_step
        if not (ends and self.monitor not in trainer.callback_metrics):
            super().on_train_epoch_end(trainer, pl_module)
