"""SASRec."""

from __future__ import annotations

from torch import Tensor, nn

from seqrec.encoders.base import ENCODERS, SequenceEncoder
from seqrec.layers import CausalSelfAttention, FeedForward, ResidualStack
from seqrec.types import History


@ENCODERS.register("SASRec")
class SASRec(SequenceEncoder):
    """Transformer of causal self-attention and feed-forward (Self-Attentive Sequential Recommendation, Kang &
    McAuley 2018, section 3).

    Differs from the paper's code in the norm, which here stands before the whole branch and not before the
    queries alone.

    Args:
        d_model: Width D.
        num_layers: Transformer blocks.
        num_heads: Attention heads, a divisor of D.
        d_feedforward: Hidden width of the feed-forward layer; None is D, as in the paper.
        dropout: Share of inputs, attention weights, hidden units and feed-forward outputs set to 0 in training.
        layer_norm: False leaves every norm out.
    """

    def __init__(
        self,
        d_model: int = 64,
        *,
        num_layers: int = 2,
        num_heads: int = 1,
        d_feedforward: int | None = None,
        dropout: float = 0.2,
        layer_norm: bool = True,
    ) -> None:
        super().__init__(d_model, num_layers=num_layers, dropout=dropout, layer_norm=layer_norm)
        self.num_heads = num_heads
        self.d_feedforward = d_feedforward

        def branches() -> list[nn.Module]:
            return [
                CausalSelfAttention(d_model, num_heads=num_heads, dropout=dropout),
                FeedForward(d_model, d_hidden=d_feedforward, dropout=dropout),
            ]

        blocks = [branches() for _ in range(num_layers)]
        self.stack = ResidualStack(blocks, d_model, dropout=dropout, layer_norm=layer_norm)

    def forward(self, x: Tensor, history: History) -> Tensor:
        """See `SequenceEncoder.forward`."""
        out: Tensor = self.stack(x)
        return out
