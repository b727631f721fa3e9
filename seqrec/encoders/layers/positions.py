"""Positions of events: learned ones that count back from the newest event, and rotary ones.

B batch, L events, D width, W head width, even.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.errors import InputError
from seqrec.types import History

# Angles are counted in this many parts of a turn, as integers. They are exact at any position of a stream, which has
# no end, whereas a product of floats loses a digit with each tenfold of events.
TURN = 1 << 32
# Inverse of the slowest frequency (RoFormer, section 3.2.2).
BASE = 10_000.0


class LearnedPositions(nn.Module):
    """A vector for each of `max_length` distances from the newest event: 0 for the newest, 1 for the one before, ..

    These are SASRec's positions, because its left padding puts the newest event at a fixed place: recency
    means the same in short and in long histories.

    Raises:
        InputError: (in `forward`) if a history is longer than `max_length`.
    """

    def __init__(self, max_length: int, d_model: int) -> None:
        super().__init__()
        self.max_length = max_length
        self.weight = nn.Parameter(torch.empty(max_length, d_model))
        nn.init.normal_(self.weight, std=d_model**-0.5 / 4)

    def forward(self, history: History) -> Tensor:
        """Return position vectors (B, L, D); those at padding are the newest event's and have no meaning."""
        length = history.item_ids.shape[1]
        if length > self.max_length:
            raise InputError(
                f"a history of {length} events exceeds max_length={self.max_length}, for which positions were "
                "learned; cut it to the newest events, raise max_length, or train with positions: false"
            )
        steps = torch.arange(length, device=self.weight.device)
        distances = (history.lengths.unsqueeze(1) - 1 - steps).clamp_min(0)
        # Half the time of indexing.
        return F.embedding(distances, self.weight)


def rotary_turns(width: int) -> Tensor:
    """Return the rotation (W / 2,) int64 of each pair of channels per event, in parts of a turn of 2^32.

    It is `BASE^(-2i / W)` radians for pair i, rounded.
    """
    radians = BASE ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return (radians * (TURN / math.tau)).round().to(torch.int64)


def rotate(x: Tensor, positions: Tensor, turns: Tensor) -> Tensor:
    """Rotate queries or keys x (..., L, W) by their positions, which makes their products depend on distances alone
    (RoFormer: Enhanced Transformer with Rotary Position Embedding, Su et al. 2021, equation 15).

    Channel i is paired with channel i + W / 2, whereas the paper pairs 2i with 2i + 1. That is the same up to the order
    of the projection's outputs, and two halves are cheaper to split. Angles are computed in float32 at least.
    Positions, int64, broadcast to (..., L), from any origin that queries and keys share; `turns` (W / 2,) are from
    `rotary_turns`.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    angles = (positions.unsqueeze(-1) * turns).remainder(TURN).to(dtype) * (math.tau / TURN)
    cos, sin = angles.cos(), angles.sin()
    first, second = x.to(dtype).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
