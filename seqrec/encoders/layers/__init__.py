"""Layers that encoders are built from."""

from seqrec.aliases import old_names
from seqrec.encoders.layers.attention import CausalSelfAttention
from seqrec.encoders.layers.dropout import Dropout
from seqrec.encoders.layers.gaps import Times
from seqrec.encoders.layers.gated_deltanet import GatedDeltaNetMixer
from seqrec.encoders.layers.mamba import Mamba2Mixer, MambaMixer
from seqrec.encoders.layers.mixers import MIXERS, make_mixer
from seqrec.encoders.layers.pointwise import PointwiseAttention
from seqrec.encoders.layers.positions import LearnedPositions
from seqrec.encoders.layers.positionwise import FeedForward, TokenGate
from seqrec.encoders.layers.residual import ResidualStack, make_norm, newest_events, recompute_blocks, run_block
from seqrec.encoders.layers.streamed import Streamed, Tensors, as_streaming, is_one, joined, separated
from seqrec.ops.attention.rotary import rotary_turns, rotate

__all__ = [
    "MIXERS",
    "CausalSelfAttention",
    "Dropout",
    "FeedForward",
    "GatedDeltaNetMixer",
    "LearnedPositions",
    "Mamba2Mixer",
    "MambaMixer",
    "PointwiseAttention",
    "ResidualStack",
    "Streamed",
    "Tensors",
    "Times",
    "TokenGate",
    "as_streaming",
    "is_one",
    "joined",
    "make_mixer",
    "make_norm",
    "newest_events",
    "recompute_blocks",
    "rotary_turns",
    "rotate",
    "run_block",
    "separated",
]

__getattr__ = old_names(__name__)
