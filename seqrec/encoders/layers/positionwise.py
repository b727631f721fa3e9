"""Layers that map each position by itself: linear maps, the feed-forward layer, and the gate of a mixture."""

from __future__ import annotations

from torch import Tensor, nn

from seqrec.encoders.layers.dropout import Dropout
from seqrec.encoders.layers.streamed import Tensors
from seqrec.errors import check_at_least
from seqrec.ops.linear import linear


class Linear(nn.Linear):
    """`torch.nn.Linear`, computed by `seqrec.ops.linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., E)."""
        return linear(x, self.weight, self.bias)


class FeedForward(nn.Module):
    """`dropout(W2 dropout(relu(W1 x)))` at each position (SASRec, Kang & McAuley 2018, equation 6).

    Args:
        d_model: Width D of input and output.
        d_feedforward: Hidden width; None is D, as in SASRec.
        dropout: Share of hidden units, and of outputs, set to 0 in training.

    Raises:
        InputError: if a width is below 1.
    """

    def __init__(self, d_model: int, *, d_feedforward: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        width = d_model if d_feedforward is None else d_feedforward
        check_at_least(1, d_model=d_model, d_feedforward=width)
        self.layers = nn.Sequential(
            Linear(d_model, width),
            nn.ReLU(),
            Dropout(dropout),
            Linear(width, d_model),
            Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, D) to (B, L, D)."""
        out: Tensor = self.layers(x)
        return out

    def before_dropout(self, x: Tensor) -> Tensor:
        """Return `forward` without the dropout of outputs."""
        for layer in list(self.layers)[:-1]:
            x = layer(x)
        return x

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

    Raises:
        InputError: if a size is below 1.
    """

    def __init__(self, d_model: int, num_experts: int) -> None:
        super().__init__()
        check_at_least(1, d_model=d_model, num_experts=num_experts)
        self.projection = nn.Linear(d_model, num_experts)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, D) to weights (B, L, E) that sum to 1."""
        weights: Tensor = self.projection(x).softmax(-1)
        return weights
