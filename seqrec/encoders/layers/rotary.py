"""Rotary positions. Shapes: L events, W head width, even."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Angles are counted in this many parts of a turn, as whole numbers. They stay exact at any position, where a product of
# floats would lose a digit with each tenfold of events, and a stream has no last event.
TURN = 1 << 32
# Slowest frequency, as one over (RoFormer, section 3.2.2).
BASE = 10_000.0


def rotary_turns(width: int) -> Tensor:
    """(W / 2,) int64: what each pair of channels turns by from one event to the next, 2^32 a full turn.

    `BASE^(-2i / W)` radians for pair i, rounded to a 2^32th of a turn.
    """
    radians = BASE ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return (radians * (TURN / math.tau)).round().to(torch.int64)


def rotate(x: Tensor, positions: Tensor, turns: Tensor) -> Tensor:
    """Turn queries or keys by their positions, so that their products depend on distances alone (RoFormer: Enhanced
    Transformer with Rotary Position Embedding, Su et al. 2021, equation 15).

    Channel i makes a pair with channel i + W / 2, where the paper pairs 2i with 2i + 1: the same up to the order of
    the projection's outputs, and two halves are cheaper to take apart. Angles are computed in float32 at least.

    Args:
        x: (..., L, W).
        positions: int64, broadcasts to (..., L); any origin that queries and keys share.
        turns: (W / 2,) of `rotary_turns`.

    Returns:
        (..., L, W) in x's dtype.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    angles = (positions.unsqueeze(-1) * turns).remainder(TURN).to(dtype) * (math.tau / TURN)
    cos, sin = angles.cos(), angles.sin()
    first, second = x.to(dtype).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
