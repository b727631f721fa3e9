"""Stops a run when the loss is NaN or infinite, before the weights are updated."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from seqrec.catalogue.distributed import of_all_ranks
from seqrec.data.datamodule import SequenceDataModule
from seqrec.errors import DivergenceError
from seqrec.runs.callbacks.model_selection import BestCheckpoint
from seqrec.runs.callbacks.resume_points import ResumePoints
from seqrec.runs.measurement import PendingCopy
from seqrec.types import SequenceBatch


class FiniteLoss(pl.Callback):
    """Stops the run when a batch's loss is not finite, after its backward pass and before the weights are updated.

    The message names the step, the batch's users by the log's own ids, and the checkpoint to resume from. All
    processes stop together. Python reads the loss after it has launched the backward pass, so no GPU waits for it.

    Raises:
        DivergenceError: if a loss is NaN or infinite.
    """

    def __init__(self) -> None:
        self._batch: Any = None
        self._losses: PendingCopy | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch, for its users' ids."""
        self._batch = batch

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Start to copy the losses of all processes."""
        self._losses = PendingCopy(of_all_ranks(loss.detach().reshape(1)))
        # In its mode to find the origin of NaN, torch would raise in the backward pass.
        if torch.is_anomaly_enabled():
            self.on_after_backward(trainer, pl_module)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the losses."""
        if self._losses is None:
            return
        losses, self._losses = self._losses.read().flatten().tolist(), None
        bad = [process for process, loss in enumerate(losses) if not math.isfinite(loss)]
        if not bad:
            return
        own = losses[trainer.global_rank]
        finite = math.isfinite(own)
        place = f"epoch {trainer.current_epoch}, step {trainer.global_step}"
        users = self._users(trainer)
        if finite:
            users = f"It is the batch of process {bad[0]}; its message names the users."
        raise DivergenceError(
            f"the loss is {'not finite' if finite else own} at {place}; the update was not made. {users} "
            f"{_last_checkpoint(trainer)} A smaller step size or --trainer.gradient_clip_val 1.0 often helps; a NaN "
            "in the first steps points to the data or to precision"
        )

    def _users(self, trainer: pl.Trainer) -> str:
        if not isinstance(self._batch, SequenceBatch):
            return ""
        ids = self._batch.user_ids.cpu().numpy()
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, SequenceDataModule):
            names = [str(name) for name in data.store.user_vocabulary.external_ids(ids)]
        else:
            names = [str(number) for number in ids.tolist()]
        return f"Users of the batch: {', '.join(names)}."


def _last_checkpoint(trainer: pl.Trainer) -> str:
    newest = [c.path for c in trainer.checkpoint_callbacks if isinstance(c, ResumePoints)]
    best = [Path(c.best_model_path) for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)]
    found = [str(path) for path in [*newest, *best] if path is not None and path.is_file()]
    return f"Last good checkpoint: {found[0]}." if found else "There is no checkpoint yet."
