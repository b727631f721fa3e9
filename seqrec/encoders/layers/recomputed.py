"""Blocks whose insides are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seqrec.errors import InputError


def run_block(block: Callable[[Tensor], Tensor], x: Tensor, *, recompute: bool) -> Tensor:
    """`block(x)`, of which with `recompute` only x is kept for the backward pass (activation checkpointing, Training
    Deep Nets with Sublinear Memory Cost, Chen et al. 2016).

    The second computation has the first one's dropout and precision, so values and gradients are the same.
    """
    if not (recompute and torch.is_grad_enabled()):
        return block(x)
    out: Tensor = checkpoint(block, x, use_reentrant=False)
    return out


def recompute_blocks(module: nn.Module, recompute: bool) -> None:
    """Choose whether the blocks of a module are recomputed: those of all its parts that have a flag `recompute`.

    Raises:
        InputError: no part has one, so that nothing can be recomputed.
    """
    parts: list[Any] = [part for part in module.modules() if hasattr(part, "recompute")]
    if recompute and not parts:
        raise InputError(
            f"{type(module).__name__} has no blocks that can be recomputed: build it of "
            "seqrec.encoders.layers.ResidualStack, or give it an attribute recompute and call its blocks by "
            "seqrec.encoders.layers.run_block"
        )
    for part in parts:
        part.recompute = recompute
