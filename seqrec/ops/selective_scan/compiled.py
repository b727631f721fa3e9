"""The compiled CPU scan: finds the library built from `cpp/selective_scan.cpp`, calls it, tells torch of it.

The library has a plain C interface and is loaded through ctypes, so one build serves every version of torch.
Shapes: B batch, L events, D channels, N states a channel.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops.selective_scan.problem import ScanProblem

# Events between two states that forward keeps; backward rebuilds those in between.
INTERVAL = 32
# The kept states round D up to this, so that their shape does not depend on the vector width.
PADDING = 16
# Libraries from the widest vectors to the narrowest: name, floats in a vector, what torch must call the CPU.
VARIANTS = (
    ("_scan_avx512", 16, ("AVX512",)),
    ("_scan_avx2", 8, ("AVX512", "AVX2")),
    ("_scan_baseline", 4, None),
)

_POINTERS = (
    *("u", "delta", "z", "A", "B", "C", "D", "delta_bias", "initial_state", "y", "last_state", "kept_states"),
    *("dy", "dlast_state", "du", "ddelta", "dz", "dA", "dD", "ddelta_bias", "dB", "dC", "dinitial_state"),
)


class _Problem(ctypes.Structure):
    """`ScanProblem` of the C++ source, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "length", "channels", "states", "interval")),
        *((name, ctypes.c_int64) for name in ("groups", "threads", "softplus")),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    )


def _open(path: Path, lanes: int) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.scan_lanes.restype = library.scan_problem_bytes.restype = ctypes.c_int64
    if (library.scan_lanes(), library.scan_problem_bytes()) != (lanes, ctypes.sizeof(_Problem)):
        raise OSError(f"{path} was built from another version of its source; install seqrec again")
    return library


@functools.cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """The library and its variant's name, or None and the reason."""
    folder, capability = Path(__file__).parent, torch.backends.cpu.get_cpu_capability()
    is_x86, reasons = platform.machine().lower() in ("x86_64", "amd64"), []
    for name, lanes, needs in VARIANTS:
        if needs is not None and not (is_x86 and capability in needs):
            continue
        paths = [folder / (name + suffix) for suffix in importlib.machinery.EXTENSION_SUFFIXES]
        path = next((path for path in paths if path.exists()), None)
        if path is None:
            continue
        try:
            return _open(path, lanes), name
        except (OSError, AttributeError) as error:
            reasons.append(f"{path.name}: {error}")
    missing = f"no compiled library in {folder}; install a C++17 compiler (gcc or clang) and seqrec again"
    return None, "; ".join(reasons) or missing


def load_error() -> str | None:
    """Why the compiled scan is unavailable, with the fix; None where it is available."""
    library, text = load()
    return text if library is None else None


def variant() -> str | None:
    """Name of the library in use, such as "_scan_avx512"; None where there is none."""
    library, text = load()
    return None if library is None else text


def _call(function: str, numbers: dict[str, int], tensors: dict[str, Tensor | None]) -> None:
    """Run one of the library's functions; tensors are contiguous float32 on CPU, and held by the caller."""
    library, reason = load()
    if library is None:
        raise InputError(f"the compiled scan is unavailable: {reason}")
    pointers = {name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None}
    problem = _Problem(threads=torch.get_num_threads(), interval=INTERVAL, **numbers, **pointers)
    if getattr(library, function)(ctypes.byref(problem)):
        raise MemoryError(f"{function} of the compiled scan found no memory for its working space")


def _contiguous(**tensors: Tensor | None) -> dict[str, Tensor | None]:
    return {name: None if tensor is None else tensor.contiguous() for name, tensor in tensors.items()}


def _sizes(u: Tensor, A: Tensor) -> dict[str, int]:
    return {"batch": u.shape[0], "length": u.shape[1], "channels": u.shape[2], "states": A.shape[1]}


