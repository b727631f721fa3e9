from __future__ import annotations

import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic
from seqrec.models import SASRec


@pytest.fixture(scope="session")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model after one step on 60 users; its store lies beside it."""
    folder = tmp_path_factory.mktemp("bulk")
    source = Synthetic(num_users=60, num_items=50, mean_events=12)
    data = SequenceDataModule(source, store=str(folder / "store"), max_length=8)
    torch.manual_seed(0)
    model = SASRec(data.num_items, d_model=8, max_length=8, user_embedding=True, num_users=data.num_users)
    trainer = pl.Trainer(
        max_steps=1,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, data)
    # Vectors that tell users and items apart.
    for table in (model.items, model.users):
        torch.nn.init.normal_(table.weight[1:].detach())
    trainer.save_checkpoint(folder / "model.ckpt")
    return folder / "model.ckpt"
