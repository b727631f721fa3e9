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
