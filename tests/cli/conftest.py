"""Folders in which commands run, a run of others, and a file that shows whether something of theirs ran."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_runs import write_config
from strangers import MODULE, Touch
from trained_models import one_step

from seqrec.data.sources import Synthetic
from seqrec.models import MambaRec
from seqrec.training.losses import SampledSoftmax
from seqrec.training.negatives import UniformNegatives
from seqrec.training.optim import Adam, LinearWarmup


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with nothing but the small config of a run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["seqrec"])
    write_config()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with every part that holds a class, beside the config of its run."""
    folder = tmp_path_factory.mktemp("trained")
    source = Synthetic(num_users=20, num_items=30, mean_events=10)

    def build(data: Any) -> MambaRec:
        loss = SampledSoftmax(UniformNegatives(4))
        schedule = Adam(schedule=LinearWarmup(10))
        return MambaRec(data.num_items, d_model=8, d_state=4, max_length=8, loss=loss, optimizer=schedule)

    _, data, trainer = one_step(build, source, folder)
    (folder / "run" / "checkpoints").mkdir(parents=True)
    trainer.save_checkpoint(folder / "run" / "checkpoints" / "best.ckpt")
    config = {
        "data": {
            "source": {
                "class_path": "seqrec.Synthetic",
                "init_args": {"num_users": 20, "num_items": 30, "mean_events": 10},
            },
            "store": str(data.store_directory),
            "max_length": 8,
        },
        "model": {
            "class_path": "seqrec.MambaRec",
            "init_args": {
                "d_model": 8,
                "d_state": 4,
                "loss": {"class_path": "seqrec.SampledSoftmax", "init_args": {}},
                "optimizer": {
                    "class_path": "seqrec.Adam",
                    "init_args": {"schedule": {"class_path": "seqrec.LinearWarmup", "init_args": {"warmup_steps": 10}}},
                },
            },
        },
        "protocol": {"class_path": "seqrec.FullRanking", "init_args": {}},
        "trainer": {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"},
    }
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that appears if the module `stranger`, which can be imported, runs, or a command that makes it."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "marker"
    (tmp_path / "stranger.py").write_text(MODULE.format(marker=str(file)))
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.save({"state_dict": {}, "code": Touch(file)}, "pickled.ckpt")
    yield file
    sys.modules.pop("stranger", None)
