"""A loss that is not finite ends the run before the update, and says where and whose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic
from seqrec.errors import DivergenceError
from seqrec.models import GRU4Rec
from seqrec.runs.callbacks import ResumePoints
from seqrec.training.losses import BCE, Loss
from seqrec.types import SequenceBatch

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class BreaksAt(Loss):
    """BCE that is NaN at one step, counted from 0."""

    def __init__(self, step: int, value: float = float("nan")) -> None:
        super().__init__()
        self.step = step
        self.value = value
        self.calls = 0
        self.users: list[int] = []
        self.inner = BCE()

    def forward(self, states: Tensor, batch: SequenceBatch, scorer: Scorer) -> Tensor:
        loss = self.inner(states, batch, scorer)
        if self.calls == self.step:
            self.users = batch.user_ids.tolist()
            loss = loss * self.value
        self.calls += 1
        return loss


class WeightsBefore(pl.Callback):
    """Weights as each step finds them."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: SequenceBatch, batch_idx: int
    ) -> None:
        self.weights = {name: weight.clone() for name, weight in pl_module.state_dict().items()}


def fit(
    folder: Path, loss: Loss, *, settings: dict[str, Any] | None = None, **points: object
) -> tuple[GRU4Rec, WeightsBefore, SequenceDataModule, pl.Trainer]:
    log = Synthetic(num_users=32, num_items=40, mean_events=12)
    data = SequenceDataModule(log, store=str(folder / "store"), max_length=8, batch_size=8)
    torch.manual_seed(0)
    model = GRU4Rec(data.num_items, d_model=4, max_length=8, loss=loss)
    before = WeightsBefore()
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[before, ResumePoints(**points)],
        limit_val_batches=0,
        **(settings or {}),
    )
    return model, before, data, trainer


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_run_stops_before_the_update_and_names_step_users_and_checkpoint(tmp_path: Path, value: float):
    loss = BreaksAt(6, value)  # the third batch of the second epoch of four
    model, before, data, trainer = fit(tmp_path, loss)
    with pytest.raises(DivergenceError) as caught:
        trainer.fit(model, data)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before.weights[name]), name
    message = str(caught.value)
    assert f"the loss is {value} at epoch 1, step 6; the update was not made" in message
    names = ", ".join(str(name) for name in data.store.user_vocabulary.external_ids(loss.users))
    assert f"Users of the batch: {names}." in message
    point = tmp_path / "checkpoints" / "last.ckpt"
    assert f"Last good checkpoint: {point}." in message
    assert torch.load(point, weights_only=True)["global_step"] == 4


def test_without_a_checkpoint_the_message_says_so(tmp_path: Path):
    model, _, data, trainer = fit(tmp_path, BreaksAt(0))
    with pytest.raises(DivergenceError, match=r"epoch 0, step 0.*There is no checkpoint yet"):
        trainer.fit(model, data)


@pytest.mark.parametrize(("settings", "updates"), [({"accumulate_grad_batches": 2}, 3), ({"detect_anomaly": True}, 6)])
def test_the_run_stops_at_that_batch_also_where(tmp_path: Path, settings: dict[str, Any], updates: int):
    """The update is of several batches, or torch itself looks for NaN in the backward pass."""
    loss = BreaksAt(6)
    model, before, data, trainer = fit(tmp_path, loss, settings=settings)
    with pytest.raises(DivergenceError, match=f"the loss is nan at epoch 1, step {updates};"):
        trainer.fit(model, data)
    assert loss.calls == 7
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before.weights[name]), name


def test_a_rank_whose_loss_is_finite_names_the_rank_that_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As where rank 1 of two has a NaN at the third step, seen from rank 0."""
    model, before, data, trainer = fit(tmp_path, BCE())

    def of_two_ranks(loss: Tensor) -> Tensor:
        return torch.stack([loss, loss * (float("nan") if trainer.global_step == 2 else 1)])

    monkeypatch.setattr("seqrec.runs.callbacks.finite_loss.of_all_ranks", of_two_ranks)
    with pytest.raises(DivergenceError, match=r"the loss is not finite at epoch 0, step 2;.*batch of process 1;"):
        trainer.fit(model, data)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before.weights[name]), name


class Poison(pl.Callback):
    """Makes a weight NaN behind an update."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            with torch.no_grad():
                next(pl_module.encoder.parameters()).view(-1)[0] = float("nan")


def test_a_resume_point_is_not_overwritten_with_weights_that_are_no_numbers(tmp_path: Path):
    model, _, data, trainer = fit(tmp_path, BCE())
    trainer.callbacks.insert(0, Poison())
    with pytest.raises(DivergenceError, match=r"weights are not finite after step 8.*last\.ckpt is from before"):
        trainer.fit(model, data)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4
