"""Step sizes and batch sizes by trial, and that a search leaves no trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn

from seqrec.catalogue.table import ItemTable
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic
from seqrec.errors import InputError
from seqrec.experiments.tuning import find_batch_size, find_lr, suggest_lr
from seqrec.models import SASRec
from seqrec.runs import RunFolder
from seqrec.runs.callbacks import RunMonitor, RunSummary
from seqrec.training.optim import Adam, LazyAdam, OptimizerFactory

pytestmark = [pytest.mark.process, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")]


def parts(folder: Path, sparse: bool = False, **data: Any) -> tuple[pl.Trainer, SASRec, SequenceDataModule]:
    log = Synthetic(num_users=120, num_items=60, mean_events=20)
    module = SequenceDataModule(
        log,
        store=str(folder / "store"),
        **{"max_length": 16, "batch_size": 16, "eval_batch_size": 128} | data,
    )
    pl.seed_everything(0, verbose=False)
    model = SASRec(
        module.num_items,
        d_model=16,
        num_layers=1,
        max_length=16,
        optimizer=Adam(0.003, table=LazyAdam(0.002) if sparse else None),
        item_table=ItemTable(sparse=sparse),
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        default_root_dir=str(folder),
        max_epochs=1,
        callbacks=[RunMonitor(), RunSummary()],
        logger=RunFolder(str(folder / "runs"), tensorboard=False),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return trainer, model, module


@pytest.mark.parametrize("sparse", [False, True])
def test_a_step_size_is_suggested_with_which_the_loss_falls_and_nothing_else_changes(tmp_path: Path, sparse: bool):
    trainer, model, data = parts(tmp_path, sparse)
    trainer.fit(model, data)
    expected, loss = model.state_dict(), float(trainer.callback_metrics["train_loss_epoch"])

    trainer, model, data = parts(tmp_path, sparse)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = find_lr(trainer, model, data, steps=80)
    assert len(found.lrs) == len(found.losses) == 80
    assert 3e-4 < found.suggestion < 0.1
    assert model.lr == model.optimizer.lr == found.suggestion
    assert model.hparams["optimizer"]["init_args"]["lr"] == found.suggestion
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not list(tmp_path.glob(".*"))
    assert len(list((tmp_path / "runs").iterdir())) == 1

    # A fit that follows is the fit that would have been.
    model.lr = 0.003
    trainer.fit(model, data)
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert trainer.global_step == trainer.num_training_batches
    assert float(trainer.callback_metrics["train_loss_epoch"]) == loss


def test_lightnings_own_tuner_finds_and_sets_the_step_size(tmp_path: Path):
    from lightning.pytorch.tuner.tuning import Tuner

    trainer, model, data = parts(tmp_path)
    trainer.callbacks = []
    trainer.fit_loop.max_epochs = 3
    found = Tuner(trainer).lr_find(model, datamodule=data, num_training=20, min_lr=1e-4)
    assert model.optimizer.lr == found.suggestion()
    assert Tuner(trainer).scale_batch_size(model, datamodule=data, max_trials=2, init_val=4) == data.batch_size


class Memory(nn.Module):
    """An encoder's forward pass that fits so many events, padding included."""

    def __init__(self, inner: nn.Module, most: int) -> None:
        super().__init__()
        self.inner, self.most = inner, most
        self.d_model = inner.d_model
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor, history: Any) -> torch.Tensor:
        self.shapes.append(tuple(x.shape[:2]))
        if x.shape[0] * x.shape[1] > self.most:
            raise RuntimeError("CUDA out of memory. Tried to allocate more than there is")
        return self.inner(x, history)


def test_the_largest_batch_of_the_longest_windows_that_fits_is_found(tmp_path: Path):
    trainer, model, data = parts(tmp_path)
    memory = model.encoder = Memory(model.encoder, most=8 * 16)
    assert find_batch_size(trainer, model, data) == data.batch_size == 8
    assert (8, 16) in memory.shapes
    assert (16, 16) in memory.shapes
    assert {length for _, length in memory.shapes} == {16}
    assert not data.longest_first
    trainer, model, data = parts(tmp_path)
    assert find_batch_size(trainer, model, data, max_batch_size=3) == 2
    trainer, model, data = parts(tmp_path)
    model.encoder = Memory(model.encoder, most=0)
    with pytest.raises(InputError, match="not even a batch of one window fits"):
        find_batch_size(trainer, model, data)
    assert data.batch_size == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_lr": 1.0, "max_lr": 0.1}, r"min_lr=1\.0 must be above 0 and below max_lr=0\.1"),
        ({"steps": 10}, "steps=10 must be at least 20"),
        ({"min_lr": 1e-9, "max_lr": 1e-8, "steps": 20}, "no step size can be suggested"),
    ],
    ids=str,
)
def test_a_search_that_can_find_nothing_is_refused(tmp_path: Path, options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        find_lr(*parts(tmp_path), **options)


class Plain(OptimizerFactory):
    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1)


def test_what_cannot_be_tuned_is_refused(tmp_path: Path):
    trainer, model, data = parts(tmp_path)
    model.optimizer = Plain()
    with pytest.raises(InputError, match="the optimizer Plain has no lr to search"):
        find_lr(trainer, model, data)
    with pytest.raises(InputError, match="max_batch_size=0 must be at least 1"):
        find_batch_size(trainer, model, data, max_batch_size=0)
    data.max_tokens = 100
    with pytest.raises(InputError, match="max_tokens=100 sets the batches"):
        find_batch_size(trainer, model, data)


def test_the_suggestion_lies_half_the_way_down_whatever_comes_behind_the_lowest_loss():
    lrs = np.geomspace(1e-5, 1.0, 151)
    # From 2 down to 1 between 1e-3 and 1e-1, evenly by decades, then up.
    losses = np.interp(np.log10(lrs), [-5, -3, -1, 0], [2.0, 2.0, 1.0, 5.0])
    noise = np.random.default_rng(0).normal(0, 0.02, len(lrs))
    assert suggest_lr(lrs, losses) == pytest.approx(1e-2, rel=0.3)
    assert suggest_lr(lrs, losses + noise) == pytest.approx(1e-2, rel=0.3)
    broken = losses.copy()
    broken[140:] = float("nan")
    assert suggest_lr(lrs, broken) == pytest.approx(1e-2, rel=0.3)
    broken[15:] = float("nan")
    with pytest.raises(InputError, match="only 15 losses are finite"):
        suggest_lr(lrs, broken)
    with pytest.raises(InputError, match="which may be chance"):
        suggest_lr(lrs, 2 + noise)


@pytest.mark.parametrize("steps", [20, 50, 200])
def test_losses_without_a_trend_seldom_suggest_a_step_size(steps: int):
    generator, suggested = np.random.default_rng(0), 0
    for _ in range(300):
        try:
            suggest_lr(np.geomspace(1e-5, 1.0, steps), generator.normal(2, 0.1, steps))
        except InputError:
            continue
        suggested += 1
    assert suggested <= 9
