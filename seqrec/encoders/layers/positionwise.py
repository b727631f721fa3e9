"""Layers that map each position by itself: linear maps, the feed-forward layer, and the gate of a mixture."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.encoders.layers.dropout import Dropout
from seqrec.encoders.layers.streamed import Tensors
from seqrec.errors import InputError, check_at_least
from seqrec.ops.linear import linear


class Linear(nn.Linear):
    """`torch.nn.Linear`, computed by `seqrec.ops.linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., E)."""
        return linear(x, self.weight, self.bias)


class SwiGLU(nn.Module):
    """`silu(a) * b` of two halves a and b (GLU Variants Improve Transformer, Shazeer 2020, equation 5)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., 2 F) to (..., F)."""
        gate, hidden = x.chunk(2, dim=-1)
        return F.silu(gate) * hidden


# Kind of a feed-forward layer -> what follows its first product.
FEED_FORWARDS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "swiglu": SwiGLU}


class FeedForward(nn.Module):
    """`dropout(W2 dropout(relu(W1 x + b1)) + b2)` at each position (SASRec, Kang & McAuley 2018, equation 6).

    With "gelu", GELU takes the place of ReLU, as in BERT4Rec (Sun et al. 2019). With "swiglu" the layer is
    `dropout(W2 dropout(silu(W x) * V x))`, without b (GLU Variants Improve Transformer, Shazeer 2020, equation 6). It
    has 1.5 times as many weights for the same hidden width.

    Args:
        d_model: Width D of input and output.
        d_feedforward: Hidden width; None is D, as in SASRec.
        dropout: Share of hidden units, and of outputs, set to 0 in training.
        feed_forward: "relu", "gelu" or "swiglu".

    Raises:
        InputError: if a width is below 1, or `feed_forward` is unknown.
    """

    def __init__(
        self, d_model: int, *, d_feedforward: int | None = None, dropout: float = 0.0, feed_forward: str = "relu"
    ) -> None:
        super().__init__()
        width = d_model if d_feedforward is None else d_feedforward
        check_at_least(1, d_model=d_model, d_feedforward=width)
        if feed_forward not in FEED_FORWARDS:
            raise InputError(f"feed_forward={feed_forward!r} is unknown; known: {', '.join(FEED_FORWARDS)}")
        gated = feed_forward == "swiglu"
        self.layers = nn.Sequential(
            Linear(d_model, 2 * width if gated else width, bias=not gated),
            FEED_FORWARDS[feed_forward](),
            Dropout(dropout),
            Linear(width, d_model, bias=not gated),
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
