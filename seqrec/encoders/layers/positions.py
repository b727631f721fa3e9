"""Positions of events that are learned, counted back from the newest event. B batch, L events, D width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.errors import InputError
from seqrec.types import History


class LearnedPositions(nn.Module):
    """A vector for each of `max_length` distances from the newest event: 0 for the newest, 1 for the one before, ..

    These are SASRec's positions, because its left padding puts the newest event at a fixed place: recency
    means the same in short and in long histories.

    Args:
        max_length: Longest history.
        d_model: Width D.
        further: Events that may follow a history, such as a mask, which have positions too.

    Raises:
        InputError: (in `forward`) if a history is longer than `max_length`.
    """

    def __init__(self, max_length: int, d_model: int, *, further: int = 0) -> None:
        super().__init__()
        self.max_length = max_length
        self.further = further
        self.weight = nn.Parameter(torch.empty(max_length + further, d_model))
        nn.init.normal_(self.weight, std=d_model**-0.5 / 4)

    def forward(self, history: History) -> Tensor:
        """Return position vectors (B, L, D); those at padding are the newest event's and have no meaning."""
        length = history.item_ids.shape[1]
        if length > len(self.weight):
            raise InputError(
                f"a history of {length - self.further} events exceeds max_length={self.max_length}, for which "
                "positions were learned; cut it to the newest events, raise max_length, or train with positions: false"
            )
        steps = torch.arange(length, device=self.weight.device)
        distances = (history.lengths.unsqueeze(1) - 1 - steps).clamp_min(0)
        # Half the time of indexing.
        return F.embedding(distances, self.weight)
