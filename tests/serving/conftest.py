from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest

from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic
from seqrec.models import MambaRec


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a model that streams, after one step of training."""
    folder = tmp_path_factory.mktemp("trained")
    data = SequenceDataModule(
        Synthetic(num_users=20, num_items=30, mean_events=10), store=str(folder / "store"), max_length=8
    )
    trainer = pl.Trainer(
        max_steps=1,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(MambaRec(data.num_items, d_model=8, d_state=4, max_length=8, positions=False), data)
    trainer.save_checkpoint(folder / "model.ckpt")
    return folder / "model.ckpt"
