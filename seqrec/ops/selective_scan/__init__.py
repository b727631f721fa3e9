"""Selective scan of Mamba. Shapes: B batch, L events, D channels, N states a channel."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops.selective_scan.chunked import scan_chunked
from seqrec.ops.selective_scan.reference import scan_reference

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

BACKENDS: dict[str, Scan] = {"chunked": scan_chunked, "reference": scan_reference}
DEFAULT_BACKEND = "chunked"


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    *,
    backend: str = DEFAULT_BACKEND,
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba's input-dependent linear recurrence (Gu & Dao 2023, equation 2 with the discretisation of section 2).

    With step = delta + delta_bias, through softplus if asked:
    `h_t = exp(step_t A) h_{t-1} + step_t B_t u_t`, `y_t = (C_t h_t + D u_t) * silu(z_t)`.
    Causal: y_t depends on events up to t, so right padding never reaches a valid position; the *last state* does
    include padding, unless its step size is 0. The recurrence runs in float32 at least, also under autocast.

    Args:
        u: (B, L, D) inputs.
        delta: (B, L, D) step sizes before bias and softplus.
        A: (D, N), negative for a state that fades.
        B: (B, L, N) input weights.
        C: (B, L, N) output weights.
        D: (D,) skip weights or None.
        z: (B, L, D) gate or None.
        delta_bias: (D,) or None.
        delta_softplus: Whether step sizes go through softplus.
        initial_state: (B, D, N) state before the first event; None is zero.
        return_last_state: Whether to return the state behind the last event too; its gradient counts.
        backend: "chunked" (plain torch, any device) or "reference" (sequential, for tests).

    Returns:
        y (B, L, D) in u's dtype; with `return_last_state` also h_L (B, D, N) in the recurrence's dtype.

    Raises:
        InputError: an unknown backend, or a shape that does not fit.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend={backend!r} is unknown; known: {', '.join(sorted(BACKENDS))}")
    _check_shapes(u, delta, A, B, C, D=D, z=z, delta_bias=delta_bias, initial_state=initial_state)
    dtype = torch.promote_types(u.dtype, torch.float32)
    with torch.autocast(u.device.type, enabled=False):
        step = delta.to(dtype) if delta_bias is None else delta.to(dtype) + delta_bias.to(dtype)
        if delta_softplus:
            step = F.softplus(step)
        state_shape = (u.shape[0], *A.shape)
        start = u.new_zeros(state_shape, dtype=dtype) if initial_state is None else initial_state.to(dtype)
        y, last = BACKENDS[backend](u.to(dtype), step, A.to(dtype), B.to(dtype), C.to(dtype), start)
        if D is not None:
            y = torch.addcmul(y, u.to(dtype), D.to(dtype))
        if z is not None:
            y = y * F.silu(z.to(dtype))
    y = y.to(u.dtype)
    return (y, last) if return_last_state else y


def _check_shapes(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, **optional: Tensor | None) -> None:
    if u.dim() != 3:
        raise InputError(f"u must be (B, L, D), got {tuple(u.shape)}")
    if A.dim() != 2 or A.shape[0] != u.shape[2]:
        raise InputError(f"A must be (D, N) with D = {u.shape[2]} from u, got {tuple(A.shape)}")
    batch, length, channels = u.shape
    states = A.shape[1]
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "delta": (delta, (batch, length, channels)),
        "B": (B, (batch, length, states)),
        "C": (C, (batch, length, states)),
        "D": (optional["D"], (channels,)),
        "z": (optional["z"], (batch, length, channels)),
        "delta_bias": (optional["delta_bias"], (channels,)),
        "initial_state": (optional["initial_state"], (batch, channels, states)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise InputError(f"{name} must be {shape}, got {tuple(tensor.shape)}")
