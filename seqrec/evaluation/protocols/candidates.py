"""Candidates that targets are ranked against: base class, and whole catalogue.

B users, T targets, D width, V = num_items + 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.errors import InputError
from seqrec.evaluation.target_ranks import Targets, catalogue_ranks
from seqrec.types import SequenceBatch, TargetRanks, TensorRecord


@dataclass(frozen=True)
class TrainingCounts(TensorRecord):
    """Number (V,) int64 of training events of each item; 0 for item 0."""

    counts: Tensor

    @cached_property
    def trained(self) -> Tensor:
        """(V,) bool, items with training events."""
        return self.counts > 0


class Candidates(ABC):
    """A kind of candidates. Constructor arguments are kept as attributes of the same name.

    Attributes:
        needs_item_counts: Whether `ranks` needs the items' counts in training.
        seed: Seed of the draws; None if nothing is drawn.
    """

    needs_item_counts: bool = False
    seed: int | None = None

    @property
    @abstractmethod
    def id(self) -> str:
        """Short name with every setting but the seed."""

    @abstractmethod
    def ranks(
        self,
        scorer: Scorer,
        states: Tensor,
        targets: Targets,
        batch: SequenceBatch,
        *,
        filter_seen: bool,
        item_counts: TrainingCounts | None = None,
    ) -> TargetRanks:
        """Rank each target among the candidates and the user's other targets.

        Args:
            scorer: Scores the candidates.
            states: (B, D) states after the newest events.
            targets: The targets of the users.
            batch: The users, and the items that they have seen before.
            filter_seen: Whether items of the user's history are no candidates, except for its targets.
            item_counts: Needed if `needs_item_counts`.

        Returns:
            Counts (T,).

        Raises:
            InputError: if `item_counts` are missing, or a user has too few candidates.
        """

    def known_counts(self, item_counts: TrainingCounts | None, scorer: Scorer) -> TrainingCounts:
        """Return the counts that `needs_item_counts` requires.

        Raises:
            InputError: if they are missing, or belong to another catalogue.
        """
        if item_counts is None:
            raise InputError(
                f"{type(self).__name__} ({self.id}) needs the items' counts in training: test with a "
                "SequenceDataModule, or call evaluate(model, batches, item_counts=data.train_item_counts())"
            )
        if len(item_counts.counts) != scorer.num_items + 1:
            raise InputError(
                f"item_counts has {len(item_counts.counts) - 1} items, but the model has {scorer.num_items}: give "
                "the counts of the log that it was trained on"
            )
        return item_counts


class WholeCatalogue(Candidates):
    """All items.

    Args:
        trained_only: Whether items without training events are no candidates, except for the targets.

    Example:
        >>> from seqrec import Protocol, WholeCatalogue
        >>> Protocol(candidates=WholeCatalogue(trained_only=True)).id
        'full-trained-seenout-tiemean-loo'
    """

    def __init__(self, *, trained_only: bool = False) -> None:
        self.trained_only = trained_only
        self.needs_item_counts = trained_only

    @property
    def id(self) -> str:
        """`full` or `full-trained`."""
        return "full-trained" if self.trained_only else "full"

    def ranks(
        self,
        scorer: Scorer,
        states: Tensor,
        targets: Targets,
        batch: SequenceBatch,
        *,
        filter_seen: bool,
        item_counts: TrainingCounts | None = None,
    ) -> TargetRanks:
        """Rank each target among the catalogue; see `Candidates.ranks`."""
        trained = self.known_counts(item_counts, scorer).trained if self.trained_only else None
        hidden = batch.seen_events if filter_seen else None
        return catalogue_ranks(scorer, states, targets, hidden=hidden, trained=trained)
