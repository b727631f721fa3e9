"""What the scan's custom ops share, their derivative before all. Letters as in `selective_scan`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from seqrec.ops.custom_op import differentiable
from seqrec.ops.problems import empty_like


def differentiable_scan(
    name: str,
    forward: Callable[..., tuple[Tensor, Tensor, Tensor]],
    backward: Callable[..., list[Tensor]],
    kept_shape: Callable[[Tensor, Tensor], tuple[int, ...]],
    *,
    device_types: str | Sequence[str],
    what: str,
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """A scan that torch can differentiate and compile; see `differentiable`.

    Args:
        name: Of its ops.
        forward: Maps the fields of a `ScanProblem` up to `start`, and whether to keep states, to y, the last state
            and the kept states.
        backward: Maps the gradients of the first two, the fields without the initial state, and the kept states to
            gradients of all real fields, empty where the field was None.
        kept_shape: Maps u and A to the shape of the kept states.
        device_types: Where it computes.
        what: Name for the refusal of a second derivative.
    """

    def new_forward(u: Tensor, delta: Tensor, A: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
        return new_outputs(u, A, kept_shape(u, A) if others[-1] else None)

    return differentiable(
        name,
        forward,
        backward,
        device_types=device_types,
        new_outputs=new_forward,
        new_gradients=_new_gradients,
        setup_context=_setup_context,
        differentiate=_differentiate,
        refusal=f"the {what} scan has no second derivative; use backend='reference' for it",
    )


def new_outputs(u: Tensor, A: Tensor, kept_shape: tuple[int, ...] | None) -> tuple[Tensor, Tensor, Tensor]:
    """Room for y, the last state and the kept states, which are empty where their shape is None."""
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    return y, u.new_empty(u.shape[0], *A.shape), u.new_empty((0,) if kept_shape is None else kept_shape)


def _new_gradients(
    dy: Tensor | None, dlast: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, *others: Any
) -> list[Tensor]:
    B, C, D, z, delta_bias, *_ = others
    return [*empty_like(u, delta, A, B, C, D, z, delta_bias), u.new_empty(u.shape[0], *A.shape)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, valid, start, _ = inputs
    ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, valid, start, output[2])
    ctx.delta_softplus, ctx.has_initial_state = delta_softplus, initial_state is not None
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, backward: Callable[..., list[Tensor]], dy: Tensor | None, dlast: Tensor | None, dkept: None
) -> tuple[Tensor | None, ...]:
    *real, valid, start, kept = ctx.saved_tensors
    *gradients, dinitial = backward(dy, dlast, *real, ctx.delta_softplus, valid, start, kept)
    given = (None if x is None else gradient for x, gradient in zip(real, gradients, strict=True))
    return *given, None, dinitial if ctx.has_initial_state else None, None, None, None
