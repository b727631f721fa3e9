"""What the ops' problems share: named tuples of tensors, flags and None."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from seqrec.errors import InputError


def moved(problem: tuple[Any, ...], target: torch.dtype | torch.device) -> tuple[Any, ...]:
    """The fields with real numbers in another dtype, or all tensors on another device."""
    moves = isinstance(target, torch.device)
    return tuple(
        x.to(target) if isinstance(x, Tensor) and (moves or x.is_floating_point()) else x for x in problem
    )


def check_shapes(
    given: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]], device: torch.device
) -> None:
    """Raise InputError for an argument that has another shape, device or kind of number.

    Args:
        given: Argument -> tensor; None passes.
        shapes: Argument -> shape. `valid` and `start` are bool, all others real numbers.
        device: Where all of them must be.
    """
    for name, shape in shapes.items():
        tensor = given[name]
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
    """Contiguous room for the gradients of these; an empty tensor for None, since an op cannot return None."""
    return [
        first.new_empty(0) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in (first, *others)
    ]
