"""Stacks of blocks, which are residual branches with norms, and activation checkpointing of blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seqrec.encoders.layers.dropout import Dropout
from seqrec.encoders.layers.gaps import Times
from seqrec.encoders.layers.positionwise import FeedForward, Linear
from seqrec.encoders.layers.streamed import Tensors, as_streaming, joined, separated
from seqrec.errors import InputError
from seqrec.ops.dropout import dropout
from seqrec.ops.residual_norm import NORM_EPS, residual_norm

Out = TypeVar("Out")
# Where a branch is normed; see `Residual`.
NormPlace = Literal["pre", "post", "queries"]


def make_norm(d_model: int, layer_norm: bool) -> nn.Module:
    """Return a LayerNorm over (..., D), or the identity for the ablation without it."""
    return nn.LayerNorm(d_model, eps=NORM_EPS) if layer_norm else nn.Identity()


def newest_events(x: Tensor, lengths: Tensor) -> Tensor:
    """Return x (B, L, ...) at each row's newest event, as (B, ...); `lengths` (B,) are at least 1."""
    newest: Tensor = x[torch.arange(x.shape[0], device=x.device), lengths - 1]
    return newest


def run_block(block: Callable[..., Out], *inputs: Any, recompute: bool) -> Out:
    """Return `block(*inputs)`; with `recompute`, keep only the inputs for the backward pass (activation
    checkpointing, Training Deep Nets with Sublinear Memory Cost, Chen et al. 2016).

    The second computation has the first one's dropout and precision, so values and gradients are the same.
    """
    if not (recompute and torch.is_grad_enabled()):
        return block(*inputs)
    out: Out = checkpoint(block, *inputs, use_reentrant=False)
    return out


def recompute_blocks(module: nn.Module, recompute: bool) -> None:
    """Turn recomputation of a module's blocks on or off, in all of its parts that have a flag `recompute`.

    Raises:
        InputError: if no part has the flag.
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


class Residual(nn.Module):
    """A layer and what passes by it, for x (B, L, D); without `layer_norm` there is no norm n.

    - "pre": `x + layer(n(x))` (On Layer Normalization in the Transformer Architecture, Xiong et al. 2020, table 1).
    - "post": `n(x + layer(x))` (Attention Is All You Need, Vaswani et al. 2017, section 3.1).
    - "queries": `q + layer(q)` of `q = n(x)`, and attention has keys and values of x itself, as in the code of SASRec's
      authors: what passes by is normed too.

    With `gated`, the layer's output is multiplied by `sigmoid(W s + b)`, where s is what passes by it (LiGR: From
    Features to Transformers, Borisyuk et al. 2025).
    """

    def __init__(
        self,
        layer: nn.Module,
        d_model: int,
        *,
        layer_norm: bool = True,
        place: NormPlace = "pre",
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.norm = make_norm(d_model, layer_norm)
        self.layer = layer
        self.gate = Linear(d_model, d_model) if gated else None
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, D) to (B, L, D)."""
        inner = x if self.place == "post" else self.norm(x)
        return self.add(x, inner, self.norm if self.place == "post" else nn.Identity())[1]

    def add(self, x: Tensor, inner: Tensor, norm: nn.Module, *others: Any) -> tuple[Tensor, Tensor]:
        """Return the sum of the branch and what passes by it, and a norm of the sum.

        Args:
            x: Input.
            inner: Input of the layer: `self.norm(x)`, or x itself with "post".
            norm: What follows the sum: the norm of the next branch, or its own with "post".
            others: Further arguments of the layer.
        """
        passed = x if self.place == "pre" else inner
        if isinstance(self.layer, FeedForward):
            out = self.layer.before_dropout(inner)
            return _add_and_norm(self._gated(out, passed), passed, norm, self.layer.layers[-1])
        return _add_and_norm(self._gated(self.layer(inner, *others, **self._keys(x)), passed), passed, norm)

    def newest(self, x: Tensor, inner: Tensor, lengths: Tensor, times: Times | None) -> Tensor:
        """Return `forward` at each row's newest event (B, 1, D), for a layer with a `newest`; `inner` as in `add`."""
        mixed = self.layer.newest(inner, lengths, times, **self._keys(x))  # type: ignore[operator]
        passed = newest_events(x if self.place == "pre" else inner, lengths).unsqueeze(1)
        out: Tensor = passed + self._gated(mixed, passed)
        return self.norm(out) if self.place == "post" else out

    def zero_state(self, batch_size: int, max_length: int, like: Tensor) -> Tensors:
        """Return the layer's state; see `Streamed.zero_state`."""
        return as_streaming(self.layer).zero_state(batch_size, max_length, like)

    def advance(self, x: Tensor, valid: Tensor | None, state: Tensors, *others: Any) -> tuple[Tensor, Tensors]:
        """Compute further events; see `Streamed.advance`. `others` are further arguments of the layer."""
        inner = x if self.place == "post" else self.norm(x)
        mixed, state = as_streaming(self.layer).advance(inner, valid, state, *others, **self._keys(x))
        passed = x if self.place == "pre" else inner
        out = passed + self._gated(mixed, passed)
        return (self.norm(out) if self.place == "post" else out), state

    def _keys(self, x: Tensor) -> dict[str, Tensor]:
        """Return what the layer's keys and values are made of, if that is not its input."""
        return {"keys_from": x} if self.place == "queries" and not isinstance(self.layer, FeedForward) else {}

    def _gated(self, branch: Tensor, passed: Tensor) -> Tensor:
        return branch if self.gate is None else torch.sigmoid(self.gate(passed)) * branch


