from __future__ import annotations

from pathlib import Path

import torch

from seqrec.runs.callbacks import BestCheckpoint


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
