"""Parts that two encoders or more share."""

from seqrec.aliases import old_names
from seqrec.encoders.layers.attention import CausalSelfAttention
from seqrec.encoders.layers.feed_forward import FeedForward
from seqrec.encoders.layers.gate import TokenGate
from seqrec.encoders.layers.mamba import MambaMixer
from seqrec.encoders.layers.mamba2 import Mamba2Mixer
from seqrec.encoders.layers.mixers import MIXERS, make_mixer
from seqrec.encoders.layers.positions import LearnedPositions
from seqrec.encoders.layers.recomputed import recompute_blocks, run_block
from seqrec.encoders.layers.residual import ResidualStack, make_norm, newest_events
from seqrec.encoders.layers.rotary import rotary_turns, rotate
from seqrec.encoders.layers.streamed import Streamed, Tensors, as_streaming, joined, separated

__all__ = [
    "MIXERS",
    "CausalSelfAttention",
    "FeedForward",
    "LearnedPositions",
    "Mamba2Mixer",
    "MambaMixer",
    "ResidualStack",
    "Streamed",
    "Tensors",
    "TokenGate",
    "joined",
    "make_mixer",
    "make_norm",
    "newest_events",
    "recompute_blocks",
    "rotary_turns",
    "rotate",
    "run_block",
    "separated",
    "as_streaming",
]

__getattr__ = old_names(__name__)
