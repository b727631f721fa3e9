"""Mixture of layers by a gating network."""

from __future__ import annotations

from torch import Tensor, nn


class TokenGate(nn.Module):
    """Softmax weights over E experts at each position, from that position's input alone, and so causal.

    Args:
        d_model: Width D of the input.
        num_experts: E.
    """

    def __init__(self, d_model: int, num_experts: int) -> None:
        super().__init__()
        self.projection = nn.Linear(d_model, num_experts)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, D) to weights (B, L, E) that sum to 1."""
        weights: Tensor = self.projection(x).softmax(-1)
        return weights
