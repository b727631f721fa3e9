"""Causal mixers by name, which map (B, L, D) to (B, L, D). Shapes: B batch, L events, D width."""

from __future__ import annotations

from seqrec.encoders.layers.gated_deltanet import GatedDeltaNetMixer
from seqrec.encoders.layers.mamba import Mamba2Mixer, MambaMixer
from seqrec.errors import InputError
from seqrec.registry import did_you_mean

Mixer = MambaMixer | Mamba2Mixer | GatedDeltaNetMixer
MIXERS: dict[str, type[Mixer]] = {
    "mamba": MambaMixer,
    "mamba2": Mamba2Mixer,
    "gated_deltanet": GatedDeltaNetMixer,
}


def make_mixer(name: str, d_model: int, *, d_state: int, d_conv: int, expand: int) -> Mixer:
    """Build a causal mixer, which maps (B, L, D) to (B, L, D).

    Args:
        name: A name in `MIXERS`.
        d_model: Width D.
        d_state: States per inner channel; the width of a key in `GatedDeltaNetMixer`.
        d_conv: Events that the convolution sees.
        expand: Inner width divided by D.

    Raises:
        InputError: if the name is unknown; the message lists the known ones.
    """
    if name not in MIXERS:
        raise InputError(f"unknown mixer {name!r}; known: {', '.join(MIXERS)}{did_you_mean(name, MIXERS)}")
    return MIXERS[name](d_model, d_state=d_state, d_conv=d_conv, expand=expand)
