"""Learned positions that count back from the newest event."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqrec.errors import InputError
from seqrec.types import History


class LearnedPositions(nn.Module):
    """A vector for each distance from the newest event: 0 for the newest, 1 for the one before, ..

    The same as SASRec's positions, whose left padding puts the newest event at a fixed place: recency
    means the same in short and in long histories.

    Args:
        max_length: Distances that have a vector.
        d_model: Width D.

    Raises:
        InputError: (in `forward`) a history longer than `max_length`.
    """

    def __init__(self, max_length: int, d_model: int) -> None:
        super().__init__()
        self.max_length = max_length
        self.weight = nn.Parameter(torch.empty(max_length, d_model))
        nn.init.normal_(self.weight, std=d_model**-0.5 / 4)

    def forward(self, history: History) -> Tensor:
        """(B, L, D) position vectors; those at padding are the newest event's and mean nothing."""
        length = history.item_ids.shape[1]
        if length > self.max_length:
            raise InputError(
                f"a history of {length} events exceeds max_length={self.max_length}, for which positions were "
                "learned; cut it to the newest events, raise max_length, or train with positions: false"
            )
        steps = torch.arange(length, device=self.weight.device)
        distances = (history.lengths.unsqueeze(1) - 1 - steps).clamp_min(0)
        return self.weight[distances]
