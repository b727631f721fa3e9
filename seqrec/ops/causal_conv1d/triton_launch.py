"""The Triton convolution's launches: one forward, and one and a sum backward. Letters as in `causal_conv1d`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqrec.ops.causal_conv1d.autograd import new_outputs
from seqrec.ops.causal_conv1d.problem import ConvProblem
from seqrec.ops.causal_conv1d.triton_kernels import conv_gradients, conv_outputs
from seqrec.ops.triton_support import launching_on

# Events and channels of a program. A line of memory holds 32 channels; more events make fewer parts of sums, but fewer
# programs too.
BLOCK_L, BLOCK_D = 32, 32
# Of 32 threads, each of which has 4 numbers of the block: backward holds 2 W - 1 blocks of inputs.
WARPS = 8


def forward(problem: ConvProblem) -> tuple[Tensor, Tensor]:
    """Outputs (B, L, D) and the last state (B, W - 1, D)."""
    x, weight, _, silu, state, _, _ = problem
    (batch, length, channels), taps = x.shape, weight.shape[1]
    out, last = new_outputs(x, weight)
    if x.numel() == 0:
        return out, last.zero_() if state is None else last.copy_(state)
    blocks = -(-length // BLOCK_L)
    x, *rest = _prepared(problem)
    with launching_on(x):
        conv_outputs[(_programs(batch, blocks, channels),)](
            *(x, *rest, out, last, x.stride(0), x.stride(1), length, channels, blocks),
            SILU=silu,
            TAPS=taps,
            KEPT=1 << (taps - 1).bit_length(),
            **_blocks(),
        )
    return out, last


def backward(
    problem: ConvProblem, dout: Tensor | None, dlast: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of weight and bias as one (D * W + D,), and of the initial state, empty where that was None."""
    x, weight, _, silu, state, _, _ = problem
    (batch, length, channels), taps = x.shape, weight.shape[1]
    dx, dweights, dstate = new_gradients(x, weight, state)
    if x.numel() == 0:
        return dx, dweights.zero_(), dstate.zero_() if state is None or dlast is None else dstate.copy_(dlast)
    # The initial state's gradient comes as that of further events in front.
    blocks = -(-(length + (0 if state is None else taps - 1)) // BLOCK_L)
    # Added in a fixed order, where atomic additions would come in any.
    parts = x.new_empty(batch * blocks, channels * (taps + 1))
    x, *rest = _prepared(problem)
    dout = torch.zeros_like(dx) if dout is None else dout.contiguous()
    dlast = None if dlast is None else dlast.contiguous()
    with launching_on(x):
        conv_gradients[(_programs(batch, blocks, channels),)](
            *(x, *rest, dout, dlast, dx, dstate, parts, x.stride(0), x.stride(1), length, channels, blocks),
            SILU=silu,
            TAPS=taps,
            **_blocks(),
        )
    return dx, parts.sum(0), dstate


def new_gradients(x: Tensor, weight: Tensor, initial_state: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Room for what `backward` returns."""
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    dstate = x.new_empty(0 if initial_state is None else initial_state.shape)
    return dx, x.new_empty(weight.numel() + x.shape[2]), dstate


def _programs(batch: int, blocks: int, channels: int) -> int:
    return batch * blocks * -(-channels // BLOCK_D)


def _blocks() -> dict[str, int]:
    return {"BLOCK_L": BLOCK_L, "BLOCK_D": BLOCK_D, "num_warps": WARPS}


def _prepared(problem: ConvProblem) -> tuple[Any, ...]:
    """What kernels read: x, weight, bias, initial state, order, counts and starts."""
    x, weight, bias, _, state, valid, start = problem
    # What a layer convolves is often part of a wider tensor; only channels must lie side by side.
    x = x if x.stride(2) == 1 else x.contiguous()
    bias, state, valid, start = (None if y is None else y.contiguous() for y in (bias, state, valid, start))
    order = counts = starts = None
    if valid is not None:
        order, counts = (~valid).to(torch.uint8).argsort(dim=1, stable=True), valid.sum(1)
    if start is not None:
        starts = start.cumsum(1)
    return x, weight.contiguous(), bias, state, order, counts, starts
