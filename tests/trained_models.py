"""Models after one step of training, for tests of what comes behind it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl

from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.schema import Schema
from seqrec.data.sources import Source
from seqrec.models import Recommender


def one_step(
    build: Callable[[SequenceDataModule], Recommender], source: Source, folder: Path, schema: Schema | None = None
) -> tuple[Recommender, SequenceDataModule, pl.Trainer]:
    """A model of the source's log, whose store lies in the folder; the trainer can save its checkpoint."""
    data = SequenceDataModule(source, store=str(folder / "store"), max_length=8, schema=schema or Schema())
    model = build(data)
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
    return model, data, trainer
