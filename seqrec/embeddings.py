"""Tables of learned vectors. V = num_items + 1, D width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqrec.errors import InputError


class ItemEmbedding(nn.Module):
    """One vector an item; row 0 is padding, zero, and never trained.

    The same table embeds the history and scores candidates (tied).

    Args:
        num_items: Items 1..num_items.
        d_model: Width D.
        std: Standard deviation at initialisation.

    Raises:
        InputError: no items.
    """

    def __init__(self, num_items: int, d_model: int, *, std: float = 0.02) -> None:
        super().__init__()
        if num_items < 1:
            raise InputError(f"num_items={num_items} must be at least 1")
        self.num_items = num_items
        self.table = nn.Embedding(num_items + 1, d_model, padding_idx=0)
        nn.init.normal_(self.table.weight, std=std)
        with torch.no_grad():
            self.table.weight[0].zero_()

    @property
    def weight(self) -> Tensor:
        """(V, D) the table."""
        return self.table.weight

    def forward(self, item_ids: Tensor) -> Tensor:
        """Vectors (..., D) of item ids (...)."""
        out: Tensor = self.table(item_ids)
        return out
