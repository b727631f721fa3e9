"""Rounding to bfloat16 up or down at random, so that the mean is the number that was rounded."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# A float32 is a bfloat16 followed by 16 further bits of the fraction.
DROPPED_BITS = 16


def step_generator(seed: int, step: int, part: int, device: torch.device) -> torch.Generator:
    """Generator of one table's random bits at one step; draws nothing from torch's global ones.

    Args:
        seed: The optimiser's.
        step: Number of the step.
        part: Number of the table.
        device: Where bits are drawn; devices of different kinds draw different ones.
    """
    # Mixed, so that neighbouring steps and tables have nothing in common.
    mixed = np.random.SeedSequence((seed, step, part)).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(mixed))


def round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:
    """The bfloat16 next below or above in magnitude, the nearer the likelier: the expectation is `values`.

    With nearest rounding a weight does not move at all where updates are less than half of its last place, which is
    2^-9 of the weight; with this one such updates arrive on average (Gupta et al. 2015, Deep Learning with Limited
    Numerical Precision, section 3). What bfloat16 holds exactly stays as it is, as do infinities and NaN. Beyond
    the largest bfloat16 the number above is infinity.

    Args:
        values: Float32 of any shape.
        generator: Draws 16 bits a value.

    Returns:
        Bfloat16 of the same shape.
    """
    # Four times 16 bits of one 64-bit draw take a sixth of the time of drawing each.
    drawn = torch.empty(-(-values.numel() // 4), dtype=torch.int64, device=values.device)
    drawn.random_(-(2**63), None, generator=generator)
    noise = drawn.view(torch.int16)[: values.numel()].view(values.shape).to(torch.int32)
    low_bits = (1 << DROPPED_BITS) - 1
    # Magnitudes of both signs grow with their bits read as a number, so a carry leads to the next one away from 0.
    bits = noise.bitwise_and_(low_bits).add_(values.view(torch.int32)).bitwise_and_(~low_bits)
    return torch.where(values.isfinite(), bits.view(torch.float32), values).to(torch.bfloat16)
