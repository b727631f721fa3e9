"""Objectives inside a run: their configs, the counts that samplers get, checkpoints and resuming."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from seqrec.cli import main
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic
from seqrec.errors import InputError
from seqrec.models import SASRec
from seqrec.training.losses import LOSSES, InBatchSoftmax, Loss, SampledSoftmax
from seqrec.training.negatives import PopularityNegatives, UniformNegatives

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
CONFIGS = Path(__file__).parents[3] / "configs"


def popularity_loss() -> Loss:
    return SampledSoftmax(PopularityNegatives(8, shared=True, exclude_seen=False))


def data(tmp_path: Path) -> SequenceDataModule:
    log = Synthetic(num_users=30, num_items=40, mean_events=20)
    return SequenceDataModule(log, store=str(tmp_path / "store"), max_length=16, batch_size=8)


def fitted(tmp_path: Path, loss: Loss, epochs: int, resume: bool = False) -> SASRec:
    pl.seed_everything(0, verbose=False)
    module = data(tmp_path)
    model = SASRec(module.num_items, d_model=8, num_layers=1, max_length=16, dropout=0.1, loss=loss)
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(model, datamodule=module, ckpt_path=str(tmp_path / "run.ckpt") if resume else None)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    return model


@pytest.mark.parametrize("name", list(LOSSES))
def test_loss_config_swaps_the_objective_of_another_config(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["seqrec"])
    main(
        [
            *("fit", "--config", str(CONFIGS / "quickstart.yaml")),
            *("--config", str(CONFIGS / "fragments" / "loss" / f"{name}.yaml")),
            *("--data.source.num_users", "200", "--data.source.mean_events", "20"),
            *(
                "--trainer.max_epochs",
                "1",
                "--trainer.limit_train_batches",
                "2",
                "--trainer.accelerator",
                "cpu",
            ),
            *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
        ]
    )
    assert "run folder: runs/" in capsys.readouterr().out
    (config,) = tmp_path.rglob("config.yaml")
    assert f"seqrec.training.losses.{name}" in config.read_text() or f".{name}\n" in config.read_text()


def test_samplers_get_the_counts_of_the_training_part(tmp_path: Path):
    loss = popularity_loss()
    fitted(tmp_path, loss, epochs=1)
    counts = torch.from_numpy(data(tmp_path).train_item_counts()).double()
    item_ids, rows = torch.arange(len(counts)), torch.zeros(1, dtype=torch.int64)
    found = loss.negatives.log_probabilities(item_ids, rows, None, len(counts) - 1).exp()
    weights = counts**0.75
    torch.testing.assert_close(found, weights / weights.sum())


def test_without_a_data_module_missing_counts_are_named(tmp_path: Path):
    module = data(tmp_path)
    model = SASRec(module.num_items, d_model=8, num_layers=1, max_length=16, loss=InBatchSoftmax())
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    with pytest.raises(InputError, match="InBatchNegatives needs the items' counts in training"):
        trainer.fit(model, module.train_dataloader())
    model.loss.use_item_counts(torch.from_numpy(module.train_item_counts()))
    trainer.fit(model, module.train_dataloader())
    assert trainer.global_step == 1


@pytest.mark.parametrize("make", [popularity_loss, InBatchSoftmax], ids=["popularity", "in batch"])
def test_a_resumed_run_ends_as_the_run_that_went_through(tmp_path: Path, make: type[Loss]):
    whole = fitted(tmp_path, make(), epochs=3)
    fitted(tmp_path, make(), epochs=1)
    resumed = fitted(tmp_path, make(), epochs=3, resume=True)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_a_checkpoint_rebuilds_the_loss_and_holds_no_table(tmp_path: Path):
    extra = UniformNegatives(4, exclude_seen=False, shared=True)
    fitted(tmp_path, InBatchSoftmax(extra, log_q=False), epochs=1)
    checkpoint = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert not [name for name in checkpoint["state_dict"] if name.startswith("loss")]
    loss = SASRec.load_from_checkpoint(tmp_path / "run.ckpt").loss
    assert isinstance(loss, InBatchSoftmax)
    assert loss.log_q is False
    assert loss.extra.num_negatives == 4
