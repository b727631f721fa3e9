"""Custom ops of a scan with a hand-written backward pass. Letters as in `selective_scan` and `ssd_scan`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from seqrec.ops.autograd import differentiable, schema_arguments
from seqrec.ops.problems import empty_like, wants_gradient

# An option of the whole op, which no backend computes.
_OMITTED = "return_last_state"


def differentiable_scan(
    kind: type[Any],
    name: str,
    forward: Callable[[Any, bool], tuple[Tensor, Tensor, Tensor]],
    backward: Callable[[Any, Tensor, Tensor | None, Tensor | None], list[Tensor]],
    state_shape: Callable[[Any], tuple[int, ...]],
    kept_shape: Callable[[Any], tuple[int, ...]],
    *,
    device_types: str | Sequence[str],
    label: str,
) -> Callable[[Any], tuple[Tensor, Tensor]]:
    """Make a backend that torch can differentiate and compile; see `differentiable`.

    Args:
        kind: Type of its problems, `ScanProblem` or `SsdProblem`.
        name: Name of its ops.
        forward: Maps a problem, and whether to keep states for `backward`, to y, the last state and the kept states.
        backward: Maps a problem without initial state, the kept states, and the gradients of y and the last state to
            the gradients of x, delta, A, B, C, D, z, delta_bias and initial state; empty if the argument is None.
        state_shape: Maps a problem to the shape of a state.
        kept_shape: Maps a problem to the shape of the kept states.
        device_types: Device types that it supports.
        label: Name in the error that a second derivative raises.
    """

    def run_forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        *fields, keep = inputs
        return forward(kind(*fields), keep)

    def run_backward(dy: Tensor | None, dlast: Tensor | None, *inputs: Any) -> list[Tensor]:
        *real, delta_softplus, valid, start, kept = inputs
        return backward(kind(*real, delta_softplus, None, valid, start), kept, dy, dlast)

    def new_results(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        problem = kind(*inputs[:-1])
        return new_outputs(problem[0], state_shape(problem), kept_shape(problem) if inputs[-1] else None)

    fields = schema_arguments(kind, [_OMITTED])
    saved = schema_arguments(kind, [_OMITTED, "initial_state"])
    run = differentiable(
        name,
        run_forward,
        run_backward,
        schemas=(
            f"({fields}, bool keep) -> (Tensor, Tensor, Tensor)",
            f"(Tensor? dy, Tensor? dlast, {saved}, Tensor kept) -> Tensor[]",
        ),
        device_types=device_types,
        new_outputs=new_results,
        new_gradients=lambda dy, dlast, *inputs: _new_gradients(state_shape(kind(*inputs[:9])), *inputs[:8]),
        setup_context=_setup_context,
        differentiate=_differentiate,
        refusal=f"the {label} scan has no second derivative; use backend='reference' for it",
    )

    def scan(problem: Any) -> tuple[Tensor, Tensor]:
        y, last, _ = run(*problem[:12], wants_gradient(problem))
        return y, last

    return scan


def new_outputs(
    x: Tensor, state_shape: tuple[int, ...], kept_shape: tuple[int, ...] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate y, and at least in float32 the last state and the kept states, empty if their shape is None."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, new_states(x, state_shape), new_states(x, (0,) if kept_shape is None else kept_shape)


def new_states(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Allocate states, or sums, of a scan of inputs x: at least in float32."""
    return x.new_empty(shape, dtype=torch.promote_types(x.dtype, torch.float32))


def new_parts(x: Tensor, parts: int) -> Tensor:
    """Allocate the parts (parts, ..) of a gradient of x that are summed; in the dtype of x if it is the only one."""
    dtype = x.dtype if parts == 1 else torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(parts, *x.shape, dtype=dtype)


def sum_parts(parts: Tensor, like: Tensor) -> Tensor:
    """Return the sum over the first axis in the dtype of a tensor; the part itself if it is the only one."""
    return (parts[0] if len(parts) == 1 else parts.sum(0)).to(like.dtype)


def _new_gradients(state_shape: tuple[int, ...], x: Tensor, *others: Tensor | None) -> list[Tensor]:
    return [*empty_like(x, *others), new_states(x, state_shape)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *real, delta_softplus, initial_state, valid, start, _ = inputs
    ctx.save_for_backward(*real, valid, start, output[2])
    ctx.delta_softplus, ctx.has_initial_state = delta_softplus, initial_state is not None
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, backward: Callable[..., list[Tensor]], dy: Tensor | None, dlast: Tensor | None, dkept: None
) -> tuple[Tensor | None, ...]:
    *real, valid, start, kept = ctx.saved_tensors
    *gradients, dinitial = backward(dy, dlast, *real, ctx.delta_softplus, valid, start, kept)
    given = (None if x is None else gradient for x, gradient in zip(real, gradients, strict=True))
    return *given, None, dinitial if ctx.has_initial_state else None, None, None, None
