"""The contract of training objectives. Shapes: M events of the batch that have a target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqrec.catalogue.scorer import Scorer
from seqrec.registry import Registry
from seqrec.training.negatives import NegativeSampler
from seqrec.types import SequenceBatch


class Loss(nn.Module, ABC):
    """Objective over all events' next items. Constructor arguments are kept as attributes of the same name.

    Attributes:
        negatives: Draws the negatives; None where the objective draws none.
    """

    negatives: NegativeSampler | None = None

    @property
    def needs_seen(self) -> bool:
        """Whether the objective reads `SequenceBatch.seen`; an objective without a sampler may, and says so if not."""
        return self.negatives is None or self.negatives.exclude_seen

    @property
    def reads_all_items(self) -> bool:
        """Whether each step scores the whole catalogue, so that all item vectors have gradients."""
        return False

    @property
    def needs_item_counts(self) -> bool:
        """Whether `use_item_counts` must be called before the first step."""
        return self.negatives is not None and self.negatives.needs_item_counts

    def use_item_counts(self, counts: Tensor) -> None:
        """Take how often each item occurs in training; the model does so when fitting starts.

        Args:
            counts: (num_items + 1,) int64; item 0 has none.
        """
        if self.negatives is not None:
            self.negatives.use_item_counts(counts)

    @abstractmethod
    def forward(self, states: Tensor, batch: SequenceBatch, scorer: Scorer) -> Tensor:
        """Mean over the batch's targets.

        Args:
            states: (B, L, D) encoder states; those at padding are ignored.
            batch: Targets and what the users have seen.
            scorer: Scores any items for any states, so that an objective scores only what it needs.

        Returns:
            Scalar.
        """


class Events(NamedTuple):
    """The batch's events that have a target, without padding.

    Attributes:
        rows: (M,) user row of each event.
        states: (M, D), in float32 where the encoder gave less.
        targets: (M,) item ids.
    """

    rows: Tensor
    states: Tensor
    targets: Tensor


def select_events(states: Tensor, batch: SequenceBatch) -> Events:
    """Events of `states` (B, L, D) that are no padding."""
    assert batch.targets is not None
    places = batch.history.valid.flatten().nonzero().squeeze(1)
    # The gradient of one index is added to places that are distinct; that of two would be sorted first on a GPU.
    found = states.flatten(0, 1).index_select(0, places)
    return Events(
        places // states.shape[1], at_least_float32(found), batch.targets.flatten().index_select(0, places)
    )


def at_least_float32(values: Tensor) -> Tensor:
    """Values as they are, or as float32 where they are of 16 bits, for sums and exponentials."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


LOSSES: Registry[Loss] = Registry("loss", Loss)  # type: ignore[type-abstract]
