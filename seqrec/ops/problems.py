"""Arguments of an op as one named tuple of tensors, flags and None: checks, and the parts that scans have in common.

B batch, L events.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.errors import InputError

Problem = TypeVar("Problem", bound=NamedTuple)
# Five operands of a scan, such as x, step sizes, A, B and C, initial state and start: the arguments that are left when
# gate, skip and padding have been used.
Recurrence = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "Tensor | None"], tuple[Tensor, Tensor]]


def moved(problem: Problem, target: torch.dtype | torch.device, kept: Collection[torch.dtype] = ()) -> Problem:
    """Return a problem with real numbers in another dtype, or with all tensors on another device.

    Args:
        problem: A problem.
        target: The dtype or device.
        kept: Dtypes of real numbers that stay unchanged.
    """
    moves = isinstance(target, torch.device)
    return problem._make(
        x.to(target) if isinstance(x, Tensor) and (moves or (x.is_floating_point() and x.dtype not in kept)) else x
        for x in problem
    )


def are_narrow(*tensors: Tensor | None) -> bool:
    """Return True if all tensors that are given are bfloat16."""
    return all(x is None or x.dtype == torch.bfloat16 for x in tensors)


def at_least_float32(values: Tensor) -> Tensor:
    """Return 16-bit values as float32, for sums and exponentials; other values unchanged."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def wants_gradient(problem: tuple[Any, ...]) -> bool:
    """Return True if autograd records operations on a tensor of the problem."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in problem if isinstance(x, Tensor))


def check_shapes(given: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]], device: torch.device) -> None:
    """Check the shape, device and dtype of each argument.

    Args:
        given: Argument -> tensor; None passes.
        shapes: Argument -> shape. `valid` and `start` are bool, all others real numbers. Arguments that are not given
            are skipped.
        device: Device that all of them must be on.

    Raises:
        InputError: if an argument does not fit; the message names it.
    """
    for name, shape in shapes.items():
        tensor = given.get(name)
        if not isinstance(tensor, Tensor):
            continue
        if tuple(tensor.shape) != shape:
            raise InputError(f"{name} must be {shape}, got {tuple(tensor.shape)}")
        is_flag = name in ("valid", "start")
        fits = tensor.dtype == torch.bool if is_flag else tensor.is_floating_point()
        if tensor.device != device or not fits:
            kind = "bool" if is_flag else "real numbers"
            raise InputError(f"{name} must be {kind} on {device}, got {tensor.dtype} on {tensor.device}")


def empty_like(first: Tensor, *others: Tensor | None) -> list[Tensor]:
    """Allocate contiguous gradients of the tensors; an empty one for None, because an op cannot return None."""
    return [
        first.new_empty(0) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in (first, *others)
    ]


def step_sizes(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool) -> Tensor:
    """Return `delta + delta_bias`, through softplus if asked; delta may have any leading axes."""
    step = delta if delta_bias is None else delta + delta_bias
    return F.softplus(step) if delta_softplus else step


def with_gate_and_padding(recurrence: Recurrence) -> Callable[[Any], tuple[Tensor, Tensor]]:
    """Make a backend of a scan from its recurrence, in torch.

    Bias, softplus and `valid` are applied before the recurrence, the skip and the gate after it.
    """

    def scan(problem: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        x, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, valid, start = problem[:12]
        padding = None if valid is None else ~valid
        if padding is not None:
            # All inputs, because a gradient may not be multiplied by what the padding contains.
            x, delta, B, C = (zero_at(padding, value) for value in (x, delta, B, C))
            z = None if z is None else zero_at(padding, z)
        step = step_sizes(delta, delta_bias, delta_softplus)
        if padding is not None:
            step = zero_at(padding, step)
        state = x.new_zeros(x.shape[0], *x.shape[2:], B.shape[-1]) if initial_state is None else initial_state
        y, last = recurrence(x, step, A, B, C, state, start)
        if D is not None:
            y = torch.addcmul(y, x, D if x.dim() == 3 else D.unsqueeze(-1))
        return (y if z is None else y * F.silu(z)), last

    return scan


def zero_at(padding: Tensor, x: Tensor) -> Tensor:
    """Return x (B, L, ..) with zeros where padding (B, L) is True."""
    padding = padding.unsqueeze(-1)
    return x.masked_fill(padding if x.dim() == 3 else padding.unsqueeze(-1), 0)
