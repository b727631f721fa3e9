"""Candidates that targets are ranked against: base class, and whole catalogue.

B users, T targets, D width, V = num_items + 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.errors import InputError
from seqrec.evaluation.target_ranks import Targets, catalogue_ranks
from seqrec.types import SequenceBatch, TargetRanks, TensorRecord


@dataclass(frozen=True)
class TrainingCounts(TensorRecord):
    """The items' events in a log, as far as candidates depend on them.

    Attributes:
        counts: (V,) int64, number of training events of each item; 0 for item 0. None if no candidates need it.
        first_times: (V,) int64, time of each item's first event in the whole log, training part or not, as
            `seqrec.data.item_counts.first_event_times` returns it. None if no candidates need it.
    """

    counts: Tensor | None = None
    first_times: Tensor | None = None

    @cached_property
    def trained(self) -> Tensor:
        """(V,) bool, items with training events."""
        assert self.counts is not None
        return self.counts > 0

    @cached_property
    def by_first_time(self) -> Tensor:
        """(V,) int64, item 0 and then the others by the time of their first event."""
        assert self.first_times is not None
        order = self.first_times[1:].argsort(stable=True) + 1
        return torch.cat([order.new_zeros(1), order])


class Candidates(ABC):
    """A kind of candidates. Constructor arguments are kept as attributes of the same name.

    Attributes:
        needs_item_counts: Whether `ranks` needs the items' counts in training.
        needs_first_times: Whether `ranks` needs the times of the items' first events.
        seed: Seed of the draws; None if nothing is drawn.
    """

    needs_item_counts: bool = False
    needs_first_times: bool = False
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
            item_counts: Needed if `needs_item_counts` or `needs_first_times`.

        Returns:
            Counts (T,).

        Raises:
            InputError: if `item_counts` or times are missing, or a user has too few candidates.
        """

    def known_counts(self, item_counts: TrainingCounts | None, scorer: Scorer) -> TrainingCounts | None:
        """Return the counts and times that `needs_item_counts` and `needs_first_times` require; None without these.

        Raises:
            InputError: if they are missing, or belong to another catalogue.
        """
        given = item_counts or TrainingCounts()
        for needed, values, words, argument in (
            (self.needs_item_counts, given.counts, "the items' counts in training", "item_counts"),
            (self.needs_first_times, given.first_times, "the times of the items' first events", "first_times"),
        ):
            if needed and values is None:
                source = {"item_counts": "train_item_counts()", "first_times": "first_event_times"}[argument]
                raise InputError(
                    f"{type(self).__name__} ({self.id}) needs {words}: test with a SequenceDataModule, or call "
                    f"evaluate(model, batches, {argument}=data.{source})"
                )
            if needed and values is not None and len(values) != scorer.num_items + 1:
                raise InputError(
                    f"{argument} has {len(values) - 1} items, but the model has {scorer.num_items}: give those of the "
                    "log that it was trained on"
                )
        return item_counts if self.needs_item_counts or self.needs_first_times else None


class WholeCatalogue(Candidates):
    """All items.

    Args:
        trained_only: Whether items without training events are no candidates, except for the targets.
        alive_only: Whether items that nobody had met when the user was asked are no candidates, except for the
            targets: those whose first event in the whole log, of any user and kind, is after the user's target. A user
            with several targets at once is asked at the time of the first. The log must have timestamps.

    Example:
        >>> from seqrec import Protocol, WholeCatalogue
        >>> Protocol(candidates=WholeCatalogue(trained_only=True)).id
        'full-trained-seenout-tiemean-loo'
        >>> WholeCatalogue(alive_only=True).id
        'full-alive'
    """

    def __init__(self, *, trained_only: bool = False, alive_only: bool = False) -> None:
        self.trained_only = self.needs_item_counts = trained_only
        self.alive_only = self.needs_first_times = alive_only

    @property
    def id(self) -> str:
        """`full`, followed by `-trained` and `-alive` if they apply."""
        return "full" + "-trained" * self.trained_only + "-alive" * self.alive_only

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
        known = self.known_counts(item_counts, scorer)
        return catalogue_ranks(
            scorer,
            states,
            targets,
            hidden=batch.seen_events if filter_seen else None,
            trained=known.trained if known and self.trained_only else None,
            first_times=known.first_times if known and self.alive_only else None,
            asked_at=times_asked(batch) if self.alive_only else None,
        )


def times_asked(batch: SequenceBatch) -> Tensor:
    """Return (B,) int64, the time of each user's first held-out item.

    Raises:
        InputError: if the batch has no such times.
    """
    held_out = batch.held_out
    if held_out is None or held_out.timestamps is None:
        raise InputError(
            "alive_only needs the times of the targets, but the batch has none: give the log timestamps, or leave "
            "alive_only out"
        )
    return held_out.timestamps[held_out.offsets[:-1]]
