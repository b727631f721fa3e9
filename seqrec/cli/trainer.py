"""The trainer of the command line."""

from __future__ import annotations

from typing import Literal

import lightning.pytorch as pl

from seqrec.data.datamodule import SequenceDataModule
from seqrec.experiments.tuning import find_batch_size, find_lr
from seqrec.models import SequentialRecommender


class Trainer(pl.Trainer):
    """Lightning's trainer with two more methods, which are commands with the configs of the others."""

    @staticmethod
    def prepare(datamodule: SequenceDataModule, overwrite: bool = False) -> None:
        """Prepare the event store from the raw log, and summarise it.

        Args:
            datamodule: The log and the folder of the store.
            overwrite: Whether to replace a store that exists.
        """
        if overwrite:
            datamodule.prepare_again()
        print(datamodule.store.summary())

    def tune(
        self,
        what: Literal["lr", "batch_size"],
        model: SequentialRecommender,
        datamodule: SequenceDataModule,
        min_lr: float = 1e-5,
        max_lr: float = 1.0,
        steps: int = 150,
        max_batch_size: int = 8192,
    ) -> None:
        """Find a step size, or the largest batch that fits into memory, and print it.

        Args:
            what: lr or batch_size.
            model: The model to train; its weights are restored.
            datamodule: Its data.
            min_lr: First step size to try.
            max_lr: Last step size to try.
            steps: Number of batches to try step sizes on.
            max_batch_size: Largest batch to try.
        """
        if what == "lr":
            found = find_lr(self, model, datamodule, min_lr=min_lr, max_lr=max_lr, steps=steps)
            name = type(model.optimizer).__name__
            print(f"suggested: --model.optimizer {name} --model.optimizer.lr {found.suggestion:.2g}")
        else:
            size = find_batch_size(self, model, datamodule, max_batch_size=max_batch_size)
            print(f"largest that was tried and fits: --data.batch_size {size}")
