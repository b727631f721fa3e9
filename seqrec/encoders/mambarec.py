"""MambaRec."""

from __future__ import annotations

from typing import Literal

from seqrec.encoders.layers import MIXERS, ResidualStack, make_mixer
from seqrec.encoders.stacked_encoder import StackedEncoder


class MambaRec(StackedEncoder):
    """One Mamba block in place of each whole Transformer block: no attention and no feed-forward layer.

    The mixer is Mamba's (Gu & Dao 2023), Mamba-2's (Dao & Gu 2024) or that of Gated DeltaNet (Yang et al. 2024); see
    `MambaMixer`, `Mamba2Mixer` and `GatedDeltaNetMixer` of `seqrec.encoders.layers`.

    Args:
        d_model: Width D.
        num_layers: Blocks.
        mixer: "mamba", "mamba2" or "gated_deltanet".
        d_state: States per inner channel; with "gated_deltanet" the width of a head's keys.
        d_conv: Events that the convolution sees.
        expand: Inner width divided by D.
        dropout: Share of inputs set to 0 in training.
        layer_norm: False omits every norm.
    """

    def __init__(
        self,
        d_model: int = 64,
        *,
        num_layers: int = 2,
        mixer: Literal["mamba", "mamba2", "gated_deltanet"] = "mamba",
        d_state: int = 32,
        d_conv: int = 4,
        expand: int = 2,
        dropout: float = 0.2,
        layer_norm: bool = True,
    ) -> None:
        super().__init__(d_model, num_layers=num_layers, dropout=dropout, layer_norm=layer_norm)
        self.mixer = mixer
        self.d_state = d_state
        self.d_conv = d_conv
        self.expand = expand
        blocks = [
            [make_mixer(mixer, d_model, d_state=d_state, d_conv=d_conv, expand=expand)] for _ in range(num_layers)
        ]
        self.takes_slab_rows = MIXERS[mixer].takes_slab_rows
        self.stack = ResidualStack(blocks, d_model, dropout=dropout, layer_norm=layer_norm)
