"""Choosing the best epoch: Lightning's checkpoint and early-stopping callbacks, made resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import callbacks


class BestCheckpoint(callbacks.ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, which finds its files again after their folder was moved or renamed.

    Lightning compares folders as text, and forgets the best score if they differ. Arguments are those of
    `ModelCheckpoint`.

    Example:
        >>> from seqrec import BestCheckpoint
        >>> BestCheckpoint(monitor="val_NDCG@10", mode="max").monitor
        'val_NDCG@10'
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score and files if the best file is in this callback's folder."""
        best = self._here(state_dict["best_model_path"])
        if best and Path(best).is_file():
            state_dict = {
                **state_dict,
                "dirpath": self.dirpath,
                "best_model_path": best,
                "kth_best_model_path": self._here(state_dict["kth_best_model_path"]),
                "last_model_path": self._here(state_dict["last_model_path"]),
                "best_k_models": {self._here(path): score for path, score in state_dict["best_k_models"].items()},
            }
        super().load_state_dict(state_dict)

    def _here(self, path: str) -> str:
        return str(Path(self.dirpath) / Path(path).name) if path and self.dirpath else path


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's early stopping; a stopped run that is resumed trains no further epoch.

    Lightning's checkpoints contain the number of epochs without improvement, but not the decision to stop.

    Example:
        >>> from seqrec import EarlyStopping
        >>> EarlyStopping(monitor="val_NDCG@10", mode="max", patience=5).patience
        5
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once if the checkpoint's run had lost patience."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the metric, unless the run ends by its number of steps before its first validation."""
        ends = 0 < trainer.max_steps <= trainer.global_step
        if not (ends and self.monitor not in trainer.callback_metrics):
            super().on_train_epoch_end(trainer, pl_module)
