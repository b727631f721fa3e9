"""The Triton convolution: what torch must know of it. Its kernels are imported at first use.

Shapes: B batch, L events, D channels, W taps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqrec.ops import triton_support
from seqrec.ops.causal_conv1d.differentiation import differentiable_convolution
from seqrec.ops.causal_conv1d.problem import ConvProblem
from seqrec.ops.triton_support import DEVICES


def missing() -> str | None:
    """Why the Triton convolution is unavailable, with the fix; None where it is available."""
    return triton_support.missing(_launch)


def _launch() -> Any:
    from seqrec.ops.causal_conv1d import triton_launch

    return triton_launch


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    initial_state: Tensor | None,
    valid: Tensor | None,
    start: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Outputs and the last state."""
    out, last = _launch().forward(ConvProblem(x, weight, bias, silu, initial_state, valid, start))
    return out, last


def _forward_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    initial_state: Tensor | None,
    valid: Tensor | None,
    start: Tensor | None,
) -> tuple[Tensor, Tensor]:
    out, last = _launch().new_forward(x, weight)
    return out, last


def _backward(
    dout: Tensor | None,
    dlast: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    initial_state: Tensor | None,
    valid: Tensor | None,
    start: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of weight and bias in one, and of the initial state, empty where that was None."""
    problem = ConvProblem(x, weight, bias, silu, initial_state, valid, start)
    dx, dweights, dinitial = _launch().backward(problem, dout, dlast)
    return dx, dweights, dinitial


def _backward_fake(
    dout: Tensor | None,
    dlast: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    initial_state: Tensor | None,
    valid: Tensor | None,
    start: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dweights, dinitial = _launch().new_backward(x, weight, initial_state)
    return dx, dweights, dinitial


_forward_op = torch.library.custom_op(
    "seqrec::causal_conv1d_triton_fwd", _forward, mutates_args=(), device_types=DEVICES
)
_backward_op = torch.library.custom_op(
    "seqrec::causal_conv1d_triton_bwd", _backward, mutates_args=(), device_types=DEVICES
)
_forward_op.register_fake(_forward_fake)
_backward_op.register_fake(_backward_fake)
_convolve = differentiable_convolution(_forward_op, _forward, _backward_op, _backward, "triton")


def conv_triton(problem: ConvProblem) -> tuple[Tensor, Tensor]:
    """Same as `causal_conv1d` in float32 on a GPU, each way in one launch.

    Returns:
        Outputs (B, L, D) and the last state (B, W - 1, D).
    """
    out, last = _convolve(*problem)
    return out, last
