"""Ops with a derivative of their own, called without what `torch.library` does around each call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

# Told the context, the op's inputs and its outputs.
SetupContext = Callable[[Any, tuple[Any, ...], Any], None]
# Gradients of all inputs from the context, the function that computes them and the gradients of the outputs.
Differentiate = Callable[..., tuple[Any, ...]]


def differentiable(
    name: str,
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    *,
    device_types: str | Sequence[str],
    new_outputs: Callable[..., Any],
    new_gradients: Callable[..., Any],
    setup_context: SetupContext,
    differentiate: Differentiate,
    refusal: str,
) -> Callable[..., Any]:
    """A function that torch can differentiate once, and compile.

    What compiles calls two custom ops, `seqrec::NAME_fwd` and `seqrec::NAME_bwd`, which it need not look into.
    Otherwise the functions behind them are called by an `autograd.Function`: around each call of a custom op torch
    runs Python for as long as several kernels take to start, which at short histories is more than the work itself.

    Args:
        name: Of the ops.
        forward: What the first computes; its annotations are the op's signature, and so are those of `backward`.
        backward: What the second computes, which `differentiate` is handed; it has no derivative.
        device_types: Where they compute.
        new_outputs: Called as `forward`: tensors of the shapes, dtypes and layout that it returns.
        new_gradients: Likewise for `backward`.
        setup_context: As `torch.library.register_autograd` wants it.
        differentiate: Called with the context, the op of `backward` or `backward` itself, and the gradients of the
            outputs, None where an output had none.
        refusal: What a second derivative is refused with.

    Returns:
        A function of the positional inputs of `forward`.
    """
    where: dict[str, Any] = {"mutates_args": (), "device_types": device_types}
    forward_op = torch.library.custom_op(f"seqrec::{name}_fwd", forward, **where)
    backward_op = torch.library.custom_op(f"seqrec::{name}_bwd", backward, **where)
    forward_op.register_fake(new_outputs)
    backward_op.register_fake(new_gradients)

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
