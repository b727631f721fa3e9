"""Causal depthwise convolution over events. Shapes: B batch, L events, D channels, W taps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv1d_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Same as `causal_conv1d`, by torch's own convolution: the oracle."""
    padded = F.pad(x.transpose(1, 2), (weight.shape[1] - 1, 0))
    return F.conv1d(padded, weight.unsqueeze(1), bias, groups=weight.shape[0]).transpose(1, 2)


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve each channel with its own taps; the output at t sees x[t - W + 1 .. t], zeros before the start.

    A sum of W shifted products in (B, L, D): on CPU faster than `conv1d` on a transposed view.

    Args:
        x: (B, L, D).
        weight: (D, W); the last tap multiplies the newest event.
        bias: (D,) or None.

    Returns:
        (B, L, D).
    """
    length, taps = x.shape[1], weight.shape[1]
    out = x * weight[:, -1]
    for shift in range(1, min(taps, length)):
        out = out + F.pad(x[:, : length - shift] * weight[:, taps - 1 - shift], (0, 0, shift, 0))
    return out if bias is None else torch.add(out, bias)
