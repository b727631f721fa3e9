"""Launch the Triton convolution's kernels, which are imported at first use. Letters as in `causal_conv1d`.

Forward is one launch, backward is one launch and a sum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqrec.ops.block_sizes import block_sizes
from seqrec.ops.causal_conv1d.autograd import differentiable_convolution, new_outputs
from seqrec.ops.causal_conv1d.reference import ConvProblem
from seqrec.ops.problems import empty_like
from seqrec.ops.triton_support import DEVICES, launching_on


def kernels() -> Any:
    """Import the kernels."""
    from seqrec.ops.causal_conv1d import triton_kernels

    return triton_kernels


def _forward(problem: ConvProblem) -> tuple[Tensor, Tensor]:
    x, weight, _, silu, state, _, _ = problem
    (batch, length, channels), taps = x.shape, weight.shape[1]
    out, last = new_outputs(problem)
    if x.numel() == 0:
        return out, last.zero_() if state is None else last.copy_(state)
    constants = _blocks(x)
    blocks = -(-length // constants["BLOCK_L"])
    x, *rest = _prepared(problem)
    with launching_on(x):
        kernels().conv_outputs[(batch * blocks * -(-channels // constants["BLOCK_D"]),)](
            *(x, *rest, out, last, x.stride(0), x.stride(1), length, channels, blocks),
            SILU=silu,
            TAPS=taps,
            KEPT=1 << (taps - 1).bit_length(),
            **constants,
        )
    return out, last


def _backward(problem: ConvProblem, dout: Tensor | None, dlast: Tensor | None) -> list[Tensor]:
    """Return gradients of x, of weight and bias as one (D * W + D,), and of the initial state, empty if it is None."""
    x, weight, _, silu, state, _, _ = problem
    (batch, length, channels), taps = x.shape, weight.shape[1]
    dx, dweights, dstate = _new_gradients(problem)
    if x.numel() == 0:
        dstate = dstate.zero_() if state is None or dlast is None else dstate.copy_(dlast)
        return [dx, dweights.zero_(), dstate]
    # The gradient of the initial state is computed as that of further events in front.
    constants = _blocks(x)
    blocks = -(-(length + (0 if state is None else taps - 1)) // constants["BLOCK_L"])
    # Summed in a fixed order, which atomic additions would not have.
    parts = x.new_empty(batch * blocks, channels * (taps + 1), dtype=torch.float32)
    x, *rest = _prepared(problem)
    dout = torch.zeros_like(dx) if dout is None else dout.contiguous()
    dlast = None if dlast is None else dlast.contiguous()
    with launching_on(x):
        kernels().conv_gradients[(batch * blocks * -(-channels // constants["BLOCK_D"]),)](
            *(x, *rest, dout, dlast, dx, dstate, parts, x.stride(0), x.stride(1), length, channels, blocks),
            SILU=silu,
            TAPS=taps,
            **constants,
        )
    return [dx, parts.sum(0).to(weight.dtype), dstate]


def _new_gradients(problem: ConvProblem) -> list[Tensor]:
    x, weight, state = problem.x, problem.weight, problem.initial_state
    dx, dstate = empty_like(x, state)
    return [dx, weight.new_empty(weight.numel() + x.shape[2]), dstate]


def _blocks(x: Tensor) -> dict[str, int]:
    """Return events and channels of a program, and its warps."""
    sizes = block_sizes("causal_conv1d", x.device, x.shape[2])
    return {"BLOCK_L": sizes["events"], "BLOCK_D": sizes["channels"], "num_warps": sizes["warps"]}


def _prepared(problem: ConvProblem) -> tuple[Any, ...]:
    """Return x, weight, bias, initial state, order, counts and starts as kernels read them."""
    x, weight, bias, _, state, valid, start = problem
    # x is often part of a wider tensor, such as a projection; only its channels must be adjacent.
    x = x if x.stride(2) == 1 else x.contiguous()
    bias, state, valid, start = (None if y is None else y.contiguous() for y in (bias, state, valid, start))
    order = counts = starts = None
    if valid is not None:
        order, counts = (~valid).to(torch.uint8).argsort(dim=1, stable=True), valid.sum(1)
    if start is not None:
        starts = start.cumsum(1)
    return x, weight.contiguous(), bias, state, order, counts, starts


# Same as `causal_conv1d` in float32 on a GPU, of inputs in float32 or 16 bits.
conv_triton = differentiable_convolution(
    "causal_conv1d_triton", _forward, _backward, _new_gradients, device_types=DEVICES, label="triton"
)
