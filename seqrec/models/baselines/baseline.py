"""What baselines share: they are counted from the training part, not trained."""

from __future__ import annotations

from abc import abstractmethod

from seqrec.data.datamodule import SequenceDataModule
from seqrec.errors import InputError
from seqrec.models.baselines.training_events import TrainingEvents
from seqrec.models.recommender import Recommender
from seqrec.types import SequenceBatch


class Baseline(Recommender):
    """A model without gradients: `fit` counts the training part when it starts and ends after an epoch without steps.

    Everything that is counted stands in buffers, so that checkpoints hold it. Every process of a distributed
    run counts the whole training part.
    """

    @abstractmethod
    def count(self, events: TrainingEvents) -> None:
        """Count a training part into the buffers; what they held is forgotten.

        Raises:
            InputError: its catalogue is not the model's, or it lacks what is counted.
        """

    def on_fit_start(self) -> None:
        """Count the data module's training part.

        Raises:
            InputError: the trainer has no `SequenceDataModule`.
        """
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, SequenceDataModule):
            raise InputError(
                f"{self.title} is fitted from a SequenceDataModule, as in trainer.fit(model, datamodule=data); "
                f"or call {self.title}.count with TrainingEvents"
            )
        self.count(TrainingEvents.of(data.store, data.split))

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        """Nothing to step: the counts are there since the start."""

    def on_train_epoch_end(self) -> None:
        """Stop: a second epoch would change nothing."""
        self.trainer.should_stop = True

    def configure_optimizers(self) -> None:
        """Nothing to optimise."""


def check_catalogue(title: str, num_items: int, events: TrainingEvents) -> None:
    """Refuse a training part with another catalogue than the model's.

    Raises:
        InputError: the numbers of items differ.
    """
    if events.num_items != num_items:
        raise InputError(
            f"{title} was built with num_items={num_items}, the log has {events.num_items} items; "
            f"build it with num_items={events.num_items}"
        )
