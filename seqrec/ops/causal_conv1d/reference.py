"""The causal convolution one event after another: the oracle for every faster path."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.ops.causal_conv1d.problem import ConvProblem


def conv_reference(problem: ConvProblem) -> tuple[Tensor, Tensor]:
    """Compute `causal_conv1d` with a window of the last W - 1 inputs.

    Returns:
        Outputs (B, L, D) and the last window (B, W - 1, D).
    """
    x, weight, bias, silu, window, valid, start = problem
    if window is None:
        window = x.new_zeros(x.shape[0], weight.shape[1] - 1, x.shape[2])
    outputs = []
    for t, x_t in enumerate(x.unbind(1)):
        if start is not None:
            window = window.masked_fill(start[:, t, None, None], 0)
        if valid is not None:
            x_t = x_t.masked_fill(~valid[:, t, None], 0)
        seen = torch.cat([window, x_t.unsqueeze(1)], 1)
        out = (seen * weight.t()).sum(1)
        out = out if bias is None else out + bias
        out = F.silu(out) if silu else out
        if valid is None:
            window = seen[:, 1:]
        else:
            out = out.masked_fill(~valid[:, t, None], 0)
            window = torch.where(valid[:, t, None, None], seen[:, 1:], window)
        outputs.append(out)
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(x)), window
