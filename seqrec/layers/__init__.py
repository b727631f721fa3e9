"""Parts that two encoders or more share."""

from seqrec.layers.attention import CausalSelfAttention
from seqrec.layers.feed_forward import FeedForward
from seqrec.layers.gate import TokenGate
from seqrec.layers.mamba import MambaMixer
from seqrec.layers.mamba2 import Mamba2Mixer
from seqrec.layers.mixers import MIXERS, make_mixer
from seqrec.layers.positions import LearnedPositions
from seqrec.layers.recomputed import recompute_blocks, run_block
from seqrec.layers.residual import ResidualStack, make_norm, newest_events
from seqrec.layers.rotary import rotary_turns, rotate
from seqrec.layers.streamed import Streamed, Tensors, joined, separated, streamed

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
    "streamed",
]
