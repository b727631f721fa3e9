"""Base class of training objectives. Shapes: M events of the batch that have a target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqrec.catalogue.scorer import Scorer
from seqrec.data.padding import PaddedBatch
from seqrec.ops.problems import at_least_float32
from seqrec.registry import Registry
from seqrec.training.negatives import Negatives, NegativeSampler
from seqrec.types import SequenceBatch


class Loss(nn.Module, ABC):
    """Objective over the events of a batch whose next event is a target (`SequenceBatch.is_target`).

    Unless the data module filters targets, these are all events. No scores are computed at others. Constructor
    arguments are kept as attributes of the same name.

    Attributes:
        negatives: Draws the negatives; None if the objective draws none.

    Example:
        >>> from seqrec import Loss
        >>> class TargetScore(Loss):
        ...     def forward(self, states, batch, scorer):
        ...         here = batch.is_target
        ...         return -scorer.score(states[here], batch.targets[here].unsqueeze(1)).mean()
        >>> TargetScore().reads_all_items
        False
    """

    negatives: NegativeSampler | None = None

    @property
    def needs_seen(self) -> bool:
        """Whether the objective reads `SequenceBatch.seen`; override it if one without a sampler does not."""
        return self.negatives is None or self.negatives.exclude_seen

    @property
    def reads_all_items(self) -> bool:
        """Whether each step scores the whole catalogue and therefore gives all item vectors a gradient."""
        return False

    @property
    def takes_padding(self) -> bool:
        """Whether the objective leaves out events without a target in a `PaddedBatch`, which `GraphedStep` needs.

        `TargetEvents.mean` and `TargetEvents.counted` do. Those that do not may count padding as events.
        """
        return False

    @property
    def needs_item_counts(self) -> bool:
        """Whether `use_item_counts` must be called before the first step."""
        return self.negatives is not None and self.negatives.needs_item_counts

    def use_item_counts(self, counts: Tensor) -> None:
        """Set the number (num_items + 1,) of training events of each item, 0 for item 0, when fitting starts."""
        if self.negatives is not None:
            self.negatives.use_item_counts(counts)

    @abstractmethod
    def forward(self, states: Tensor, batch: SequenceBatch, scorer: Scorer) -> Tensor:
        """Return the mean over the batch's targets.

        Args:
            states: (B, L, D) encoder states; those at padding, and without a target, are ignored.
            batch: Targets, and the items that the users have seen.
            scorer: Scores any items for any states; an objective scores only the items that it needs.

        Returns:
            Scalar.
        """


class TargetEvents(NamedTuple):
    """The batch's events that have a target, or all events of a `PaddedBatch`.

    Attributes:
        rows: (M,) rows of users.
        states: (M, D), at least float32; 0 at events without a target.
        targets: (M,) item ids; 0 without a target.
        places: (M,) int64, ascending, place of each in the flat batch.
        has_target: (M,) bool; None if all have one.
    """

    rows: Tensor
    states: Tensor
    targets: Tensor
    places: Tensor
    has_target: Tensor | None = None

    def mean(self, costs: Tensor) -> Tensor:
        """Return the mean of costs (M,) of events that have a target."""
        if self.has_target is None:
            return costs.mean()
        return costs.masked_fill(~self.has_target, 0).sum() / self.has_target.sum()

    def counted(self, negatives: Negatives) -> Tensor:
        """Return (M, N) bool, True at draws that count; see `Negatives.counted`."""
        counted = negatives.counted(self.rows, self.targets)
        return counted if self.has_target is None else counted & self.has_target.unsqueeze(1)


def select_events(states: Tensor, batch: SequenceBatch) -> TargetEvents:
    """Return the events of `states` (B, L, D) that have a target; of a `PaddedBatch` all events."""
    assert batch.targets is not None
    if isinstance(batch, PaddedBatch):
        places = torch.arange(batch.targets.numel(), device=states.device)
        has_target = batch.is_target.flatten()
        # States at padding mean nothing, and may be anything.
        found = at_least_float32(states.flatten(0, 1)).masked_fill(~has_target.unsqueeze(1), 0)
        rows = torch.div(places, states.shape[1], rounding_mode="floor")
        return TargetEvents(rows, found, batch.targets.flatten(), places, has_target)
    places = batch.is_target.flatten().nonzero().squeeze(1)
    # One index, because its places are distinct and their gradients are simply added. A GPU would first sort two.
    found = states.flatten(0, 1).index_select(0, places)
    targets = batch.targets.flatten().index_select(0, places)
    return TargetEvents(places // states.shape[1], at_least_float32(found), targets, places)


LOSSES: Registry[Loss] = Registry("loss", Loss)  # type: ignore[type-abstract]
