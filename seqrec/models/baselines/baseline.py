"""The base of baselines, which are counted from the training part instead of trained."""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.data.datamodule import SequenceDataModule
from seqrec.errors import InputError
from seqrec.models.baselines.training_events import TrainingEvents
from seqrec.models.prequential import prefix_batches
from seqrec.models.recommender import Recommender
from seqrec.types import SequenceBatch


class Baseline(Recommender):
    """A model without gradients: `fit` counts the training part at its start, and ends after one epoch without steps.

    `test`, `validate` and `predict` of a model that is neither counted nor loaded count first.

    All counts are buffers, so checkpoints contain them. Every process of a job counts the whole training part.

    Example:
        >>> from seqrec import Baseline, Popularity
        >>> issubclass(Popularity, Baseline), list(Popularity(num_items=3).parameters())
        (True, [])
    """

    @abstractmethod
    def count(self, events: TrainingEvents) -> None:
        """Count a training part into the buffers, replacing earlier counts.

        Raises:
            InputError: if its catalogue is another one, or it lacks a column that is counted.
        """

    def states_before_targets(self, batch: SequenceBatch) -> Tensor:
        """Return the (T, D) states before each target of a prequential batch, those of histories padded with 0."""
        states = [self.last_states(prefix) for _, prefix in prefix_batches(batch, None)]
        width = max(part.shape[1] for part in states)
        return torch.cat([F.pad(part, (0, width - part.shape[1])) for part in states])

    def on_fit_start(self) -> None:
        """Count the data module's training part.

        Raises:
            InputError: if the trainer has no `SequenceDataModule`.
        """
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, SequenceDataModule):
            raise InputError(
                f"{self.title} is fitted from a SequenceDataModule, as in trainer.fit(model, datamodule=data); "
                f"or call {self.title}.count with TrainingEvents"
            )
        self.count(TrainingEvents.of(data.store, data.split))

    def on_validation_start(self) -> None:
        """Count before the first evaluation or prediction, unless it is counted or loaded already."""
        if not any(bool(buffer.any()) for buffer in self.buffers()):
            self.on_fit_start()

    on_test_start = on_predict_start = on_validation_start

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        """Do nothing: everything was counted at the start."""

    def on_train_epoch_end(self) -> None:
        """Stop, as a second epoch would change nothing."""
        self.trainer.should_stop = True

    def configure_optimizers(self) -> None:
        """Return no optimizer."""


def check_catalogue(title: str, num_items: int, events: TrainingEvents) -> None:
    """Raise an `InputError` if a training part has another number of items than the model."""
    if events.num_items != num_items:
        raise InputError(
            f"{title} was built with num_items={num_items}, the log has {events.num_items} items; "
            f"build it with num_items={events.num_items}"
        )
