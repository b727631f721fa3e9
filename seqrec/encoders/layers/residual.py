"""The pre-norm residual branches that all blocks are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from seqrec.encoders.layers.recomputed import run_block
from seqrec.encoders.layers.streamed import Tensors, as_streaming, joined, separated


def make_norm(d_model: int, layer_norm: bool) -> nn.Module:
    """LayerNorm over (..., D), or nothing for the ablation without it."""
    return nn.LayerNorm(d_model) if layer_norm else nn.Identity()


def newest_events(x: Tensor, lengths: Tensor) -> Tensor:
    """(B, D) what x (B, L, D) holds at each row's newest event; `lengths` (B,) are at least 1."""
    newest: Tensor = x[torch.arange(len(x), device=x.device), lengths - 1]
    return newest


class Residual(nn.Module):
    """`x + layer(norm(x))` (pre-norm, Xiong et al. 2020).

    Args:
        layer: Maps (B, L, D) to (B, L, D).
        d_model: D.
        layer_norm: False leaves the norm out.
    """

    def __init__(self, layer: nn.Module, d_model: int, *, layer_norm: bool = True) -> None:
        super().__init__()
        self.norm = make_norm(d_model, layer_norm)
        self.layer = layer

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Map (B, L, D) to (B, L, D); `others` are what the layer takes beside it."""
        out: Tensor = x + self.layer(self.norm(x), *others)
        return out

    def newest(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, 1, D) `forward` at each row's newest event, of layers that have a `newest`."""
        out: Tensor = newest_events(x, lengths).unsqueeze(1) + self.layer.newest(self.norm(x), lengths)  # type: ignore[operator]
        return out

    def zero_state(self, batch_size: int, max_length: int, like: Tensor) -> Tensors:
        """The layer's: see `Streamed.zero_state`."""
        return as_streaming(self.layer).zero_state(batch_size, max_length, like)

    def advance(self, x: Tensor, valid: Tensor | None, state: Tensors) -> tuple[Tensor, Tensors]:
        """See `Streamed.advance`."""
        out, state = as_streaming(self.layer).advance(self.norm(x), valid, state)
        return x + out, state


class ResidualStack(nn.Module):
    """Input dropout, blocks of pre-norm residual branches, and a norm behind the last.

    What a mixer (attention, Mamba) returns is not dropped, as in the code that SASRec and Mamba were published
    with: with the study's settings on ML-1M, dropping half of it costs MambaRec .02 of NDCG@10 at epoch 12.

    Args:
        blocks: The branches of each block, in order; each maps (B, L, D) to (B, L, D).
        d_model: D.
        dropout: Share of the input set to 0 in training.
        layer_norm: False leaves every norm out.

    Attributes:
        recompute: Whether the backward pass computes each block's insides again; see `recompute_blocks`.
    """

    def __init__(
        self, blocks: Sequence[Sequence[nn.Module]], d_model: int, *, dropout: float, layer_norm: bool = True
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(Residual(branch, d_model, layer_norm=layer_norm) for branch in branches))
            for branches in blocks
        )
        self.norm = make_norm(d_model, layer_norm)
        self.recompute = False

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, D) to (B, L, D)."""
        return self.through(x, self.blocks)

    def through(self, x: Tensor, blocks: Iterable[Callable[[Tensor], Tensor]]) -> Tensor:
        """`forward` with the blocks called in another way.

        Args:
            x: (B, L, D).
            blocks: For each block what maps (B, L, D) to (B, L, D).
        """
        x = self.dropout(x)
        for block in blocks:
            x = run_block(block, x, recompute=self.recompute)
        out: Tensor = self.norm(x)
        return out

    def newest(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, D) `forward` at each row's newest event.

        The last block's first branch must have a `newest`, and its other branches must not mix events.

        Args:
            x: (B, L, D), padded on the right.
            lengths: (B,) events a row, at least 1.
        """
        x = self.dropout(x)
        *before, last = self.blocks
        for block in before:
            x = block(x)
        mixer, *others = cast("nn.Sequential", last)
        out = cast("Residual", mixer).newest(x, lengths)
        for branch in others:
            out = branch(out)
        normed: Tensor = self.norm(out.squeeze(1))
        return normed

    def zero_state(self, batch_size: int, max_length: int, like: Tensor) -> Tensors:
        """Those of the branches, which are numbered through all blocks: see `Streamed.zero_state`."""
        parts = {name: branch.zero_state(batch_size, max_length, like) for name, branch in self._branches()}
        return joined(parts)

    def advance(self, x: Tensor, valid: Tensor | None, state: Tensors) -> tuple[Tensor, Tensors]:
        """See `Streamed.advance`."""
        parts = separated(state)
        for name, branch in self._branches():
            x, parts[name] = branch.advance(x, valid, parts.get(name, {}))
        return self.norm(x), joined(parts)

    def _branches(self) -> Iterator[tuple[str, Residual]]:
        branches = (branch for block in self.blocks for branch in cast("nn.Sequential", block))
        return ((str(number), cast("Residual", branch)) for number, branch in enumerate(branches))
