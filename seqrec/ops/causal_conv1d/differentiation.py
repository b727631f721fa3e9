"""The derivative of the convolution's custom ops, which share one signature. Letters as in `causal_conv1d`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from seqrec.ops.eager import differentiable


def differentiable_convolution(
    forward_op: Any,
    forward: Callable[..., tuple[Tensor, Tensor]],
    backward_op: Any,
    backward: Callable[..., Sequence[Tensor]],
    what: str,
) -> Callable[..., tuple[Tensor, Tensor]]:
    """A convolution from two custom ops and the functions behind them; see `differentiable`.

    Args:
        forward_op: Op of the fields of a `ConvProblem`; returns the outputs and the last state.
        forward: Its function.
        backward_op: Op of the gradients of these two and the fields; returns gradients of x, weight, bias and initial
            state, empty where the field was None. Those of weight and bias may be one (D * W + D,) tensor.
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
        refusal=f"the {what} convolution has no second derivative; use backend='reference' for it",
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, silu, initial_state, valid, start = inputs
    ctx.save_for_backward(x, weight, bias, initial_state, valid, start)
    ctx.silu = silu
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, backward: Callable[..., Sequence[Tensor]], dout: Tensor | None, dlast: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, weight, bias, initial_state, valid, start = ctx.saved_tensors
    dx, *of_weights, dinitial = backward(dout, dlast, x, weight, bias, ctx.silu, initial_state, valid, start)
    if len(of_weights) == 1:
        # Parts of one, which an op may not return.
        taps = of_weights[0][: weight.numel()]
        of_weights = [taps.view(weight.shape), of_weights[0][weight.numel() :]]
    dweight, dbias = of_weights
    of_state = None if initial_state is None else dinitial
    return dx, dweight, None if bias is None else dbias, None, of_state, None, None
