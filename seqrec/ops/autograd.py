"""Ops with a hand-written backward pass: how torch calls, differentiates and compiles them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, get_type_hints

import torch
from torch import Tensor

# Takes the context, the op's inputs and its outputs, and saves what backward needs.
SetupContext = Callable[[Any, tuple[Any, ...], Any], None]
# Maps the context, the function that computes gradients, and the gradients of the outputs to those of all inputs.
Differentiate = Callable[..., tuple[Any, ...]]
# Type of a problem's field -> its name in an op's schema.
_SCHEMA_TYPES: dict[Any, str] = {Tensor: "Tensor", Tensor | None: "Tensor?", bool: "bool"}


def schema_arguments(problem: type[tuple[Any, ...]], omitted: Collection[str] = ()) -> str:
    """Return the fields of a problem as arguments in an op's schema, such as "Tensor x, Tensor? bias, bool silu".

    Args:
        problem: A named tuple class.
        omitted: Fields that the op does not take.
    """
    fields = get_type_hints(problem).items()
    return ", ".join(f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in fields if name not in omitted)


def differentiable(
    name: str,
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    *,
    schemas: tuple[str, str],
    device_types: str | Sequence[str] | None,
    new_outputs: Callable[..., Any],
    new_gradients: Callable[..., Any],
    setup_context: SetupContext,
    differentiate: Differentiate,
    refusal: str,
) -> Callable[..., Any]:
    """Return a function that torch can differentiate once, and compile.

    While torch compiles, the function calls two custom ops, `seqrec::NAME_fwd` and `seqrec::NAME_bwd`, which are not
    traced into. Otherwise an `autograd.Function` calls `forward` and `backward` directly: around each call of a custom
    op torch runs Python for as long as it takes to start several kernels, which for short histories is more than the
    work itself.

    Args:
        name: Name of the ops, without suffix.
        forward: The computation of the first op.
        backward: The computation of the second op, which is passed to `differentiate`. It has no derivative.
        schemas: Schemas of the two ops: "(arguments) -> results".
        device_types: Device types that both support; None is any.
        new_outputs: Called as `forward`: returns tensors of the shapes, dtypes and layout of the results.
        new_gradients: The same for `backward`.
        setup_context: As in `torch.library.register_autograd`.
        differentiate: Called with the context, `backward` or its op, and the gradients of the outputs.
        refusal: Message of the error that a second derivative raises.

    Returns:
        A function of the positional inputs of `forward`.
    """
    forward_op, backward_op = (
        torch.library.custom_op(
            f"seqrec::{name}_{suffix}", function, mutates_args=(), device_types=device_types, schema=schema
        )
        for suffix, function, schema in zip(("fwd", "bwd"), (forward, backward), schemas, strict=True)
    )
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
            # The op raises `refusal` if its result is differentiated.
            return differentiate(ctx, backward_op if torch.is_grad_enabled() else backward, *gradients)

    def run(*inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            return forward_op(*inputs)
        return Eager.apply(*inputs) if torch.is_grad_enabled() else forward(*inputs)  # type: ignore[no-untyped-call]

    return run


def refuse_second_derivative(message: str) -> None:
    """Raise NotImplementedError if the backward pass that calls this is itself being differentiated.

    torch's `once_differentiable` would return a derivative of zero if the incoming gradient is constant.

    Args:
        message: What has no second derivative, and what to do.
    """
    if torch.is_grad_enabled():
        raise NotImplementedError(message)
