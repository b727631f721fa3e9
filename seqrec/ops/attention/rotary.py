"""Rotary positions. L events, W head width, even."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Angles are counted in this many parts of a turn, as integers. They are exact at any position of a stream, which has
# no end, whereas a product of floats loses a digit with each tenfold of events.
TURN = 1 << 32
# Inverse of the slowest frequency (RoFormer, section 3.2.2).
BASE = 10_000.0


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
