"""The pre-norm residual branch that all blocks are made of."""

from __future__ import annotations

from collections.abc import Sequence

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


class ResidualStack(nn.Module):
    """Blocks of pre-norm residual branches, with a norm behind the last.

    Args:
        blocks: The branches of each block, in order; each maps (B, L, D) to (B, L, D).
        d_model: D.
        dropout: Share of each branch's outputs set to 0 in training.
        layer_norm: False leaves every norm out.
    """

    def __init__(
        self, blocks: Sequence[Sequence[nn.Module]], d_model: int, *, dropout: float, layer_norm: bool = True
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(*(Residual(x, d_model, dropout=dropout, layer_norm=layer_norm) for x in branches))
            for branches in blocks
        )
        self.norm = make_norm(d_model, layer_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, D) to (B, L, D)."""
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out
