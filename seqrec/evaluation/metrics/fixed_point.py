"""Sums of floats that do not depend on their order, so that batches and ranks cannot change the last digit."""

from __future__ import annotations

import torch
from torch import Tensor

# Bits of each of the two parts behind the binary point. Values of at most 1 add up to 2^32 before the high part
# overflows, and what a value loses, 2^-63, lies below the last bit of any float64 above 2^-10.
PART_BITS = 31


def to_fixed_point(values: Tensor) -> Tensor:
    """Integers (.., 2) int64 whose sums are exact, whatever their order.

    Args:
        values: (..) float64, at least 0. The high part counts units of 2^-31, the low one units of 2^-62.
    """
    scaled = values * 2.0**PART_BITS
    high = scaled.floor()
    # Exact: the difference of a float64 and its integer part is one too.
    low = ((scaled - high) * 2.0**PART_BITS).round()
    return torch.stack([high, low], dim=-1).long()


def from_fixed_point(parts: Tensor) -> Tensor:
    """(..) float64, nearest to what the integers (.., 2) of `to_fixed_point`, or sums of them, stand for."""
    return parts[..., 0].double() * 2.0**-PART_BITS + parts[..., 1].double() * 2.0 ** (-2 * PART_BITS)
