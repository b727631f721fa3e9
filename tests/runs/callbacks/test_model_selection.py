from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic
from seqrec.data.splits import LeaveOneOut
from seqrec.errors import InputError
from seqrec.models import GRU4Rec
from seqrec.runs.callbacks import BestCheckpoint, ResumableEarlyStopping


def state_of(folder: Path) -> dict:
    """State of a callback that has kept `best.ckpt` in a folder."""
    callback = BestCheckpoint(dirpath=folder, monitor="metric", mode="max")
    callback.best_model_score = callback.kth_value = torch.tensor(0.5)
    callback.best_model_path = callback.kth_best_model_path = str(folder / "best.ckpt")
    callback.best_k_models = {callback.best_model_path: callback.kth_value}
    return callback.state_dict()


def test_a_folder_that_was_moved_keeps_its_best_score(tmp_path: Path):
    state = state_of(tmp_path / "before")
    (tmp_path / "now").mkdir()
    best = tmp_path / "now" / "best.ckpt"
    best.touch()
    callback = BestCheckpoint(dirpath=best.parent, monitor="metric", mode="max")
    callback.load_state_dict(state)
    assert callback.best_model_score == 0.5
    assert callback.best_model_path == callback.kth_best_model_path == str(best)
    assert callback.best_k_models == {str(best): 0.5}


def test_a_folder_without_the_best_file_is_another_runs(tmp_path: Path):
    callback = BestCheckpoint(dirpath=tmp_path / "now", monitor="metric", mode="max")
    callback.load_state_dict(state_of(tmp_path / "before"))
    assert callback.best_model_score is None
    assert callback.best_model_path == ""


def test_targets_that_are_trained_on_choose_no_epoch(tmp_path: Path):
    split = LeaveOneOut(train_on_validation=True)
    data = SequenceDataModule(
        Synthetic(num_users=20, num_items=60, mean_events=10), store=str(tmp_path / "store"), split=split
    )
    model = GRU4Rec(data.num_items, d_model=4)
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}

    def fit(*callbacks: pl.Callback) -> None:
        pl.Trainer(max_epochs=2, callbacks=list(callbacks), default_root_dir=tmp_path, **quiet).fit(model, data)

    for callback in (BestCheckpoint(tmp_path / "refused", monitor="val_NDCG@10"), ResumableEarlyStopping("val_HR@10")):
        with pytest.raises(InputError, match="would choose by targets that are trained on"):
            fit(callback)
    last = BestCheckpoint(tmp_path / "kept", "best", monitor=None)
    fit(last, ResumableEarlyStopping("train_loss_epoch"))
    assert torch.load(last.best_model_path, weights_only=True)["epoch"] == 1
