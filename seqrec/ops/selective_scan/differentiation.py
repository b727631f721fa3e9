"""The derivative of the scan's custom ops, which share one signature. Letters as in `selective_scan`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from seqrec.ops.eager import differentiable


def differentiable_scan(
    forward_op: Any,
    forward: Callable[..., tuple[Tensor, Tensor, Tensor]],
    backward_op: Any,
    backward: Callable[..., list[Tensor]],
    what: str,
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """A scan from two custom ops and the functions behind them; see `differentiable`.

    Args:
        forward_op: Op of the fields of a `ScanProblem` up to `start`, and whether to keep states; returns y, the last
            state and the kept states.
        forward: Its function.
        backward_op: Op of the gradients of the first two, the fields without the initial state, and the kept states;
            returns gradients of all real fields, empty where the field was None.
        backward: Its function.
        what: Name for the refusal of a second derivative.
    """
    return differentiable(
        forward_op,
        forward,
        backward_op,
        backward,
        setup_context=_setup_context,
        differentiate=_differentiate,
        refusal=f"the {what} scan has no second derivative; use backend='reference' for it",
    )


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
