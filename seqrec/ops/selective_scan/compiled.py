"""The compiled CPU scan, as an op that torch knows. Shapes: B batch, L events, D channels, N states a channel."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.ops.compiled_library import call, contiguous
from seqrec.ops.problems import empty_like
from seqrec.ops.selective_scan.autograd import differentiable_scan, new_outputs
from seqrec.ops.selective_scan.problem import ScanProblem

# Events between two states that forward keeps; backward rebuilds those in between.
INTERVAL = 32
# The kept states round D up to this, so that their shape does not depend on the vector width.
PADDING = 16


def _sizes(u: Tensor, A: Tensor) -> dict[str, int]:
    batch, length, channels = u.shape
    return {
        "batch": batch,
        "length": length,
        "channels": channels,
        "states": A.shape[1],
        "interval": INTERVAL,
    }


def _kept_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    batch, length, channels = u.shape
    return batch, -(-length // INTERVAL), A.shape[1], -(-channels // PADDING) * PADDING


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
    inputs = contiguous(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias)
    inputs |= contiguous(initial_state=initial_state, valid=valid, start=start)
    y, last, kept = new_outputs(u, A, _kept_shape(u, A) if keep else None)
    results = {"y": y, "last_state": last, "kept_states": kept if keep else None}
    call("scan_forward", {**_sizes(u, A), "softplus": delta_softplus, "groups": 1}, {**inputs, **results})
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
    inputs = contiguous(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias)
    inputs |= contiguous(valid=valid, start=start, kept_states=kept, dy=dy, dlast_state=dlast)
    batch, length, channels = u.shape
    states = A.shape[1]
    # Twice as many tasks as threads where the rows alone are fewer. Each group has its own dB and dC.
    groups = max(1, min(-(-channels // PADDING), -(-2 * torch.get_num_threads() // max(batch, 1))))
    du, ddelta, dz = empty_like(u, delta, z)
    dA = u.new_empty(batch, channels, states)
    dD, dbias = u.new_empty(batch, channels), u.new_empty(batch, channels)
    dB, dC = u.new_zeros(groups, batch, length, states), u.new_zeros(groups, batch, length, states)
    dinitial = u.new_empty(batch, channels, states)
    results = {"du": du, "ddelta": ddelta, "dA": dA, "dB": dB, "dC": dC, "dD": dD, "dinitial_state": dinitial}
    results |= {"ddelta_bias": dbias} | ({} if z is None else {"dz": dz})
    numbers = {**_sizes(u, A), "softplus": int(delta_softplus), "groups": groups}
    call("scan_backward", numbers, {**inputs, **results})
    total = [x[0] if groups == 1 else x.sum(0) for x in (dB, dC)]
    dD = torch.empty(0) if D is None else dD.sum(0)
    dbias = torch.empty(0) if delta_bias is None else dbias.sum(0)
    return [du, ddelta, dA.sum(0), *total, dD, dz, dbias, dinitial]


_scan = differentiable_scan(
    "selective_scan", _forward, _backward, _kept_shape, device_types="cpu", what="compiled"
)


def scan_compiled(problem: ScanProblem) -> tuple[Tensor, Tensor]:
    """Same as `selective_scan` in float32 on CPU, with bias, softplus, skip, gate, padding and starts in the same pass.

    Returns:
        y (B, L, D) and the last state (B, D, N).
    """
    y, last, _ = _scan(*problem[:-1], problem.wants_gradient)
    return y, last
