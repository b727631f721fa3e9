"""The contract of training objectives."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from seqrec.registry import Registry
from seqrec.scoring import Scorer
from seqrec.types import SequenceBatch


class Loss(nn.Module, ABC):
    """Objective over all events' next items. Constructor arguments are kept as attributes of the same name."""

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


LOSSES: Registry[Loss] = Registry("loss")
