"""The Triton scan: what torch must know of it. Its kernels are imported at first use.

Shapes: B batch, L events, D channels, N states a channel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqrec.ops import triton_support
from seqrec.ops.selective_scan.differentiation import differentiable_scan
from seqrec.ops.selective_scan.problem import ScanProblem
from seqrec.ops.triton_support import DEVICES


def missing() -> str | None:
    """Why the Triton scan is unavailable, with the fix; None where it is available."""
    return triton_support.missing(_launch)


def _launch() -> Any:
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
    y, last, kept = _launch().forward(problem, keep)
    return y, last, kept


def _forward_fake(
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
    kept = u.new_empty(_launch().kept_shape(u, A) if keep else (0,))
    return _like(u), u.new_empty(u.shape[0], *A.shape), kept


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


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
    gradients: list[Tensor] = _launch().backward(problem, kept, dy, dlast)
    return gradients


def _backward_fake(
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
    gradients = [u.new_empty(0) if x is None else _like(x) for x in (u, delta, A, B, C, D, z, delta_bias)]
    return [*gradients, u.new_empty(u.shape[0], *A.shape)]


_forward_op = torch.library.custom_op(
    "seqrec::selective_scan_triton_fwd", _forward, mutates_args=(), device_types=DEVICES
)
_backward_op = torch.library.custom_op(
    "seqrec::selective_scan_triton_bwd", _backward, mutates_args=(), device_types=DEVICES
)
_forward_op.register_fake(_forward_fake)
_backward_op.register_fake(_backward_fake)
_scan = differentiable_scan(_forward_op, _forward, _backward_op, _backward, "triton")


def scan_triton(problem: ScanProblem) -> tuple[Tensor, Tensor]:
    """Same as `selective_scan` in float32 on a GPU, with everything in the same pass.

    Returns:
        y (B, L, D) and the last state (B, D, N).
    """
    y, last, _ = _scan(*problem[:12], problem.wants_gradient)
    return y, last
