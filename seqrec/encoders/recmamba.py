"""RecMamba."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from seqrec.encoders.layers import MIXERS, FeedForward, ResidualStack, Tensors, Times, make_mixer
from seqrec.encoders.sequence_encoder import SequenceEncoder
from seqrec.types import History


class RecMamba(SequenceEncoder):
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

    def forward(self, x: Tensor, history: History) -> Tensor:
        """Return states (B, L, D) of embedded events x (B, L, D)."""
        out: Tensor = self.stack(x)
        return out

    def zero_state(self, batch_size: int, max_length: int, like: Tensor) -> Tensors:
        """Return the state before the first event; see `Streamed.zero_state`."""
        return self.stack.zero_state(batch_size, max_length, like)

    def advance(self, x: Tensor, valid: Tensor | None, state: Tensors, *times: Times) -> tuple[Tensor, Tensors]:
        """Compute further events; see `Streamed.advance`."""
        return self.stack.advance(x, valid, state, *times)
