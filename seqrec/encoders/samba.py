"""Samba."""

from __future__ import annotations

from typing import Literal

from seqrec.encoders.layers import CausalSelfAttention, FeedForward, ResidualStack, make_mixer
from seqrec.encoders.stacked_encoder import StackedEncoder

# Newest events that attention sees by default.
WINDOW = 64


class Samba(StackedEncoder):
    """Mamba and sliding window attention in turns (Samba: Simple Hybrid State Space Models for Efficient
    Unlimited Context Language Modeling, Ren et al. 2024, section 2.1).

    The recurrence carries what matters of the whole history, and attention reads the newest `window` events exactly.
    Time and memory grow with L, not with its square. A stream keeps the newest `window` keys and values of each
    attention, and the state of each Mamba; its states are those of `forward` over all events, however many.

    Each block is a mixer and a feed-forward layer. The mixers are Mamba, attention, Mamba, .., so that an even number
    of blocks is the paper's. Attention has rotary positions, as there. The feed-forward layer is that of `SASRec`; the
    paper has SwiGLU.

    Args:
        d_model: Width D.
        num_layers: Blocks; with 1 there is no attention.
        window: Newest events that attention sees, the present one included; None is 64.
        num_heads: Attention heads, a divisor of D that leaves them an even width.
        mixer: "mamba", "mamba2" or "gated_deltanet".
        d_state: States of each inner channel of Mamba.
        d_conv: Events that Mamba's convolution sees.
        expand: Inner width of Mamba divided by D.
        d_feedforward: Hidden width of the feed-forward layer; None is D.
        dropout: Share of inputs, attention weights, hidden units and feed-forward outputs set to 0 in training.
        layer_norm: False omits every norm.
    """

    def __init__(
        self,
        d_model: int = 64,
        *,
        num_layers: int = 2,
        window: int | None = None,
        num_heads: int = 1,
        mixer: Literal["mamba", "mamba2", "gated_deltanet"] = "mamba",
        d_state: int = 32,
        d_conv: int = 4,
        expand: int = 2,
        d_feedforward: int | None = None,
        dropout: float = 0.2,
        layer_norm: bool = True,
    ) -> None:
        super().__init__(d_model, num_layers=num_layers, dropout=dropout, layer_norm=layer_norm)
        self.window = window
        self.num_heads = num_heads
        self.mixer = mixer
        self.d_state = d_state
        self.d_conv = d_conv
        self.expand = expand
        self.d_feedforward = d_feedforward
        blocks = [
            [
                CausalSelfAttention(
                    d_model,
                    num_heads=num_heads,
                    dropout=dropout,
                    rotary=True,
                    window=WINDOW if window is None else window,
                )
                if number % 2
                else make_mixer(mixer, d_model, d_state=d_state, d_conv=d_conv, expand=expand),
                FeedForward(d_model, d_feedforward=d_feedforward, dropout=dropout),
            ]
            for number in range(num_layers)
        ]
        self.stack = ResidualStack(blocks, d_model, dropout=dropout, layer_norm=layer_norm)
