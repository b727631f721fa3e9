"""Dropout by the compiled CPU library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqrec.ops.autograd import differentiable
from seqrec.ops.compiled_library import call
from seqrec.ops.dropout.problem import DropoutProblem
from seqrec.ops.random import new_seed, threshold_of


def _apply(x: Tensor, seed: Tensor, threshold: int) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    call("dropout", {"count": x.numel(), "threshold": threshold}, {"seed": seed, "x": x, "y": y})
    return y


def _new(x: Tensor, seed: Tensor, threshold: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.threshold = inputs[2]


def _differentiate(ctx: Any, backward: Any, dy: Tensor) -> tuple[Tensor, None, None]:
    return backward(dy, *ctx.saved_tensors, ctx.threshold), None, None


_SCHEMA = "(Tensor x, Tensor seed, int threshold) -> Tensor"
_dropout = differentiable(
    "dropout_compiled",
    _apply,
    _apply,
    schemas=(_SCHEMA, _SCHEMA),
    device_types="cpu",
    new_outputs=_new,
    new_gradients=_new,
    setup_context=_setup_context,
    differentiate=_differentiate,
    refusal="the compiled dropout has no second derivative; use backend='reference' for it",
)


def dropout_compiled(problem: DropoutProblem) -> Tensor:
    """Compute `dropout_reference` in float32 on CPU; nothing but the seed is kept for backward."""
    x, share, seed = problem
    if not x.numel():
        return x
    y: Tensor = _dropout(x, new_seed() if seed is None else seed, threshold_of(share))
    return y
