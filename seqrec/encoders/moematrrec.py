"""MoEMaTrRec."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from seqrec.encoders.layers import (
    CausalSelfAttention,
    FeedForward,
    ResidualStack,
    Streamed,
    Tensors,
    Times,
    TokenGate,
    as_streaming,
    joined,
    make_mixer,
    separated,
)
from seqrec.encoders.stacked_encoder import StackedEncoder
from seqrec.errors import InputError
from seqrec.types import History


class AttentionMambaMixture(nn.Module):
    """Causal attention and Mamba in parallel, on (B, L, D), summed with weights from a gate."""

    def __init__(self, attention: CausalSelfAttention, mamba: nn.Module, d_model: int) -> None:
        super().__init__()
        self.attention = attention
        self.mamba = mamba
        self.gate = TokenGate(d_model, 2)

    def forward(self, x: Tensor, valid: Tensor | None = None, *times: Times) -> Tensor:
        """Map (B, L, D) to (B, L, D), causally, with weights of the gate at each position.

        With `valid` (B, L) bool, True at events, attention sees newer events too, and the gate computes one pair of
        weights per row, from the mean of x over the row's events.
        """
        gated = x if valid is None else _mean_of_events(x, valid)
        attention_weight, mamba_weight = self.gate(gated).split(1, dim=-1)
        out: Tensor = attention_weight * self.attention(x, valid, *times) + mamba_weight * self.mamba(x)
        return out

    def zero_state(self, batch_size: int, max_length: int, like: Tensor) -> Tensors:
        """Return the states of both experts; see `Streamed.zero_state`."""
        return joined({name: layer.zero_state(batch_size, max_length, like) for name, layer in self._experts().items()})

    def advance(self, x: Tensor, valid: Tensor | None, state: Tensors, *times: Times) -> tuple[Tensor, Tensors]:
        """Compute further events; see `Streamed.advance`."""
        parts, outs = separated(state), {}
        for name, layer in self._experts().items():
            outs[name], parts[name] = layer.advance(x, valid, parts[name], *times)
        attention_weight, mamba_weight = self.gate(x).split(1, dim=-1)
        return attention_weight * outs["attention"] + mamba_weight * outs["mamba"], joined(parts)

    def _experts(self) -> dict[str, Streamed]:
        return {"attention": self.attention, "mamba": as_streaming(self.mamba)}


class MoEMaTrRec(StackedEncoder):
    """Transformer block in which a gating network mixes attention and Mamba.

    Differs from the published code on purpose. There, attention has no causal mask and the gate pools over the
    whole sequence: in training each state sees the events that it must predict, and the gate's weights of a
    past position change with every new event. Here attention is causal, and the gate weighs the two experts at
    each position from that position's input alone.

    `causal=False` is the published mixture. Use it only to understand the published numbers: it breaks the contract
    of encoders. Training states see the very events that they must predict; only the state at the newest event, from
    which recommendations are made, has no newer event to see. It cannot be streamed. The weights are the same.

    Args:
        d_model: Width D.
        num_layers: Blocks.
        num_heads: Attention heads, a divisor of D.
        mixer: "mamba", "mamba2" or "gated_deltanet".
        d_state: States of each inner channel of Mamba.
        d_conv: Events that Mamba's convolution sees.
        expand: Inner width of Mamba divided by D.
        d_feedforward: Hidden width of the feed-forward layer; None is D.
        dropout: Share of inputs, attention weights, hidden units and feed-forward outputs set to 0 in training.
        layer_norm: False omits every norm.
        rotary: Whether attention rotates queries and keys by their positions (RoFormer, Su et al. 2021), which needs
            heads of even width. Unlike the model's learned positions, these can be streamed.
        causal: False as published: attention sees newer events too, and the gate pools over all events of the history.
    """

    def __init__(
        self,
        d_model: int = 64,
        *,
        num_layers: int = 2,
        num_heads: int = 1,
        mixer: Literal["mamba", "mamba2", "gated_deltanet"] = "mamba",
        d_state: int = 32,
        d_conv: int = 4,
        expand: int = 2,
        d_feedforward: int | None = None,
        dropout: float = 0.2,
        layer_norm: bool = True,
        rotary: bool = False,
        causal: bool = True,
    ) -> None:
        super().__init__(d_model, num_layers=num_layers, dropout=dropout, layer_norm=layer_norm)
        self.num_heads = num_heads
        self.rotary = rotary
        self.causal = causal
        self.mixer = mixer
        self.d_state = d_state
        self.d_conv = d_conv
        self.expand = expand
        self.d_feedforward = d_feedforward
        blocks = [
            [
                AttentionMambaMixture(
                    CausalSelfAttention(d_model, num_heads=num_heads, dropout=dropout, rotary=rotary),
                    make_mixer(mixer, d_model, d_state=d_state, d_conv=d_conv, expand=expand),
                    d_model,
                ),
                FeedForward(d_model, d_feedforward=d_feedforward, dropout=dropout),
            ]
            for _ in range(num_layers)
        ]
        self.stack = ResidualStack(blocks, d_model, dropout=dropout, layer_norm=layer_norm)

    def forward(self, x: Tensor, history: History) -> Tensor:
        """Return states (B, L, D) of embedded events x (B, L, D)."""
        out: Tensor = self.stack(x, None if self.causal else history.valid, *self.times_of(history))
        return out

    def read_gaps(self, ticks: int) -> None:
        """See `SequenceEncoder.read_gaps`; `causal=False` is refused."""
        if not self.causal:
            raise InputError("causal=False is the published mixture, which reads no gaps: leave time.in_mixers out")
        super().read_gaps(ticks)

    def zero_state(self, batch_size: int, max_length: int, like: Tensor) -> Tensors:
        """Return the state before the first event; see `Streamed.zero_state`. `causal=False` is refused."""
        self._refuse_newer_events()
        return super().zero_state(batch_size, max_length, like)

    def advance(self, x: Tensor, valid: Tensor | None, state: Tensors, *times: Times) -> tuple[Tensor, Tensors]:
        """Compute further events; see `Streamed.advance`. `causal=False` is refused."""
        self._refuse_newer_events()
        return super().advance(x, valid, state, *times)

    def _refuse_newer_events(self) -> None:
        if not self.causal:
            raise InputError(
                "causal=False sees newer events and cannot be streamed: each new event changes the states of all "
                "others; train with causal: true"
            )


def _mean_of_events(x: Tensor, valid: Tensor) -> Tensor:
    """Return the mean (B, 1, D) of x (B, L, D) over the events of `valid` (B, L)."""
    events = x.masked_fill(~valid.unsqueeze(-1), 0).sum(1, keepdim=True)
    return events / valid.sum(1)[:, None, None]
