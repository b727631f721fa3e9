from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from seqrec.training.optim import (
    Adam,
    LinearWarmup,
    OptimizerFactory,
    RowwiseAdagrad,
    TableOptimizer,
    WarmupCosine,
    clip_gradients,
)

STEPS = 6
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*logging interval")


class Trained(pl.LightningModule):
    """A model wired as those of `seqrec.models` are."""

    def __init__(self, model: nn.Module, optimizer: OptimizerFactory) -> None:
        super().__init__()
        self.model = model
        self.optimizer = optimizer

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.model(batch)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer.build(self)
        if self.optimizer.schedule is None:
            return optimizer
        scheduler = self.optimizer.schedule.build(optimizer, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        clip_gradients(self.parameters(), max_norm=gradient_clip_val)


@pytest.fixture
def fit(tmp_path: Path, item_batches: Callable) -> Callable[..., pl.Trainer]:
    def run(module: Trained, *, max_epochs: int, resume: Path | None = None, **arguments: Any) -> pl.Trainer:
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=max_epochs,
            gradient_clip_val=0.05,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            **{"logger": False, **arguments},
        )
        loader = DataLoader(item_batches(STEPS // 2), batch_size=None)
        trainer.fit(module, loader, ckpt_path=resume)
        return trainer

    return run


@pytest.mark.parametrize("table", [None, RowwiseAdagrad(0.3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_ends_in_the_same_bits(
    table: TableOptimizer | None,
    dtype: torch.dtype,
    fit: Callable,
    make_mixed: Callable,
    tmp_path: Path,
):
    # A schedule that does not look at the run's length, which differs between the two runs.
    factory = Adam(0.05, table=table, schedule=LinearWarmup(5))
    whole = Trained(make_mixed(dtype=dtype), factory)
    fit(whole, max_epochs=2)
    half = Trained(make_mixed(dtype=dtype), factory)
    fit(half, max_epochs=1).save_checkpoint(tmp_path / "half.ckpt")
    resumed = Trained(make_mixed(seed=1, dtype=dtype), factory)
    fit(resumed, max_epochs=2, resume=tmp_path / "half.ckpt")
    for (name, weight), other in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(weight, other), name


def test_the_monitor_sees_the_step_sizes_of_all_parts(fit: Callable, make_mixed: Callable, tmp_path: Path):
    logger = pl.loggers.CSVLogger(tmp_path)
    schedule = WarmupCosine(2)
    module = Trained(make_mixed(), Adam(0.05, table=RowwiseAdagrad(0.3), schedule=schedule))
    trainer = fit(
        module,
        max_epochs=2,
        logger=logger,
        log_every_n_steps=1,
        callbacks=[LearningRateMonitor(logging_interval="step")],
    )
    monitored = trainer.callbacks[0].lrs
    assert list(monitored) == ["lr-CombinedOptimizer/pg1", "lr-CombinedOptimizer/pg2"]
    last = schedule.ratio(STEPS)(STEPS - 1)
    for start, found in zip((0.05, 0.3), monitored.values(), strict=True):
        assert found[-1] == pytest.approx(start * last)


@pytest.mark.parametrize("sparse", [True, False])
def test_fp16_with_clipping_trains_both_parts(sparse: bool, fit: Callable, make_mixed: Callable):
    model = make_mixed() if sparse else nn.Sequential(nn.Embedding(30, 5), nn.Flatten(0), nn.Linear(60, 1))
    before = [weight.detach().clone() for weight in model.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    fit(Trained(model, Adam(0.05)), max_epochs=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert scaler.get_scale() == 2.0**10
    for weight, start in zip(model.parameters(), before, strict=True):
        assert not torch.equal(weight, start)
        assert weight.isfinite().all()
