"""Weights that were never trained, and resumed runs with another step size, whatever schedule a model of a user has."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from seqrec import Adam, GRU4Rec, Popularity, SequenceDataModule, Synthetic

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}


class OnPlateau(GRU4Rec):
    """A model with a schedule that is no function of the step."""

    def configure_optimizers(self) -> Any:
        optimizer: Any = super().configure_optimizers()
        scheduler = ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=0, threshold=10.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_NDCG@10"}}


class OneCycle(GRU4Rec):
    """A model with a schedule that keeps its step sizes in the optimizer."""

    def configure_optimizers(self) -> Any:
        optimizer: Any = super().configure_optimizers()
        scheduler = OneCycleLR(optimizer, max_lr=optimizer.param_groups[0]["lr"] * 10, total_steps=100)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class OwnOptimizer(GRU4Rec):
    """A model that ignores `optimizer`."""

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.123)


@pytest.fixture
def data(tmp_path: Path) -> SequenceDataModule:
    source = Synthetic(num_users=20, num_items=30, mean_events=10)
    return SequenceDataModule(source, store=str(tmp_path / "store"), max_length=8, batch_size=8)


def resumed(cls: type[GRU4Rec], data: SequenceDataModule, folder: Path) -> tuple[float, float, pl.Trainer]:
    """Step sizes of a run after three epochs, and of the same with a tenth of the step size after the first."""
    ends = []
    for lr in (0.01, 0.001):
        trainers = [pl.Trainer(max_epochs=epochs, **QUIET) for epochs in (1, 3)]
        for trainer, own in zip(trainers, (0.01, lr), strict=True):
            torch.manual_seed(0)
            model = cls(num_items=30, d_model=8, max_length=8, optimizer=Adam(lr=own))
            file = str(folder / "last.ckpt")
            trainer.fit(model, data, ckpt_path=file if trainer.max_epochs == 3 else None)
            trainer.save_checkpoint(file)
        ends.append(trainers[1].optimizers[0].param_groups[0]["lr"])
    return ends[0], ends[1], trainers[1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cls", [GRU4Rec, OnPlateau, OneCycle])
def test_a_resumed_run_scales_its_schedule(cls: type[GRU4Rec], data: SequenceDataModule, tmp_path: Path):
    as_before, changed, _ = resumed(cls, data, tmp_path)
    assert changed == pytest.approx(as_before / 10, rel=1e-6)
    assert as_before != 0.01 or cls is GRU4Rec  # the schedules have an effect


@pytest.mark.filterwarnings("ignore")
def test_an_optimizer_of_the_users_own_keeps_its_settings(
    data: SequenceDataModule, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO):
        assert resumed(OwnOptimizer, data, tmp_path)[:2] == (0.123, 0.123)
    assert "configure_optimizers builds its own" in caplog.text


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_fresh_weights_are_warned_of(command: str, data: SequenceDataModule, tmp_path: Path):
    model = GRU4Rec(num_items=30, d_model=8, max_length=8)
    trainer = pl.Trainer(max_steps=1, limit_val_batches=1, num_sanity_val_steps=1, **QUIET)
    with pytest.warns(UserWarning, match="GRU4Rec is used with fresh weights: .*call trainer.fit before"):
        getattr(trainer, command)(model, data)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*fresh weights")
        trainer.fit(model, data)
        getattr(trainer, command)(model, data)
        trainer.save_checkpoint(tmp_path / "model.ckpt")
        getattr(trainer, command)(GRU4Rec.load_from_checkpoint(tmp_path / "model.ckpt"), data)
        fresh = GRU4Rec(num_items=30, d_model=8, max_length=8)
        getattr(trainer, command)(fresh, data, ckpt_path=tmp_path / "model.ckpt")
        getattr(trainer, command)(Popularity(num_items=data.num_items), data)
