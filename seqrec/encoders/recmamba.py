"""RecMamba."""

from __future__ import annotations

from typing import Literal

from seqrec.encoders.layers import MIXERS, FeedForward, ResidualStack, make_mixer
from seqrec.encoders.stacked_encoder import StackedEncoder


class RecMamba(StackedEncoder):
    """Transformer with Mamba in place of attention, and with the feed-forward layers kept (Uncovering
    Selective State Space Model's Capabilities in Lifelong Sequential Recommendation, Yang et al. 2024).

    Args:
        d_model: Width D.
        num_layers: Blocks.
        mixer: "mamba", "mamba2" or "gated_deltanet".
        d_state: States per inner channel.
        d_conv: Events that the convolution sees.
        expand: Inner width divided by D.
        d_feedforward: Hidden width of the feed-forward layer; None is D.
        dropout: Share of inputs, hidden units and feed-forward outputs set to 0 in training.
        layer_norm: False omits every norm.
    """

    def __init__(
        self,
        d_model: int = 64,
        *,
        num_layers: int = 2,
        mixer: Literal["mamba", "mamba2", "gated_deltanet"] = "mamba",
        d_state: int = 32,
        d_conv: int = 4,
        expand: int = 2,
        d_feedforward: int | None = None,
        dropout: float = 0.2,
        layer_norm: bool = True,
    ) -> None:
        super().__init__(d_model, num_layers=num_layers, dropout=dropout, layer_norm=layer_norm)
        self.mixer = mixer
        self.d_state = d_state
        self.d_conv = d_conv
        self.expand = expand
        self.d_feedforward = d_feedforward
        blocks = [
            [
                make_mixer(mixer, d_model, d_state=d_state, d_conv=d_conv, expand=expand),
                FeedForward(d_model, d_feedforward=d_feedforward, dropout=dropout),
            ]
            for _ in range(num_layers)
        ]
        self.takes_slab_rows = MIXERS[mixer].takes_slab_rows
        self.stack = ResidualStack(blocks, d_model, dropout=dropout, layer_norm=layer_norm)
