"""RecMamba."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from seqrec.encoders.base import SequenceEncoder
from seqrec.encoders.layers import FeedForward, ResidualStack, Tensors, make_mixer
from seqrec.types import History


class RecMamba(SequenceEncoder):
    """Transformer block in which Mamba replaces the attention and the feed-forward layer stays (Uncovering
    Selective State Space Model's Capabilities in Lifelong Sequential Recommendation, Yang et al. 2024).

    Args:
        d_model: Width D.
        num_layers: Blocks.
        mixer: "mamba" or "mamba2".
        d_state: States of each inner channel.
        d_conv: Events that the convolution sees.
        expand: Inner width divided by D.
        d_feedforward: Hidden width of the feed-forward layer; None is D.
        dropout: Share of inputs, hidden units and feed-forward outputs set to 0 in training.
        layer_norm: False leaves every norm out.
    """

    def __init__(
        self,
        d_model: int = 64,
        *,
        num_layers: int = 2,
        mixer: Literal["mamba", "mamba2"] = "mamba",
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

        def branches() -> list[nn.Module]:
            return [
                make_mixer(mixer, d_model, d_state=d_state, d_conv=d_conv, expand=expand),
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
