"""The causal convolution in plain torch: a sum of W shifted products, and its form for `torch.export`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.ops.causal_conv1d.problem import ConvProblem, with_state_and_padding


def convolve_shifted(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    initial_state: Tensor | None,
    starts: Tensor | None,
) -> Tensor:
    """Convolve (B, L, D) by (D, W); see `Convolve`. On CPU it is faster than `conv1d` on a transposed view."""
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


def conv_exported(problem: ConvProblem) -> tuple[Tensor, Tensor]:
    """Compute `conv_reference` with a last state that exports for any number of events."""
    x, weight, bias, silu, initial_state, valid, start = problem
    if valid is not None or start is not None:
        return with_state_and_padding(convolve_shifted)(problem)
    kept = weight.shape[1] - 1
    before = x.new_zeros(x.shape[0], kept, x.shape[2]) if initial_state is None else initial_state
    # Slice the whole: a cut to the newest events would depend on their number.
    last = torch.cat([before, x], 1)[:, x.shape[1] :]
    return convolve_shifted(x, weight, bias, silu, before, None), last
