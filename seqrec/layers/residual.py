"""The pre-norm residual branch that all blocks are made of."""

from __future__ import annotations

from torch import Tensor, nn


def make_norm(d_model: int, layer_norm: bool) -> nn.Module:
    """LayerNorm over (..., D), or nothing for the ablation without it."""
    return nn.LayerNorm(d_model) if layer_norm else nn.Identity()


class Residual(nn.Module):
    """`x + dropout(layer(norm(x)))` (pre-norm, Xiong et al. 2020).

    Args:
        layer: Maps (B, L, D) to (B, L, D).
        d_model: D.
        dropout: Share of the branch's outputs set to 0 in training.
        layer_norm: False leaves the norm out.
    """

    def __init__(self, layer: nn.Module, d_model: int, *, dropout: float, layer_norm: bool = True) -> None:
        super().__init__()
        self.norm = make_norm(d_model, layer_norm)
        self.layer = layer
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, D) to (B, L, D)."""
        out: Tensor = x + self.dropout(self.layer(self.norm(x)))
        return out
