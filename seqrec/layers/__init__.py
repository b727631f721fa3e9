"""Parts that two encoders or more share."""

from seqrec.layers.attention import CausalSelfAttention
from seqrec.layers.feed_forward import FeedForward
from seqrec.layers.gate import TokenGate
from seqrec.layers.mamba import MambaMixer
from seqrec.layers.positions import LearnedPositions
from seqrec.layers.residual import ResidualStack, make_norm

__all__ = [
    "CausalSelfAttention",
    "FeedForward",
    "LearnedPositions",
    "MambaMixer",
    "ResidualStack",
    "TokenGate",
    "make_norm",
]
