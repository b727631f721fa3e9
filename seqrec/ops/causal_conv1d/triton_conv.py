"""The Triton convolution: what torch must know of it. Its kernels are imported at first use.

Shapes: B batch, L events, D channels, W taps.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from seqrec.ops.causal_conv1d.autograd import differentiable_convolution
from seqrec.ops.causal_conv1d.problem import ConvProblem
from seqrec.ops.triton_support import DEVICES


def launch() -> Any:
    """The module that starts the kernels."""
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
    out, last = launch().forward(ConvProblem(x, weight, bias, silu, initial_state, valid, start))
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
    dx, dweights, dinitial = launch().backward(problem, dout, dlast)
    return dx, dweights, dinitial


def _new_gradients(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = launch().new_gradients(x, weight, initial_state)
    return gradients


_convolve = differentiable_convolution(
    "causal_conv1d_triton", _forward, _backward, _new_gradients, device_types=DEVICES, what="triton"
)


def conv_triton(problem: ConvProblem) -> tuple[Tensor, Tensor]:
    """Same as `causal_conv1d` in float32 on a GPU, each way in one launch.

    Returns:
        Outputs (B, L, D) and the last state (B, W - 1, D).
    """
    out, last = _convolve(*problem)
    return out, last
