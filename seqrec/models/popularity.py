"""Popularity: the baseline that every encoder must beat."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec.errors import InputError
from seqrec.models.base import Recommender
from seqrec.scoring import Scorer
from seqrec.types import SequenceBatch


class Popularity(Recommender):
    """Ranks items by how often they occur in the training part of the log; the same list for every user.

    Fitting reads the counts from the data module and ends after one epoch without a step.

    Args:
        num_items: Items of the catalogue.
    """

    item_counts: Tensor

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.save_hyperparameters({"num_items": num_items})
        # float64 counts 2^53 events exactly.
        self.register_buffer("item_counts", torch.zeros(num_items + 1, dtype=torch.float64))

    @classmethod
    def from_counts(cls, item_counts: NDArray[np.int64]) -> Popularity:
        """Fitted model from (V,) counts, as `SequenceDataModule.train_item_counts` gives them."""
        model = cls(len(item_counts) - 1)
        model.item_counts.copy_(torch.from_numpy(item_counts))
        return model

    def last_states(self, batch: SequenceBatch) -> Tensor:
        """(B, 1) ones: the count is the score."""
        return self.item_counts.new_ones(len(batch), 1)

    def scorer(self) -> Scorer:
        """See `Recommender.scorer`."""
        return Scorer(self.item_counts.unsqueeze(1))

    def on_fit_start(self) -> None:
        """Count the training part.

        Raises:
            InputError: the trainer has no data module that can count.
        """
        data = getattr(self.trainer, "datamodule", None)
        if data is None or not hasattr(data, "train_item_counts"):
            raise InputError(
                "Popularity is fitted from a SequenceDataModule; or use Popularity.from_counts(counts)"
            )
        self.item_counts.copy_(torch.from_numpy(data.train_item_counts()))

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        """Nothing to step: the counts are there since the start."""

    def on_train_epoch_end(self) -> None:
        """Stop: a second epoch would change nothing."""
        self.trainer.should_stop = True

    def configure_optimizers(self) -> None:
        """Nothing to optimise."""
