"""Two runs with one seed end with the same weights, to the bit."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic
from seqrec.data.windows import RandomCrop
from seqrec.models import MambaRec
from seqrec.runs.callbacks import ResumePoints
from seqrec.runs.checkpoints import read_checkpoint
from seqrec.training.losses import SampledSoftmax
from seqrec.training.negatives import PopularityNegatives

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def checkpoint_hash(folder: Path, *, workers: int, seed: int = 0) -> str:
    """SHA-256 of the checkpoint's weights and optimiser state behind two epochs, with all that draws."""
    # What was drawn before must not matter.
    random.seed(workers)
    np.random.seed(workers)
    torch.manual_seed(workers + 1)
    pl.seed_everything(seed, workers=True, verbose=False)
    data = SequenceDataModule(
        Synthetic(num_users=40, num_items=30, mean_events=20),
        store=str(folder / "store"),
        max_length=12,
        batch_size=8,
        num_workers=workers,
        train_windows=RandomCrop(),
        seed=seed,
    )
    loss = SampledSoftmax(PopularityNegatives(8))
    model = MambaRec(data.num_items, d_model=8, num_layers=1, d_state=4, max_length=12, dropout=0.3, loss=loss)
    run = folder / f"{len(list(folder.iterdir()))}"
    trainer = pl.Trainer(
        callbacks=[ResumePoints(dirpath=str(run))],
        accelerator="cpu",
        max_epochs=2,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    saved = read_checkpoint(run / "last.ckpt")
    digest = hashlib.sha256()
    (optimizer,) = saved["optimizer_states"]
    states = [value for _, state in sorted(optimizer["state"].items()) for _, value in sorted(state.items())]
    for value in [*saved["state_dict"].values(), *states]:
        digest.update(torch.as_tensor(value).contiguous().numpy().tobytes())
    return digest.hexdigest()


def test_runs_with_one_seed_give_identical_checkpoints_with_and_without_loader_processes(tmp_path: Path):
    hashes = [checkpoint_hash(tmp_path, workers=workers) for workers in (0, 0, 2, 2)]
    assert len(set(hashes)) == 1
    assert checkpoint_hash(tmp_path, workers=0, seed=1) != hashes[0]
