"""BERT4Rec."""

from __future__ import annotations

from torch import Tensor, nn

from seqrec.encoders.layers import CausalSelfAttention, FeedForward, ResidualStack, make_norm
from seqrec.encoders.layers.positionwise import Linear
from seqrec.encoders.stacked_encoder import BidirectionalEncoder
from seqrec.types import History


class BERT4Rec(BidirectionalEncoder):
    """Transformer of self-attention in both directions (BERT4Rec: Sequential Recommendation with Bidirectional Encoder
    Representations from Transformer, Sun et al. 2019).

    Blocks of attention and feed-forward layer, and then `norm(gelu(W x + b))`. Its dot products with items are
    scores. It is trained on masked items and cannot be streamed; see `seqrec.models.MaskedItems`.

    Differs from the paper: norms are before each branch and not after it, feed-forward layers have ReLU, not GELU, and
    there is one head unless told otherwise, as in the other encoders here.

    Args:
        d_model: Width D.
        num_layers: Transformer blocks.
        num_heads: Attention heads, a divisor of D.
        d_feedforward: Hidden width of the feed-forward layer; None is 4 D, as in the paper.
        dropout: Share of inputs, attention weights, hidden units and feed-forward outputs set to 0 in training.
        layer_norm: False omits every norm.
        rotary: Whether attention rotates queries and keys by their positions (RoFormer, Su et al. 2021), which needs
            heads of even width.

    Example:
        >>> import torch
        >>> from seqrec import History
        >>> from seqrec.encoders import BERT4Rec
        >>> encoder = BERT4Rec(d_model=8, num_heads=2).eval()
        >>> history = History(torch.tensor([[3, 0, 9]]), torch.tensor([3]))
        >>> encoder(torch.randn(1, 3, 8), history).shape, encoder.bidirectional
        (torch.Size([1, 3, 8]), True)
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
        width = 4 * d_model if d_feedforward is None else d_feedforward
        blocks = [
            [
                CausalSelfAttention(d_model, num_heads=num_heads, dropout=dropout, rotary=rotary),
                FeedForward(d_model, d_feedforward=width, dropout=dropout),
            ]
            for _ in range(num_layers)
        ]
        self.stack = ResidualStack(blocks, d_model, dropout=dropout, layer_norm=layer_norm)
        self.head = nn.Sequential(Linear(d_model, d_model), nn.GELU(), make_norm(d_model, layer_norm))

    def forward(self, x: Tensor, history: History) -> Tensor:
        """Return states (B, L, D) of embedded events x (B, L, D)."""
        out: Tensor = self.head(super().forward(x, history))
        return out
