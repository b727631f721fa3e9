"""What the convolution's custom ops share, their derivative before all. Letters as in `causal_conv1d`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from seqrec.ops.custom_op import differentiable


def differentiable_convolution(
    name: str,
    forward: Callable[..., tuple[Tensor, Tensor]],
    backward: Callable[..., Sequence[Tensor]],
    new_gradients: Callable[..., Sequence[Tensor]],
    *,
    device_types: str | Sequence[str],
    what: str,
) -> Callable[..., tuple[Tensor, Tensor]]:
    """A convolution that torch can differentiate and compile; see `differentiable`.

    Args:
        name: Of its ops.
        forward: Maps the fields of a `ConvProblem` to the outputs and the last state.
        backward: Maps the gradients of these two and the fields to gradients of x, weight, bias and initial state,
            empty where the field was None. Those of weight and bias may be one (D * W + D,) tensor.
        new_gradients: Maps x, weight, bias and initial state to room for what `backward` returns.
        device_types: Where it computes.
        what: Name for the refusal of a second derivative.
    """

    def new_forward(x: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        return new_outputs(x, weight)

    def new_backward(
        dout: Tensor | None, dlast: Tensor | None, x: Tensor, weight: Tensor, *others: Any
    ) -> Sequence[Tensor]:
        bias, _, initial_state, *_ = others
        return new_gradients(x, weight, bias, initial_state)

    return differentiable(
        name,
        forward,
        backward,
        device_types=device_types,
        new_outputs=new_forward,
        new_gradients=new_backward,
        setup_context=_setup_context,
        differentiate=_differentiate,
        refusal=f"the {what} convolution has no second derivative; use backend='reference' for it",
    )


def new_outputs(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Room for the outputs and the last state."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return out, x.new_empty(x.shape[0], weight.shape[1] - 1, x.shape[2])


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
