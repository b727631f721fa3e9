"""The state-space-dual scan by the compiled CPU library. Letters as in `ssd_scan`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from seqrec.ops.autograd import differentiable
from seqrec.ops.compiled_library import by_event, call, contiguous, distance
from seqrec.ops.problems import empty_like, wants_gradient

# Events of a chunk, and between two states that forward keeps.
INTERVAL = 32
# P of the kept states is rounded up to a multiple of this, so their shape does not depend on the vector width.
PADDING = 16


def call_ssd(function: str, tensors: Mapping[str, Tensor | None], *, parts: int = 1, softplus: bool = False) -> None:
    """Run `ssd_forward` or `ssd_backward` of the library.

    Args:
        function: Which.
        tensors: By field of `SsdProblem` in `cpp/problems.h`; x, delta, B, C and their gradients as of `by_event`.
        parts: The first axis of dB and dC.
        softplus: Whether delta, with its bias, goes through softplus.
    """
    given = {name: x for name, x in tensors.items() if x is not None}
    names = ("batch", "length", "heads", "width", "groups", "states")
    numbers = dict(zip(names, (*given["x"].shape, *given["B"].shape[2:]), strict=True))
    for field in ("x", "delta", "dx", "ddelta"):
        numbers[f"{field}_event"] = distance(given[field]) if field in given else 0
    numbers["weights_event"] = distance(given["B"])
    numbers["dweights_event"] = distance(given["dB"][0]) if "dB" in given else 0
    call(function, {**numbers, "interval": INTERVAL, "parts": parts, "softplus": softplus}, given)


def kept_states(x: Tensor, B: Tensor) -> Tensor:
    """Allocate the states that forward keeps for backward."""
    batch, length, heads, width = x.shape
    return x.new_empty(batch, heads, -(-length // INTERVAL), B.shape[3], -(-width // PADDING) * PADDING)


def parts_of(x: Tensor, groups: int) -> int:
    """Return the parts of a group's heads in backward: twice as many tasks as threads if there are fewer groups."""
    return max(1, min(x.shape[2] // groups, -(-2 * torch.get_num_threads() // max(x.shape[0] * groups, 1))))


def _inputs(x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, start: Tensor | None) -> dict[str, Tensor | None]:
    (x,), (step,), (B, C) = by_event(x), by_event(step), by_event(B, C)
    return {"x": x, "delta": step, "B": B, "C": C, **contiguous(A=A, start=start)}


def _new_outputs(
    x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor, start: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y, last = empty_like(x, initial_state)
    return y, last, kept_states(x, B) if keep else x.new_empty(0)


def _forward(
    x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor, start: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = _inputs(x, step, A, B, C, start) | contiguous(initial_state=initial_state)
    y, last, kept = _new_outputs(x, step, A, B, C, initial_state, start, keep)
    call_ssd("ssd_forward", {**inputs, "y": y, "last_state": last, "kept_states": kept if keep else None})
    return y, last, kept


def _backward(
    dy: Tensor,
    dlast: Tensor,
    x: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    start: Tensor | None,
    kept: Tensor,
) -> list[Tensor]:
    inputs = _inputs(x, step, A, B, C, start) | contiguous(kept_states=kept, dy=dy, dlast_state=dlast)
    batch, length, heads, _ = x.shape
    parts = parts_of(x, B.shape[2])
    dx, dstep, dinitial = empty_like(x, step, dlast)
    dA, dD = x.new_empty(2, batch, heads)
    dB, dC = (x.new_empty(parts, batch, length, *B.shape[2:]) for _ in "BC")
    results = {"dx": dx, "ddelta": dstep, "dA": dA, "dD": dD, "dB": dB, "dC": dC, "dinitial_state": dinitial}
    call_ssd("ssd_backward", {**inputs, **results}, parts=parts)
    dB, dC = (value[0] if parts == 1 else value.sum(0) for value in (dB, dC))
    return [dx, dstep, dA.sum(0), dB, dC, dinitial]


def _new_gradients(dy: Tensor, dlast: Tensor, *inputs: Any) -> list[Tensor]:
    return empty_like(*inputs[:5], dlast)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *real, _, start, _ = inputs
    ctx.save_for_backward(*real, start, output[2])


def _differentiate(
    ctx: Any, backward: Callable[..., list[Tensor]], dy: Tensor, dlast: Tensor, dkept: Tensor
) -> tuple[Tensor | None, ...]:
    return (*backward(dy, dlast, *ctx.saved_tensors), None, None)


_INPUTS = "Tensor x, Tensor step, Tensor A, Tensor B, Tensor C"
_scan = differentiable(
    "ssd_compiled",
    _forward,
    _backward,
    schemas=(
        f"({_INPUTS}, Tensor initial_state, Tensor? start, bool keep) -> (Tensor, Tensor, Tensor)",
        f"(Tensor dy, Tensor dlast, {_INPUTS}, Tensor? start, Tensor kept) -> Tensor[]",
    ),
    device_types="cpu",
    new_outputs=_new_outputs,
    new_gradients=_new_gradients,
    setup_context=_setup_context,
    differentiate=_differentiate,
    refusal="the compiled scan has no second derivative; use backend='reference' for it",
)


def ssd_compiled(
    x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute `ssd_reference` in float32 on CPU; memory grows with L / 32 states instead of L."""
    if not x.numel():
        return torch.zeros_like(x), initial_state
    keep = wants_gradient((x, step, A, B, C, initial_state))
    y, last, _ = _scan(x, step, A, B, C, initial_state, start, keep)
    return y, last