class ResidualStack(nn.Module):
    """Input dropout, blocks of residual branches, and a norm after the last block, unless the norms are "post".

    The output of a mixer (attention, Mamba) has no dropout, as in the published code of SASRec and Mamba: with the
    study's settings on ML-1M, a dropout of 0.5 there costs MambaRec .02 of NDCG@10 at epoch 12.

    Args:
        blocks: The branches of each block, in order; each maps (B, L, D) to (B, L, D).
        d_model: D.
        dropout: Share of the input set to 0 in training.
        layer_norm: False omits every norm.
        norm: Where branches are normed: "pre", "post" or "queries"; see `Residual`.
        gated: Whether each branch is multiplied by a gate; see `Residual`.

    Raises:
        InputError: if `norm` is unknown.

    Attributes:
        recompute: Whether the backward pass recomputes the activations inside each block; see `recompute_blocks`.

    Example:
        >>> import torch
        >>> from seqrec.encoders.layers import FeedForward, ResidualStack, make_mixer
        >>> mixer = make_mixer("mamba", 8, d_state=4, d_conv=4, expand=2)
        >>> stack = ResidualStack([[mixer, FeedForward(8)]], 8, dropout=0.2)
        >>> stack(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[nn.Module]],
        d_model: int,
        *,
        dropout: float,
        layer_norm: bool = True,
        norm: NormPlace = "pre",
        gated: bool = False,
    ) -> None:
        super().__init__()
        if norm not in get_args(NormPlace):
            raise InputError(f"norm={norm!r} is unknown; known: {', '.join(get_args(NormPlace))}")
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(Residual(branch, d_model, layer_norm=layer_norm, place=norm, gated=gated) for branch in branches)
            )
            for branches in blocks
        )
        self.place = norm
        self.norm = make_norm(d_model, layer_norm and norm != "post")
        self.recompute = False

    def forward(self, x: Tensor, *others: Any, recompute: bool | None = None) -> Tensor:
        """Map (B, L, D) to (B, L, D).

        Args:
            x: (B, L, D).
            others: Further arguments of the layer of each block's first branch.
            recompute: For a caller that recomputes the whole call itself; None is the attribute.
        """
        return self._run(len(self.blocks), x, *others, recompute=recompute)[1]

    @property
    def ends_with_attention(self) -> bool:
        """Whether the last block can be computed for the newest events alone: its first branch has a `newest`."""
        return hasattr(self._blocks()[-1][0].layer, "newest")

    def newest(self, x: Tensor, lengths: Tensor, times: Times | None = None) -> Tensor:
        """Return `forward` at each row's newest event (B, D), for x (B, L, D) with `lengths` (B,) of at least 1 event.

        `ends_with_attention` must hold, and the other branches of the last block must not mix events.
        """
        mixer, *others = self._blocks()[-1]
        out = mixer.newest(*self._run(len(self.blocks) - 1, x, None, times), lengths, times)
        for branch in others:
            out = branch(out)
        normed: Tensor = self.norm(out.squeeze(1))
        return normed

    def zero_state(self, batch_size: int, max_length: int, like: Tensor) -> Tensors:
        """Return the states of the branches, which are numbered through all blocks; see `Streamed.zero_state`."""
        parts = {name: branch.zero_state(batch_size, max_length, like) for name, branch in self._branches()}
        return joined(parts)

    def advance(
        self, x: Tensor, valid: Tensor | None, state: Tensors, *others: Any, recompute: bool | None = None
    ) -> tuple[Tensor, Tensors]:
        """Compute further events; see `Streamed.advance`. `others` and `recompute` are as in `forward`."""
        recompute = self.recompute if recompute is None else recompute
        parts, mixers = separated(state), [block[0] for block in self._blocks()]
        if self.training:
            x = self.dropout(x)
        for name, branch in self._branches():
            own = others if branch in mixers else ()
            before = parts.get(name, {})
            x, parts[name] = run_block(branch.advance, x, valid, before, *own, recompute=recompute)
        return self.norm(x), joined(parts)

    def _blocks(self) -> list[list[Residual]]:
        return [[cast("Residual", branch) for branch in cast("nn.Sequential", block)] for block in self.blocks]

    def _branches(self) -> Iterator[tuple[str, Residual]]:
        branches = (branch for block in self._blocks() for branch in block)
        return ((str(number), branch) for number, branch in enumerate(branches))

    def _run(self, count: int, x: Tensor, *others: Any, recompute: bool | None = None) -> tuple[Tensor, Tensor]:
        """Return x (B, L, D) after input dropout and the first `count` blocks, and what the next layer gets of it."""
        recompute = self.recompute if recompute is None else recompute
        blocks = self._blocks()
        norms = [branch.norm for block in blocks for branch in block]
        first, *norms = [nn.Identity(), *norms] if self.place == "post" else [*norms, self.norm]
        x, normed = _add_and_norm(x, None, first, self.dropout)
        for block in blocks[:count]:
            run = partial(_run_branches, block, norms[: len(block)], others)
            x, normed = run_block(run, x, normed, recompute=recompute)
            norms = norms[len(block) :]
        return x, normed


def _run_branches(
    branches: Sequence[Residual], norms: Sequence[nn.Module], others: tuple[Any, ...], x: Tensor, normed: Tensor
) -> tuple[Tensor, Tensor]:
    """Return x (B, L, D) after a block's branches, and its norm, given the input of the first branch's layer.

    A sum is normed in the pass that computes it, so `norms` are those that follow each branch.
    """
    for branch, norm in zip(branches, norms, strict=True):
        x, normed = branch.add(x, normed, norm, *others)
        others = ()
    return x, normed


def _add_and_norm(
    branch: Tensor, x: Tensor | None, norm: nn.Module, layer: nn.Module | None = None
) -> tuple[Tensor, Tensor]:
    """Return `x + layer(branch)`, for a layer of dropout or none, and its norm."""
    share = layer.p if isinstance(layer, Dropout) and layer.training else 0.0
    if isinstance(norm, nn.LayerNorm):
        return residual_norm(branch, x, norm.weight, norm.bias, dropout=share)
    dropped = dropout(branch, share)
    out = dropped if x is None else x + dropped
    return out, norm(out)
