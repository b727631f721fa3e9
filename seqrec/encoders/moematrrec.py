"""MoEMaTrRec."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from seqrec.encoders.base import ENCODERS, SequenceEncoder
from seqrec.layers import (
    CausalSelfAttention,
    FeedForward,
    ResidualStack,
    Streamed,
    Tensors,
    TokenGate,
    joined,
    make_mixer,
    separated,
    streamed,
)
from seqrec.types import History


class AttentionMambaMixture(nn.Module):
    """Attention and Mamba side by side, summed with weights from a gate at each position.

    Args:
        attention: Maps (B, L, D) to (B, L, D), causal.
        mamba: Likewise.
        d_model: D.
    """

    def __init__(self, attention: CausalSelfAttention, mamba: nn.Module, d_model: int) -> None:
        super().__init__()
        self.attention = attention
        self.mamba = mamba
        self.gate = TokenGate(d_model, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, D) to (B, L, D)."""
        attention_weight, mamba_weight = self.gate(x).split(1, dim=-1)
        out: Tensor = attention_weight * self.attention(x) + mamba_weight * self.mamba(x)
        return out

    def zero_state(self, batch_size: int, max_length: int, like: Tensor) -> Tensors:
        """Those of both: see `seqrec.layers.Streamed`."""
        return joined(
            {name: layer.zero_state(batch_size, max_length, like) for name, layer in self._experts().items()}
        )

    def advance(self, x: Tensor, valid: Tensor | None, state: Tensors) -> tuple[Tensor, Tensors]:
        """See `seqrec.layers.Streamed`."""
        parts, outs = separated(state), {}
        for name, layer in self._experts().items():
            outs[name], parts[name] = layer.advance(x, valid, parts[name])
        attention_weight, mamba_weight = self.gate(x).split(1, dim=-1)
        return attention_weight * outs["attention"] + mamba_weight * outs["mamba"], joined(parts)

    def _experts(self) -> dict[str, Streamed]:
        return {"attention": self.attention, "mamba": streamed(self.mamba)}


@ENCODERS.register("MoEMaTrRec")
class MoEMaTrRec(SequenceEncoder):
    """Transformer block in which a gating network mixes attention and Mamba.

    Differs from the published code on purpose. There, attention has no causal mask and the gate pools over the
    whole sequence, so in training each state sees the events that it must predict, and the gate's weights of a
    past position change with every new event. Here attention is causal, and the gate weighs the two experts at
    each position from that position's input alone.

    Args:
        d_model: Width D.
        num_layers: Blocks.
        num_heads: Attention heads, a divisor of D.
        mixer: "mamba" or "mamba2".
        d_state: States of each inner channel of Mamba.
        d_conv: Events that Mamba's convolution sees.
        expand: Inner width of Mamba divided by D.
        d_feedforward: Hidden width of the feed-forward layer; None is D.
        dropout: Share of inputs, attention weights, hidden units and feed-forward outputs set to 0 in training.
        layer_norm: False leaves every norm out.
        rotary: Whether attention turns queries and keys by their positions (RoFormer, Su et al. 2021), which needs
            heads of even width. Unlike the model's learned positions, these can be streamed.
    """

    def __init__(
        self,
        d_model: int = 64,
        *,
        num_layers: int = 2,
        num_heads: int = 1,
        mixer: Literal["mamba", "mamba2"] = "mamba",
        d_state: int = 32,
        d_conv: int = 4,
        expand: int = 2,
        d_feedforward: int | None = None,
        dropout: float = 0.2,
        layer_norm: bool = True,
        rotary: bool = False,
    ) -> None:
        super().__init__(d_model, num_layers=num_layers, dropout=dropout, layer_norm=layer_norm)
        self.num_heads = num_heads
        self.rotary = rotary
        self.mixer = mixer
        self.d_state = d_state
        self.d_conv = d_conv
        self.expand = expand
        self.d_feedforward = d_feedforward

        def branches() -> list[nn.Module]:
            attention = CausalSelfAttention(d_model, num_heads=num_heads, dropout=dropout, rotary=rotary)
            mamba = make_mixer(mixer, d_model, d_state=d_state, d_conv=d_conv, expand=expand)
            return [
                AttentionMambaMixture(attention, mamba, d_model),
                FeedForward(d_model, d_hidden=d_feedforward, dropout=dropout),
            ]

        blocks = [branches() for _ in range(num_layers)]
        self.stack = ResidualStack(blocks, d_model, dropout=dropout, layer_norm=layer_norm)

    def forward(self, x: Tensor, history: History) -> Tensor:
        """See `SequenceEncoder.forward`."""
        out: Tensor = self.stack(x)
        return out

    def zero_state(self, batch_size: int, max_length: int, like: Tensor) -> Tensors:
        """See `SequenceEncoder.zero_state`."""
        return self.stack.zero_state(batch_size, max_length, like)

    def advance(self, x: Tensor, valid: Tensor | None, state: Tensors) -> tuple[Tensor, Tensors]:
        """See `SequenceEncoder.advance`."""
        return self.stack.advance(x, valid, state)
