"""HSTU."""

from __future__ import annotations

from seqrec.encoders.layers import PointwiseAttention, ResidualStack
from seqrec.encoders.stacked_encoder import StackedEncoder


class HSTU(StackedEncoder):
    """Hierarchical sequential transduction units (Actions Speak Louder than Words: Trillion-Parameter Sequential
    Transducers for Generative Recommendations, Zhai et al. 2024, section 3).

    Each block is one layer of pointwise attention with a gate, `x + layer(norm(x))`, and has no feed-forward layer; see
    `seqrec.encoders.layers.PointwiseAttention` for its equations. Attention has a relative bias of positions, so the
    model needs no learned positions, and `time: {in_mixers: true}` adds that of times. Items alone are read: actions as
    events of their own, and the sampling of long histories (section 3.3), are not here.

    Args:
        d_model: Width D.
        num_layers: Blocks.
        num_heads: Attention heads, a divisor of D.
        num_distances: How many distances between events have a bias; all greater ones share the last.
        dropout: Share of inputs and gated outputs set to 0 in training.
        layer_norm: False omits every norm.

    Example:
        >>> import torch
        >>> from seqrec.encoders import HSTU
        >>> encoder = HSTU(d_model=8, num_heads=2).eval()
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
        num_distances: int = 256,
        dropout: float = 0.2,
        layer_norm: bool = True,
    ) -> None:
        super().__init__(d_model, num_layers=num_layers, dropout=dropout, layer_norm=layer_norm)
        self.num_heads = num_heads
        self.num_distances = num_distances
        blocks = [
            [
                PointwiseAttention(
                    d_model, num_heads=num_heads, num_distances=num_distances, dropout=dropout, layer_norm=layer_norm
                )
            ]
            for _ in range(num_layers)
        ]
        self.stack = ResidualStack(blocks, d_model, dropout=dropout, layer_norm=layer_norm)
