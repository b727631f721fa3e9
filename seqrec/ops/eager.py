"""Ops with a derivative of their own, called without what `torch.library` does around each call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# Told the context, the op's inputs and its outputs.
SetupContext = Callable[[Any, tuple[Any, ...], Any], None]
# Gradients of all inputs from the context, the function that computes them and the gradients of the outputs.
Differentiate = Callable[..., tuple[Any, ...]]


def differentiable(
    forward_op: Any,
    forward: Callable[..., Any],
    backward_op: Any,
    backward: Callable[..., Any],
    *,
    setup_context: SetupContext,
    differentiate: Differentiate,
    refusal: str,
) -> Callable[..., Any]:
    """A function that torch can differentiate once, and compile, from two custom ops.

    What compiles calls the ops, which it need not look into. Otherwise the functions behind them are called by an
    `autograd.Function`: around each call of a custom op torch runs Python for as long as several kernels take to
    start, which at short histories is more than the work itself.

    Args:
        forward_op: Custom op; its derivative is registered here.
        forward: The function that it calls.
        backward_op: Custom op that `differentiate` is handed; it has no derivative.
        backward: The function that it calls.
        setup_context: As `torch.library.register_autograd` wants it.
        differentiate: Called with the context, `backward_op` or `backward`, and the gradients of the outputs, None
            where an output had none.
        refusal: What a second derivative is refused with.

    Returns:
        A function of the op's positional inputs.
    """

    def differentiate_op(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        return differentiate(ctx, backward_op, *gradients)

    def refuse(ctx: Any, *gradients: Any) -> None:
        raise NotImplementedError(refusal)

    forward_op.register_autograd(differentiate_op, setup_context=setup_context)
    backward_op.register_autograd(refuse)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = forward(*inputs)
            setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
            # The op knows to refuse where its result is to be differentiated.
            return differentiate(ctx, backward_op if torch.is_grad_enabled() else backward, *gradients)

    def run(*inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            return forward_op(*inputs)
        return Eager.apply(*inputs) if torch.is_grad_enabled() else forward(*inputs)  # type: ignore[no-untyped-call]

    return run