def _new_forward(u: Tensor, A: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, channels = u.shape
    states = A.shape[1]
    chunks, width = -(-length // INTERVAL), -(-channels // PADDING) * PADDING
    kept = u.new_empty((batch, chunks, states, width) if keep else (0,))
    return (
        torch.empty_like(u, memory_format=torch.contiguous_format),
        u.new_empty(batch, channels, states),
        kept,
    )


@torch.library.custom_op("seqrec::selective_scan_fwd", mutates_args=(), device_types="cpu")
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
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state, and where `keep` the states that backward starts from."""
    inputs = _contiguous(
        u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, initial_state=initial_state
    )
    y, last, kept = _new_forward(u, A, keep)
    results = {"y": y, "last_state": last, "kept_states": kept if keep else None}
    _call("scan_forward", {**_sizes(u, A), "softplus": delta_softplus, "groups": 1}, {**inputs, **results})
    return y, last, kept


@_forward.register_fake
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
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _new_forward(u, A, keep)


def _new_backward(like: Sequence[Tensor | None]) -> list[Tensor]:
    """Room for the gradients of `like`; an empty tensor for None, since an op cannot return None."""
    return [
        torch.empty(0) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in like
    ]


@torch.library.custom_op("seqrec::selective_scan_bwd", mutates_args=(), device_types="cpu")
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
    kept: Tensor,
) -> list[Tensor]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias and initial state; empty where the input was None."""
    inputs = _contiguous(
        u=u,
        delta=delta,
        A=A,
        B=B,
        C=C,
        D=D,
        z=z,
        delta_bias=delta_bias,
        kept_states=kept,
        dy=dy,
        dlast_state=dlast,
    )
    batch, length, channels = u.shape
    states = A.shape[1]
    # Twice as many tasks as threads where the rows alone are fewer. Each group has its own dB and dC.
    groups = max(1, min(-(-channels // PADDING), -(-2 * torch.get_num_threads() // max(batch, 1))))
    du, ddelta, dz = _new_backward((u, delta, z))
    dA = u.new_empty(batch, channels, states)
    dD, dbias = u.new_empty(batch, channels), u.new_empty(batch, channels)
    dB, dC = u.new_zeros(groups, batch, length, states), u.new_zeros(groups, batch, length, states)
    dinitial = u.new_empty(batch, channels, states)
    results = {"du": du, "ddelta": ddelta, "dA": dA, "dB": dB, "dC": dC, "dD": dD, "dinitial_state": dinitial}
    results |= {"ddelta_bias": dbias} | ({} if z is None else {"dz": dz})
    numbers = {**_sizes(u, A), "softplus": int(delta_softplus), "groups": groups}
    _call("scan_backward", numbers, {**inputs, **results})
    total = [x[0] if groups == 1 else x.sum(0) for x in (dB, dC)]
    dD = torch.empty(0) if D is None else dD.sum(0)
    dbias = torch.empty(0) if delta_bias is None else dbias.sum(0)
    return [du, ddelta, dA.sum(0), *total, dD, dz, dbias, dinitial]


@_backward.register_fake
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
    kept: Tensor,
) -> list[Tensor]:
    gradients = _new_backward((u, delta, A, B, C, D, z, delta_bias))
    return [*gradients, u.new_empty(u.shape[0], *A.shape)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, _ = inputs
    ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, output[2])
    ctx.delta_softplus, ctx.has_initial_state = delta_softplus, initial_state is not None
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, dy: Tensor | None, dlast: Tensor | None, dkept: None
) -> tuple[Tensor | None, ...]:
    u, delta, A, B, C, D, z, delta_bias, kept = ctx.saved_tensors
    gradients = _backward(dy, dlast, u, delta, A, B, C, D, z, delta_bias, ctx.delta_softplus, kept)
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = gradients
    return (
        *(du, ddelta, dA, dB, dC, None if D is None else dD, None if z is None else dz),
        *(None if delta_bias is None else dbias, None),
        *(dinitial if ctx.has_initial_state else None, None),
    )


def _refuse(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError("the compiled scan has no second derivative; use backend='reference' for it")


_forward.register_autograd(_differentiate, setup_context=_setup_context)
_backward.register_autograd(_refuse)


def scan_compiled(problem: ScanProblem) -> tuple[Tensor, Tensor]:
    """Same as `selective_scan` in float32 on CPU, with bias, softplus, skip and gate in the same pass.

    Returns:
        y (B, L, D) and the last state (B, D, N).
    """
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, *_ = problem
    keep = problem.wants_gradient
    y, last, _ = _forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, keep)
    return y, last
