"""What is logged of each step is what `LightningModule.log` would log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor

from seqrec.models import GRU4Rec
from seqrec.types import SequenceBatch


class LogsByLightning(GRU4Rec):
    """Logs each step's losses by Lightning alone, in the step."""

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> Tensor:
        loss = self.loss(self.to_scoring_space(self(batch.history)), batch, self.scorer())
        weighted = loss * batch.weight
        self.log("train_loss_step", loss, prog_bar=True, batch_size=1)
        self.log("train_loss_epoch", weighted, prog_bar=True, on_step=False, on_epoch=True, batch_size=1)
        return weighted


class Logger(DummyLogger):
    """Remembers what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[dict[str, float], int | None]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((dict(metrics), step))


class Watcher(pl.Callback):
    """Remembers what callbacks and the progress bar see at the end of steps and epochs."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._look(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._look(trainer)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._look(trainer)

    def _look(self, trainer: pl.Trainer) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.seen.append((metrics, dict(trainer.progress_bar_metrics)))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "settings",
    [
        {"max_epochs": 3},
        {"max_epochs": 2, "accumulate_grad_batches": 2, "val_check_interval": 2},
        {"max_steps": 7, "check_val_every_n_epoch": 2},
        {"max_epochs": 2, "precision": "bf16-mixed"},
    ],
)
def test_loggers_callbacks_and_progress_bar_see_what_lightnings_own_log_gives_them(
    batches: Sequence[SequenceBatch], make_trainer: Callable[..., pl.Trainer], settings: dict[str, Any]
):
    log = [batches[step % 2] for step in range(5)]
    for step, batch in enumerate(log):
        log[step] = type(batch)(
            batch.history, batch.targets, batch.user_ids, batch.seen_events, torch.tensor(0.3 * step)
        )
    found = []
    for kind in (GRU4Rec, LogsByLightning):
        pl.seed_everything(0, verbose=False)
        logger, watcher = Logger(), Watcher()
        trainer = make_trainer(callbacks=[watcher], log_every_n_steps=3, **settings)
        trainer.loggers = [logger]
        model = kind(12, d_model=4, max_length=6, dropout=0.0)
        trainer.fit(model, type(batches)(*log), batches)
        found.append((logger.rows, watcher.seen))
    assert found[0] == found[1]
    assert any("train_loss_step" in row for row, _ in found[0][0])
    assert any("train_loss_epoch" in row for row, _ in found[0][0])
    assert len({row["train_loss_step"] for row, _ in found[0][1] if "train_loss_step" in row}) >= 5
