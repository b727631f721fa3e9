"""Compiles an encoder, or recomputes its blocks to save memory."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import nn

from seqrec.encoders.layers import recompute_blocks
from seqrec.errors import InputError


class EncoderCompile(pl.Callback):
    """Compiles the encoder or recomputes its blocks, which changes time and memory, and numbers only by rounding.

    It is no part of the model: checkpoints are the same with and without it, and a loaded model is not compiled. Both
    options may be on, with any of the trainer's precisions and with DDP.

    Args:
        compile: Whether `torch.compile` turns the encoder's training pass into kernels, which needs a C++ compiler on
            CPU and Triton on a GPU. The first step takes about a minute. The kernels work for any number of rows and
            events above 1. Dropout draws other numbers than without.
        activation_checkpointing: Whether training keeps only the inputs of each block, and computes the block again
            in the backward pass: memory grows with one block instead of all, for about a third more time. Dropout,
            values and gradients are the same.
    """

    def __init__(self, *, compile: bool = False, activation_checkpointing: bool = False) -> None:
        self.compile = compile
        self.activation_checkpointing = activation_checkpointing
        self._compiled: nn.Module | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Prepare the encoder.

        Raises:
            InputError: if the model has no encoder, the encoder has no blocks that can be recomputed, or both
                compilation and `carry_state` are set.
        """
        encoder = getattr(pl_module, "encoder", None)
        if not isinstance(encoder, nn.Module):
            if self.compile or self.activation_checkpointing:
                raise InputError(
                    f"{type(pl_module).__name__} has no encoder, so there is nothing for execution.compile or "
                    "execution.activation_checkpointing to do; leave them false"
                )
            return
        if self.compile and getattr(pl_module, "carried", None) is not None:
            raise InputError("execution.compile=true does not support model.carry_state=true; set one of them to false")
        recompute_blocks(encoder, self.activation_checkpointing)
        if self.compile and self._compiled is not encoder:
            # In place, because a wrapper would put `_orig_mod.` into the names of a checkpoint's weights.
            encoder.compile(dynamic=True)
            self._compiled = encoder
        # If DDP's buckets cut a graph, no part may contain a recomputed block. The encoder's gradients are few, so
        # sending them together costs nothing.
        if self.compile and trainer.world_size > 1:
            torch._dynamo.config.optimize_ddp = False
