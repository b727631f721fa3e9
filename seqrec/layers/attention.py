"""Causal self-attention without a mask tensor. Shapes: B batch, L events, D width, H heads."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.errors import InputError


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which each event attends to itself and to older ones.

    Histories are padded on the right, so the causal rule alone keeps padding away from every event, and
    torch's fused kernels run without an L x L mask. States at padded positions are finite and meaningless.

    Args:
        d_model: Width D.
        num_heads: H, a divisor of D.
        dropout: Share of attention weights set to 0 in training.

    Raises:
        InputError: `num_heads` does not divide `d_model`.
    """

    def __init__(self, d_model: int, *, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if num_heads < 1 or d_model % num_heads:
            divisors = [n for n in range(1, d_model + 1) if d_model % n == 0]
            raise InputError(
                f"num_heads={num_heads} must divide d_model={d_model}; try one of {divisors[:6]}"
            )
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_projection = nn.Linear(d_model, 3 * d_model)
        self.out_projection = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, D) to (B, L, D)."""
        batch, length, width = x.shape
        heads = self.in_projection(x).view(batch, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        out: Tensor = self.out_projection(mixed.transpose(1, 2).reshape(batch, length, width))
        return out
