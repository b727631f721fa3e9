"""Custom ops of a convolution with a hand-written backward pass. Letters as in `causal_conv1d`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from seqrec.ops.autograd import differentiable, schema_arguments
from seqrec.ops.causal_conv1d.reference import Convolution, ConvProblem


def differentiable_convolution(
    name: str,
    forward: Convolution,
    backward: Callable[[ConvProblem, Tensor | None, Tensor | None], list[Tensor]],
    new_gradients: Callable[[ConvProblem], list[Tensor]],
    *,
    device_types: str | Sequence[str],
    label: str,
) -> Convolution:
    """Make a backend that torch can differentiate and compile; see `differentiable`.

    Args:
        name: Name of its ops.
        forward: Maps a problem to the outputs and the last state.
        backward: Maps a problem and the gradients of these two to the gradients of x, weight, bias and initial state;
            empty if the argument is None. Those of weight and bias may be one (D * W + D,) tensor.
        new_gradients: Allocates the results of `backward`.
        device_types: Device types that it supports.
        label: Name in the error that a second derivative raises.
    """
    fields = schema_arguments(ConvProblem)
    run = differentiable(
        name,
        lambda *inputs: forward(ConvProblem(*inputs)),
        lambda dout, dlast, *inputs: backward(ConvProblem(*inputs), dout, dlast),
        schemas=(f"({fields}) -> (Tensor, Tensor)", f"(Tensor? dout, Tensor? dlast, {fields}) -> Tensor[]"),
        device_types=device_types,
        new_outputs=lambda *inputs: new_outputs(ConvProblem(*inputs)),
        new_gradients=lambda dout, dlast, *inputs: new_gradients(ConvProblem(*inputs)),
        setup_context=_setup_context,
        differentiate=_differentiate,
        refusal=f"the {label} convolution has no second derivative; use backend='reference' for it",
    )
    return lambda problem: run(*problem)


def new_outputs(problem: ConvProblem, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Allocate the outputs and the last state, in a type that may differ from that of x."""
    x, taps = problem.x, problem.weight.shape[1]
    out = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    return out, x.new_empty(x.shape[0], taps - 1, x.shape[2], dtype=dtype)


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
        # An op may not return two parts of one tensor.
        taps = of_weights[0][: weight.numel()]
        of_weights = [taps.view(weight.shape), of_weights[0][weight.numel() :]]
    dweight, dbias = of_weights
    of_state = None if initial_state is None else dinitial
    return dx, dweight, None if bias is None else dbias, None, of_state, None, None
