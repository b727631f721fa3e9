"""Selective scan of Mamba. Shapes: B batch, L events, D channels, N states a channel."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops.selective_scan import compiled
from seqrec.ops.selective_scan.chunked import scan_chunked
from seqrec.ops.selective_scan.reference import scan_reference

# u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state to y and the last state, in one dtype.
Scan = Callable[
    [
        Tensor,
        Tensor,
        Tensor,
        Tensor,
        Tensor,
        Tensor | None,
        Tensor | None,
        Tensor | None,
        bool,
        Tensor | None,
    ],
    tuple[Tensor, Tensor],
]
# Step sizes instead of delta, and the initial state instead of None.
Recurrence = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _around(recurrence: Recurrence) -> Scan:
    """The whole problem from its recurrence: bias and softplus before, skip and gate behind it, in torch."""

    @functools.wraps(recurrence)
    def scan(
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
    ) -> tuple[Tensor, Tensor]:
        step = delta if delta_bias is None else delta + delta_bias
        if delta_softplus:
            step = F.softplus(step)
        start = u.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state
        y, last = recurrence(u, step, A, B, C, start)
        if D is not None:
            y = torch.addcmul(y, u, D)
        return (y if z is None else y * F.silu(z)), last

    return scan


BACKENDS: dict[str, Scan] = {
    "chunked": _around(scan_chunked),
    "cpp": compiled.scan_compiled,
    "reference": _around(scan_reference),
}
BACKEND_VARIABLE = "SEQREC_SCAN_BACKEND"

_LOG = logging.getLogger(__name__)


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
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba's input-dependent linear recurrence (Gu & Dao 2023, equation 2, discretised as in section 2).

    With step = delta + delta_bias, through softplus if asked:
    `h_t = exp(step_t A) h_{t-1} + step_t B_t u_t`, `y_t = (C_t h_t + D u_t) * silu(z_t)`.
    Causal: y_t depends on events up to t, so right padding never reaches a valid position; the *last state*
    does include padding, unless its step size is 0. The recurrence runs in float32 at least, also under
    autocast.

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
        backend: "cpp" (compiled, float32 on CPU), "chunked" (plain torch, any device and dtype), "reference"
            (sequential, for tests; the only one with second derivatives), or "auto": the environment variable
            SEQREC_SCAN_BACKEND if set, else "cpp" for float32 on CPU where it was built, else "chunked",
            which is logged once. float16 and bfloat16 count as float32, in which the recurrence runs.

    Returns:
        y (B, L, D) in u's dtype; with `return_last_state` also h_L (B, D, N) in the recurrence's dtype.

    Raises:
        InputError: an unknown backend, one that is unavailable or cannot serve u's device and dtype, or a
            shape, device or kind of number that does not fit.
    """
    _check_shapes(u, delta, A, B, C, D=D, z=z, delta_bias=delta_bias, initial_state=initial_state)
    dtype = torch.promote_types(u.dtype, torch.float32)
    scan = BACKENDS[choose_backend(backend, u.device.type, dtype)]
    with torch.autocast(u.device.type, enabled=False):
        delta, A, B, C = delta.to(dtype), A.to(dtype), B.to(dtype), C.to(dtype)
        D, z, delta_bias, initial_state = (
            None if x is None else x.to(dtype) for x in (D, z, delta_bias, initial_state)
        )
        y, last = scan(u.to(dtype), delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state)
    y = y.to(u.dtype)
    return (y, last) if return_last_state else y


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def choose_backend(backend: str, device: str, dtype: torch.dtype) -> str:
    """Name of the backend that serves `backend` on a device type and the recurrence's dtype.

    Raises:
        InputError: an unknown backend, or one that is unavailable or cannot serve these.
    """
    name, source = backend, f"backend={backend!r}"
    if backend == "auto" and os.environ.get(BACKEND_VARIABLE):
        name = os.environ[BACKEND_VARIABLE]
        source = f"{BACKEND_VARIABLE}={name!r}"
    if name != "auto" and name not in BACKENDS:
        raise InputError(f"{source} is unknown; known: {', '.join(['auto', *sorted(BACKENDS)])}")
    compiled_fits = device == "cpu" and dtype == torch.float32
    if name == "auto":
        reason = compiled.load_error() if compiled_fits else None
        if reason is not None:
            _notice(reason)
        return "cpp" if compiled_fits and reason is None else "chunked"
    if name == "cpp" and not compiled_fits:
        raise InputError(f"{source} runs float32 on cpu, got {dtype} on {device}; use 'chunked' or 'auto'")
    if name == "cpp" and (reason := compiled.load_error()) is not None:
        raise InputError(f"{source} is unavailable: {reason}; or use 'chunked' or 'auto'")
    return name


@functools.cache
def _notice(reason: str) -> None:
    """Say once a process that a slower backend serves."""
    _LOG.warning("The compiled selective scan is unavailable, the slower 'chunked' serves: %s", reason)


def _check_shapes(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, **optional: Tensor | None
) -> None:
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
    for name, tensor in {"u": u, "A": A, **{name: tensor for name, (tensor, _) in expected.items()}}.items():
        if tensor is not None and (tensor.device != u.device or not tensor.is_floating_point()):
            raise InputError(
                f"{name} must be real numbers on {u.device} as u, got {tensor.dtype} on {tensor.device}"
            )
