"""The causal convolution in plain torch: a sum of W shifted products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def convolve_shifted(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    initial_state: Tensor | None,
    starts: Tensor | None,
) -> Tensor:
    """Convolve (B, L, D) by (D, W); see `Convolve`. On CPU faster than `conv1d` on a transposed view."""
    length, taps = x.shape[1], weight.shape[1]
    rows = F.pad(x, (0, 0, taps - 1, 0)) if initial_state is None else torch.cat([initial_state, x], 1)
    starts_of_rows = None if starts is None else F.pad(starts, (taps - 1, 0))
    out = torch.zeros_like(weight[:, 0]) if bias is None else bias
    for shift, tap in enumerate(weight.unbind(1)):
        seen = rows[:, shift : shift + length]
        if starts is not None and starts_of_rows is not None and shift < taps - 1:
            # A product with 0 would let NaN through.
            is_older = starts_of_rows[:, shift : shift + length] != starts
            seen = seen.masked_fill(is_older.unsqueeze(-1), 0)
        out = torch.addcmul(out, seen, tap)
    return F.silu(out) if silu else out
