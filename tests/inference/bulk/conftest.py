from __future__ import annotations

from pathlib import Path

import pytest
import torch
from trained_models import one_step

from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic
from seqrec.models import SASRec


@pytest.fixture(scope="session")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model after one step on 60 users; its store lies beside it."""
    folder = tmp_path_factory.mktemp("bulk")
    torch.manual_seed(0)

    def build(data: SequenceDataModule) -> SASRec:
        return SASRec(data.num_items, d_model=8, max_length=8, user_embedding=True, num_users=data.num_users)

    model, _, trainer = one_step(build, Synthetic(num_users=60, num_items=50, mean_events=12), folder)
    # Vectors that tell users and items apart.
    for table in (model.items, model.users):
        torch.nn.init.normal_(table.weight[1:].detach())
    trainer.save_checkpoint(folder / "model.ckpt")
    return folder / "model.ckpt"
