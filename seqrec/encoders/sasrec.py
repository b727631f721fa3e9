"""SASRec."""

from __future__ import annotations

from seqrec.encoders.layers import CausalSelfAttention, FeedForward, ResidualStack
from seqrec.encoders.stacked_encoder import StackedEncoder


class SASRec(StackedEncoder):
    """Transformer of causal self-attention and feed-forward (Self-Attentive Sequential Recommendation, Kang &
    McAuley 2018, section 3).

    Differs from the paper's code in the norm, which here is applied to the input of the whole branch, not to the
    queries alone.

    Args:
        d_model: Width D.
        num_layers: Transformer blocks.
        num_heads: Attention heads, a divisor of D.
        d_feedforward: Hidden width of the feed-forward layer; None is D, as in the paper.
        dropout: Share of inputs, attention weights, hidden units and feed-forward outputs set to 0 in training.
        layer_norm: False omits every norm.
        rotary: Whether attention rotates queries and keys by their positions (RoFormer, Su et al. 2021), which needs
            heads of even width. Unlike the model's learned positions, these can be streamed.

    Example:
        >>> import torch
        >>> from seqrec.encoders import SASRec
        >>> encoder = SASRec(d_model=8, num_heads=2, rotary=True).eval()
        >>> states, state = encoder.extend(torch.randn(1, 5, 8), None, encoder.init_state(1, max_length=50))
        >>> newest, state = encoder.step(torch.randn(1, 8), state)
        >>> states.shape, newest.shape
        (torch.Size([1, 5, 8]), torch.Size([1, 8]))
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
        rotary: bool = False,
    ) -> None:
        super().__init__(d_model, num_layers=num_layers, dropout=dropout, layer_norm=layer_norm)
        self.num_heads = num_heads
        self.rotary = rotary
        self.d_feedforward = d_feedforward
        blocks = [
            [
                CausalSelfAttention(d_model, num_heads=num_heads, dropout=dropout, rotary=rotary),
                FeedForward(d_model, d_feedforward=d_feedforward, dropout=dropout),
            ]
            for _ in range(num_layers)
        ]
        self.stack = ResidualStack(blocks, d_model, dropout=dropout, layer_norm=layer_norm)
