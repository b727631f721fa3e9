"""The Triton scan: what torch must know of it. Its kernels are imported at first use.

Shapes: B batch, L events, D channels, N states a channel.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from seqrec.ops.selective_scan.autograd import differentiable_scan
from seqrec.ops.selective_scan.problem import ScanProblem
from seqrec.ops.triton_support import DEVICES


def launch() -> Any:
    """The module that starts the kernels."""
    from seqrec.ops.selective_scan import triton_launch

    return triton_launch


def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    valid: Tensor | None,
    start: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state, and where `keep` the states that backward starts from."""
    problem = ScanProblem(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, valid, start)
    y, last, kept = launch().forward(problem, keep)
    return y, last, kept


def _backward(
    dy: Tensor | None,
    dlast: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    valid: Tensor | None,
    start: Tensor | None,
    kept: Tensor,
) -> list[Tensor]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias and initial state; empty where the input was None."""
    problem = ScanProblem(u, delta, A, B, C, D, z, delta_bias, delta_softplus, None, valid, start)
    gradients: list[Tensor] = launch().backward(problem, kept, dy, dlast)
    return gradients


def _kept_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    shape: tuple[int, ...] = launch().kept_shape(u, A)
    return shape


_scan = differentiable_scan(
    "selective_scan_triton", _forward, _backward, _kept_shape, device_types=DEVICES, what="triton"
)


def scan_triton(problem: ScanProblem) -> tuple[Tensor, Tensor]:
    """Same as `selective_scan` in float32 on a GPU, with everything in the same pass.

    Returns:
        y (B, L, D) and the last state (B, D, N).
    """
    y, last, _ = _scan(*problem[:12], problem.wants_gradient)
    return y, last
