from __future__ import annotations

from pathlib import Path

import pytest
from trained_models import one_step

from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic
from seqrec.models import MambaRec


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a model that streams, after one step of training."""
    folder = tmp_path_factory.mktemp("trained")

    def build(data: SequenceDataModule) -> MambaRec:
        return MambaRec(data.num_items, d_model=8, d_state=4, max_length=8, positions=False)

    _, _, trainer = one_step(build, Synthetic(num_users=20, num_items=30, mean_events=10), folder)
    trainer.save_checkpoint(folder / "model.ckpt")
    return folder / "model.ckpt"
