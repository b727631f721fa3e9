"""Base class of training objectives. Shapes: M events of the batch that have a target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from seqrec.catalogue.scorer import Scorer
from seqrec.ops.problems import at_least_float32
from seqrec.registry import Registry
from seqrec.training.negatives import NegativeSampler
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
    """The batch's events that have a target: rows of users (M,), states (M, D), at least float32, targets (M,), item
    ids, and places (M,), ascending, of each in the flat batch.
    """

    rows: Tensor
    states: Tensor
    targets: Tensor
    places: Tensor


def select_events(states: Tensor, batch: SequenceBatch) -> TargetEvents:
    """Return the events of `states` (B, L, D) that have a target."""
    assert batch.targets is not None
    places = batch.is_target.flatten().nonzero().squeeze(1)
    # One index, because its places are distinct and their gradients are simply added. A GPU would first sort two.
    found = states.flatten(0, 1).index_select(0, places)
    targets = batch.targets.flatten().index_select(0, places)
    return TargetEvents(places // states.shape[1], at_least_float32(found), targets, places)


LOSSES: Registry[Loss] = Registry("loss", Loss)  # type: ignore[type-abstract]
