"""The causal convolution for `torch.export`: `convolve_shifted` with a last state for any number of events."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.ops.causal_conv1d.problem import ConvProblem, with_gate_and_padding
from seqrec.ops.causal_conv1d.shifted import convolve_shifted

_with_padding = with_gate_and_padding(convolve_shifted)


def conv_exported(problem: ConvProblem) -> tuple[Tensor, Tensor]:
    """Same as `conv_reference`."""
    x, weight, bias, silu, initial_state, valid, start = problem
    if valid is not None or start is not None:
        return _with_padding(problem)
    kept = weight.shape[1] - 1
    before = x.new_zeros(x.shape[0], kept, x.shape[2]) if initial_state is None else initial_state
    # Of the whole, where a cut to the newest events would ask how many there are.
    last = torch.cat([before, x], 1)[:, x.shape[1] :]
    return convolve_shifted(x, weight, bias, silu, before, None), last
