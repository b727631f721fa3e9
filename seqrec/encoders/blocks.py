"""What the encoders made of residual blocks share."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from seqrec.encoders.base import SequenceEncoder
from seqrec.layers import Residual, make_norm
from seqrec.types import History


class BlockEncoder(SequenceEncoder):
    """Pre-norm residual branches one after another, with a norm behind the last.

    Args:
        d_model: Width D.
        num_layers: Blocks.
        dropout: Share of each branch's outputs set to 0 in training.
        layer_norm: False leaves every norm out.
        branches: Makes the layers of one block; each gets its residual branch.
    """

    def __init__(
        self,
        d_model: int,
        *,
        num_layers: int,
        dropout: float,
        layer_norm: bool,
        branches: Callable[[], list[nn.Module]],
    ) -> None:
        super().__init__(d_model, num_layers=num_layers, dropout=dropout, layer_norm=layer_norm)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(Residual(branch, d_model, dropout=dropout, layer_norm=layer_norm) for branch in branches()))
            for _ in range(num_layers)
        )
        self.norm = make_norm(d_model, layer_norm)

    def forward(self, x: Tensor, history: History) -> Tensor:
        """See `SequenceEncoder.forward`."""
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out

