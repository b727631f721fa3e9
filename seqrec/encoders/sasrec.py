"""SASRec."""

from __future__ import annotations

from typing import Literal

from seqrec.encoders.layers import CausalSelfAttention, FeedForward, ResidualStack
from seqrec.encoders.stacked_encoder import StackedEncoder


class SASRec(StackedEncoder):
    """Transformer of causal self-attention and feed-forward (Self-Attentive Sequential Recommendation, Kang &
    McAuley 2018, section 3).

    Each branch is `x + layer(norm(x))`, as in the paper. The authors' code norms queries but not keys and values, and
    adds the branch to the normed input: `norm="queries"`. (It has no linear map after the heads, but this encoder has.)
    `norm="post"` is `norm(x + layer(x))`, as in other implementations.

    LiGR (From Features to Transformers: Redefining Ranking for Scalable Impact, Borisyuk et al. 2025) is
    `gated=True, feed_forward="swiglu"`: each branch is `x + sigmoid(W x + b) * layer(norm(x))`.

    Args:
        d_model: Width D.
        num_layers: Transformer blocks.
        num_heads: Attention heads, a divisor of D.
        d_feedforward: Hidden width of the feed-forward layer; None is D, as in the paper.
        dropout: Share of inputs, attention weights, hidden units and feed-forward outputs set to 0 in training.
        layer_norm: False omits every norm.
        rotary: Whether attention rotates queries and keys by their positions (RoFormer, Su et al. 2021), which needs
            heads of even width. Unlike the model's learned positions, these can be streamed.
        norm: Where branches are normed, "pre", "post" or "queries"; see `seqrec.encoders.layers.residual.Residual`.
        feed_forward: "relu", "gelu" or "swiglu"; see `seqrec.encoders.layers.FeedForward`.
        gated: Whether each branch is multiplied by a gate.

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
        norm: Literal["pre", "post", "queries"] = "pre",
        feed_forward: Literal["relu", "gelu", "swiglu"] = "relu",
        gated: bool = False,
    ) -> None:
        super().__init__(d_model, num_layers=num_layers, dropout=dropout, layer_norm=layer_norm)
        self.num_heads = num_heads
        self.rotary = rotary
        self.d_feedforward = d_feedforward
        self.norm = norm
        self.feed_forward = feed_forward
        self.gated = gated
        blocks = [
            [
                CausalSelfAttention(d_model, num_heads=num_heads, dropout=dropout, rotary=rotary),
                FeedForward(d_model, d_feedforward=d_feedforward, dropout=dropout, feed_forward=feed_forward),
            ]
            for _ in range(num_layers)
        ]
        self.stack = ResidualStack(blocks, d_model, dropout=dropout, layer_norm=layer_norm, norm=norm, gated=gated)
