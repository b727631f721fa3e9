"""The state-space mixers by name, so that an encoder takes one without knowing which there are."""

from __future__ import annotations

from torch import nn

from seqrec.encoders.layers.mamba import MambaMixer
from seqrec.encoders.layers.mamba2 import Mamba2Mixer
from seqrec.errors import InputError
from seqrec.registry import did_you_mean

MIXERS: dict[str, type[MambaMixer] | type[Mamba2Mixer]] = {"mamba": MambaMixer, "mamba2": Mamba2Mixer}


def make_mixer(name: str, d_model: int, *, d_state: int, d_conv: int, expand: int) -> nn.Module:
    """A mixer that maps (B, L, D) to (B, L, D), causal.

    Args:
        name: A name in `MIXERS`.
        d_model: Width D.
        d_state: States of each inner channel.
        d_conv: Events that the mixer's convolution sees.
        expand: Inner width divided by D.

    Raises:
        InputError: an unknown name; the message lists the known ones.
    """
    if name not in MIXERS:
        raise InputError(f"unknown mixer {name!r}; known: {', '.join(MIXERS)}{did_you_mean(name, MIXERS)}")
    return MIXERS[name](d_model, d_state=d_state, d_conv=d_conv, expand=expand)
