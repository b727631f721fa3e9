"""Validations, patience and budgets in updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from seqrec.errors import InputError
from seqrec.runs.callbacks import BestCheckpoint, ResumableEarlyStopping, ValidationSteps

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
METRIC = "val_NDCG@10"
# Batches of an epoch.
BATCHES = 5


class Rising(pl.LightningModule):
    """Its metric rises by 1 an update up to an update, and falls after it."""

    def __init__(self, best: int = 1000) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.best = best

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        step = self.trainer.global_step
        self.log(METRIC, float(min(step, 2 * self.best - step)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Recorder(pl.Callback):
    """Records the updates at which validations end, and saves a checkpoint after one update."""

    def __init__(self, file: Path | None = None, save_at: int = -1) -> None:
        self.validated: list[int] = []
        self.file, self.save_at = file, save_at

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validated.append(trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.save_at and self.file is not None:
            trainer.save_checkpoint(self.file)


def fit(
    *callbacks: pl.Callback, best: int = 1000, batches: int = BATCHES, resume: Path | None = None, **settings: Any
) -> tuple[list[int], pl.Trainer, Rising]:
    recorder = next((each for each in callbacks if isinstance(each, Recorder)), Recorder())
    others = [each for each in callbacks if each is not recorder]
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"num_sanity_val_steps": 0, "enable_checkpointing": any(isinstance(c, BestCheckpoint) for c in others)}
    trainer = pl.Trainer(callbacks=[*others, recorder], **{**quiet, **settings})
    loader = torch.utils.data.DataLoader(torch.ones(batches, 1), batch_size=1)
    model = Rising(best)
    trainer.fit(model, loader, torch.utils.data.DataLoader(torch.ones(1, 1)), ckpt_path=resume)
    return recorder.validated, trainer, model


@pytest.mark.parametrize(
    ("every", "settings", "expected"),
    [
        pytest.param(3, {"max_steps": 10}, [3, 6, 9, 10], id="shorter than an epoch"),
        pytest.param(7, {"max_steps": 16}, [7, 14, 16], id="longer than an epoch"),
        pytest.param(5, {"max_steps": 15}, [5, 10, 15], id="as long as an epoch"),
        pytest.param(50, {"max_epochs": 3}, [15], id="longer than the run"),
        # An epoch of 5 batches has the updates of 2, 2 and 1 of them.
        pytest.param(2, {"max_steps": 7, "accumulate_grad_batches": 2}, [2, 4, 6, 7], id="several batches an update"),
        pytest.param(None, {"max_epochs": 2}, [5, 10], id="not set"),
    ],
)
def test_validations_count_updates(every: int | None, settings: dict[str, Any], expected: list[int]):
    assert fit(ValidationSteps(every), **settings)[0] == expected


@pytest.mark.parametrize(
    ("patience", "validated"),
    # The best validation is that of update 4. Those that follow are 2, 4, 6, .. updates later.
    [(2, [2, 4, 6]), (5, [2, 4, 6, 8, 10]), (6, [2, 4, 6, 8, 10])],
)
def test_patience_counts_updates(patience: int, validated: list[int]):
    stopping = ResumableEarlyStopping(METRIC, patience=1, patience_steps=patience)
    found, trainer, _ = fit(ValidationSteps(2), stopping, best=4, max_steps=30)
    assert found == validated
    assert trainer.global_step == validated[-1]
    assert stopping.best_step == 4
    assert stopping.patience == 1


def test_patience_in_updates_needs_no_validation_interval():
    # Epochs end at 5, 10, 15, ..
    found, *_ = fit(ResumableEarlyStopping(METRIC, patience_steps=7), best=5, max_epochs=9)
    assert found == [5, 10, 15]


@pytest.mark.parametrize("save_at", [5, 7, 8])
def test_a_run_resumed_within_an_epoch_ends_at_the_same_update(save_at: int, tmp_path: Path):
    def callbacks() -> list[pl.Callback]:
        return [ValidationSteps(3), ResumableEarlyStopping(METRIC, patience_steps=6)]

    file = tmp_path / "point.ckpt"
    whole, trainer, model = fit(*callbacks(), Recorder(file, save_at), best=6, max_steps=30)
    assert whole == [3, 6, 9, 12]
    resumed, again, other = fit(*callbacks(), best=6, max_steps=30, resume=file)
    assert resumed == [step for step in whole if step > save_at]
    assert again.global_step == trainer.global_step == 12
    assert torch.equal(other.layer.weight, model.layer.weight)


def test_a_stopped_run_that_is_resumed_trains_no_further(tmp_path: Path):
    best = BestCheckpoint(str(tmp_path), "best", monitor=METRIC, save_last=True)
    callbacks = ValidationSteps(2), ResumableEarlyStopping(METRIC, patience_steps=4)
    _, trainer, _ = fit(*callbacks, best, best=4, max_steps=30)
    assert trainer.global_step == 8
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    callbacks = ValidationSteps(2), ResumableEarlyStopping(METRIC, patience_steps=4)
    assert fit(*callbacks, best=4, max_steps=30, resume=tmp_path / "stopped.ckpt")[1].global_step == 8
    assert torch.load(best.best_model_path, weights_only=True)["global_step"] == 4


@pytest.mark.parametrize(
    ("callbacks", "settings", "message"),
    [
        (
            lambda: [ValidationSteps(4), ResumableEarlyStopping(METRIC, patience_steps=3)],
            {},
            r"patience_steps=3 must be at least validation.every_n_steps=4",
        ),
        (lambda: [ValidationSteps(4)], {"check_val_every_n_epoch": 2}, "trainer.check_val_every_n_epoch=2 both set"),
        (lambda: [ValidationSteps(4)], {"val_check_interval": 2}, "trainer.val_check_interval=2 both set"),
        (lambda: [EarlyStopping(METRIC), ValidationSteps(4)], {}, "must precede the callbacks that stop early"),
        (lambda: [ValidationSteps(0)], {}, "every_n_steps=0"),
        (lambda: [ResumableEarlyStopping(METRIC, patience_steps=0)], {}, "patience_steps=0"),
    ],
)
def test_what_contradicts_itself_is_refused(callbacks: Any, settings: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        fit(*callbacks(), max_steps=4, **settings)
