"""Layers that map each position by itself: the feed-forward layer, and the gate of a mixture."""

from __future__ import annotations

from torch import Tensor, nn

from seqrec.encoders.layers.dropout import Dropout
from seqrec.encoders.layers.streamed import Tensors


class FeedForward(nn.Module):
    """`dropout(W2 dropout(relu(W1 x)))` at each position (SASRec, Kang & McAuley 2018, equation 6).

    Args:
        d_model: Width D of input and output.
        d_hidden: Hidden width; None is D, as in SASRec.
        dropout: Share of hidden units, and of outputs, set to 0 in training.
    """

    def __init__(self, d_model: int, *, d_hidden: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(d_model, d_hidden or d_model),
            nn.ReLU(),
            Dropout(dropout),
            nn.Linear(d_hidden or d_model, d_model),
            Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, D) to (B, L, D)."""
        out: Tensor = self.layers(x)
        return out

    def zero_state(self, batch_size: int, max_length: int, like: Tensor) -> Tensors:
        """Return no tensors; see `Streamed.zero_state`."""
        return {}

    def advance(self, x: Tensor, valid: Tensor | None, state: Tensors) -> tuple[Tensor, Tensors]:
        """Compute further events; see `Streamed.advance`."""
        return self(x), {}


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
