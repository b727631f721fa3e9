"""Popularity: the baseline that every encoder must beat."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.models.baselines.base import Baseline, check_catalogue
from seqrec.models.baselines.training_events import TrainingEvents
from seqrec.types import SequenceBatch


class Popularity(Baseline):
    """Ranks items by how often they occur in the training part of the log; the same list for every user.

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

    def count(self, events: TrainingEvents) -> None:
        """See `Baseline.count`."""
        check_catalogue(self.title, len(self.item_counts) - 1, events)
        self.item_counts.copy_(torch.from_numpy(events.item_counts()))

    def last_states(self, batch: SequenceBatch) -> Tensor:
        """(B, 1) ones: the count is the score."""
        return self.item_counts.new_ones(len(batch), 1)

    def scorer(self) -> Scorer:
        """See `Recommender.scorer`."""
        return Scorer(self.item_counts.unsqueeze(1))
