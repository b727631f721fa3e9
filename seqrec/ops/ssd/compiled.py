"""The state-space-dual scan by the compiled CPU library. Letters as in `ssd_scan`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from seqrec.ops.autograd import differentiable
from seqrec.ops.compiled_library import call, contiguous
from seqrec.ops.problems import empty_like, wants_gradient

# Events between two states that forward keeps; backward recomputes the states in between.
INTERVAL = 32
# P of the kept states is rounded up to a multiple of this, so their shape does not depend on the vector width.
PADDING = 16


def _numbers(x: Tensor, B: Tensor, parts: int) -> dict[str, int]:
    names = ("batch", "length", "heads", "width", "groups", "states", "interval", "parts")
    return dict(zip(names, (*x.shape, *B.shape[2:], INTERVAL, parts), strict=True))


def _new_outputs(
    x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor, start: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, heads, width = x.shape
    shape = (batch, heads, -(-length // INTERVAL), -(-width // PADDING) * PADDING, B.shape[3])
    y, last = empty_like(x, initial_state)
    return y, last, x.new_empty(shape if keep else 0)


def _forward(
    x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor, start: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = contiguous(x=x, step=step, A=A, B=B, C=C, initial_state=initial_state, start=start)
    y, last, kept = _new_outputs(x, step, A, B, C, initial_state, start, keep)
    results = {"y": y, "last_state": last, "kept_states": kept if keep else None}
    call("ssd_forward", _numbers(x, B, parts=1), {**inputs, **results})
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
    inputs = contiguous(x=x, step=step, A=A, B=B, C=C, start=start, kept_states=kept, dy=dy, dlast_state=dlast)
    batch, length, heads, _ = x.shape
    groups, states = B.shape[2:]
    # Twice as many tasks as threads if there are fewer groups than that. Each part has its own dB and dC.
    parts = max(1, min(heads // groups, -(-2 * torch.get_num_threads() // max(batch * groups, 1))))
    dx, dstep, dinitial = empty_like(x, step, dlast)
    dA = x.new_empty(batch, heads)
    dB, dC = (x.new_zeros(parts, batch, length, groups, states) for _ in "BC")
    results = {"dx": dx, "dstep": dstep, "dA": dA, "dB": dB, "dC": dC, "dinitial_state": dinitial}
    call("ssd_backward", _numbers(x, B, parts), {**inputs, **results})
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
