"""How an encoder is computed: compiled, or with less memory."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import nn

from seqrec.encoders.layers import recompute_blocks
from seqrec.errors import InputError


class EncoderCompile(pl.Callback):
    """Computes the encoder in another way, which changes time and memory, and numbers by rounding alone.

    It is no part of the model: checkpoints are the same with it and without, and one that is loaded elsewhere computes
    plainly. Both may be on, with any of the trainer's precisions and with DDP.

    Args:
        compile: Whether `torch.compile` turns the encoder's training pass into kernels, which needs a C++ compiler on
            CPU and Triton on a GPU. The first step takes a minute or so; what is made then serves any number of rows
            and events, but for a single row or event. Dropout is drawn in another way than without.
        activation_checkpointing: Whether training keeps only what enters each block, and computes the block a second
            time in the backward pass: memory grows with one block instead of all, for about a third more time.
            Dropout, values and gradients are the same.
    """

    def __init__(self, *, compile: bool = False, activation_checkpointing: bool = False) -> None:
        self.compile = compile
        self.activation_checkpointing = activation_checkpointing
        self._compiled: nn.Module | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Prepare the encoder.

        Raises:
            InputError: a model without an encoder, or an encoder without blocks that can be recomputed.
        """
        encoder = getattr(pl_module, "encoder", None)
        if not isinstance(encoder, nn.Module):
            if self.compile or self.activation_checkpointing:
                raise InputError(
                    f"{type(pl_module).__name__} has no encoder, so there is nothing for execution.compile or "
                    "execution.activation_checkpointing to do; leave them false"
                )
            return
        recompute_blocks(encoder, self.activation_checkpointing)
        if self.compile and self._compiled is not encoder:
            # In place: a wrapper would put `_orig_mod.` into the names of a checkpoint's weights.
            encoder.compile(dynamic=True)
            self._compiled = encoder
        # Where DDP's buckets cut a graph, no part may hold a recomputed block. The encoder's gradients are few, and
        # lose nothing by going out together.
        if self.compile and trainer.world_size > 1:
            torch._dynamo.config.optimize_ddp = False
