"""The encoders as whole models with plain arguments: `MambaRec(num_items=3416, d_model=64)`.

Each preset has its encoder's arguments, and takes those of `SequentialRecommender` as `**shared`: `max_length`,
`positions`, `user_embedding`, `num_users`, `user_columns`, `log_user_columns`, `time`, `event_columns`, `log_columns`,
`item_table`, `item_columns`, `loss`, `masking`, `heads`, `carry_state` and `optimizer`. It refuses all other names.
"""

# Longer than 400 lines because each preset repeats its encoder's arguments, for the commands' options and their help.

from __future__ import annotations

from typing import Any, Literal

from seqrec import encoders
from seqrec.models.sequential import SequentialRecommender

__all__ = ["BERT4Rec", "GRU4Rec", "HRNN", "HSTU", "MambaRec", "MoEMaTrRec", "RecMamba", "SASRec", "SSD4Rec", "Samba"]


def _encoder(make: type[encoders.SequenceEncoder], given: dict[str, Any]) -> encoders.SequenceEncoder:
    """Return the encoder of a preset, from the names in the preset's constructor."""
    return make(**{name: given[name] for name in given.keys() - {"self", "num_items", "shared", "__class__"}})


class GRU4Rec(SequentialRecommender):
    """GRU4Rec: gated recurrent units (Hidasi et al. 2016); see `seqrec.encoders.GRU4Rec`.

    Args:
        num_items: Items of the catalogue.
        d_model: Width D of item vectors and states.
        num_layers: Stacked GRU layers.
        dropout: Share of the embedded values, and of the encoder's activations, that training sets to 0.
        layer_norm: False leaves out every layer norm.
        shared: Further arguments of `SequentialRecommender`.

    Example:
        >>> from seqrec import GRU4Rec
        >>> GRU4Rec(num_items=100, d_model=16, max_length=50).title
        'GRU4Rec'
    """

    def __init__(
        self,
        num_items: int,
        *,
        d_model: int = 64,
        num_layers: int = 1,
        dropout: float = 0.2,
        layer_norm: bool = True,
        **shared: Any,
    ) -> None:
        encoder = _encoder(encoders.GRU4Rec, locals())
        super().__init__(num_items, encoder=encoder, **shared)


class SASRec(SequentialRecommender):
    """SASRec: causal self-attention (Kang & McAuley 2018); see `seqrec.encoders.SASRec`.

    Args:
        num_items: Items of the catalogue.
        d_model: Width D of item vectors and states.
        num_layers: Blocks.
        num_heads: Attention heads, a divisor of `d_model`.
        d_feedforward: Hidden width of the feed-forward layer; None is `d_model`.
        dropout: Share of the embedded values, and of the encoder's activations, that training sets to 0.
        layer_norm: False leaves out every layer norm.
        rotary: Whether attention rotates queries and keys by position, which can be streamed; see
            `seqrec.encoders.SASRec`.
        norm: Where branches are normed: "pre" before each, "post" after each, or "queries" as in the authors' code.
        feed_forward: Kind of the feed-forward layer, "relu", "gelu" or "swiglu".
        gated: Whether each branch is multiplied by a gate, as in LiGR.
        shared: Further arguments of `SequentialRecommender`.

    Example:
        >>> from seqrec import SASRec
        >>> SASRec(num_items=100, d_model=16, max_length=50).title
        'SASRec'
    """

    def __init__(
        self,
        num_items: int,
        *,
        d_model: int = 64,
        num_layers: int = 2,
        num_heads: int = 1,
        d_feedforward: int | None = None,
        dropout: float = 0.2,
        layer_norm: bool = True,
        rotary: bool = False,
        norm: Literal["pre", "post", "queries"] = "pre",
        feed_forward: Literal["relu", "gelu", "swiglu"] = "relu",
        gated: bool = False,
        **shared: Any,
    ) -> None:
        encoder = _encoder(encoders.SASRec, locals())
        super().__init__(num_items, encoder=encoder, **shared)


class HSTU(SequentialRecommender):
    """HSTU: pointwise attention with a gate (Zhai et al. 2024); see `seqrec.encoders.HSTU`.

    Args:
        num_items: Items of the catalogue.
        d_model: Width D of item vectors and states.
        num_layers: Blocks.
        num_heads: Attention heads, a divisor of `d_model`.
        num_distances: How many distances between events have a bias; all greater ones share the last.
        dropout: Share of the embedded values, and of the encoder's activations, that training sets to 0.
        layer_norm: False leaves out every layer norm.
        shared: Further arguments of `SequentialRecommender`.

    Example:
        >>> from seqrec import HSTU
        >>> HSTU(num_items=100, d_model=16, max_length=50).title
        'HSTU'
    """

    def __init__(
        self,
        num_items: int,
        *,
        d_model: int = 64,
        num_layers: int = 2,
        num_heads: int = 1,
        num_distances: int = 256,
        dropout: float = 0.2,
        layer_norm: bool = True,
        **shared: Any,
    ) -> None:
        encoder = _encoder(encoders.HSTU, locals())
        super().__init__(num_items, encoder=encoder, **shared)


class RecMamba(SequentialRecommender):
    """RecMamba: Mamba in place of attention (Yang et al. 2024); see `seqrec.encoders.RecMamba`.

    Args:
        num_items: Items of the catalogue.
        d_model: Width D of item vectors and states.
        num_layers: Blocks.
        mixer: "mamba", "mamba2" or "gated_deltanet".
        d_state: States per inner channel of Mamba.
        d_conv: Events that Mamba's convolution sees.
        expand: Inner width of Mamba divided by `d_model`.
        d_feedforward: Hidden width of the feed-forward layer; None is `d_model`.
        dropout: Share of the embedded values, and of the encoder's activations, that training sets to 0.
        layer_norm: False leaves out every layer norm.
        shared: Further arguments of `SequentialRecommender`.

    Example:
        >>> from seqrec import RecMamba
        >>> RecMamba(num_items=100, d_model=16, max_length=50).title
        'RecMamba'
    """

    def __init__(
        self,
        num_items: int,
        *,
        d_model: int = 64,
        num_layers: int = 2,
        mixer: Literal["mamba", "mamba2", "gated_deltanet"] = "mamba",
        d_state: int = 32,
        d_conv: int = 4,
        expand: int = 2,
        d_feedforward: int | None = None,
        dropout: float = 0.2,
        layer_norm: bool = True,
        **shared: Any,
    ) -> None:
        encoder = _encoder(encoders.RecMamba, locals())
        super().__init__(num_items, encoder=encoder, **shared)


class MambaRec(SequentialRecommender):
    """MambaRec: Mamba in place of the whole block; see `seqrec.encoders.MambaRec`.

    Args:
        num_items: Items of the catalogue.
        d_model: Width D of item vectors and states.
        num_layers: Blocks.
        mixer: "mamba", "mamba2" or "gated_deltanet".
        d_state: States per inner channel of Mamba.
        d_conv: Events that Mamba's convolution sees.
        expand: Inner width of Mamba divided by `d_model`.
        dropout: Share of the embedded values, and of the encoder's activations, that training sets to 0.
        layer_norm: False leaves out every layer norm.
        shared: Further arguments of `SequentialRecommender`.

    Example:
        >>> from seqrec import MambaRec
        >>> MambaRec(num_items=100, d_model=16, max_length=50).title
        'MambaRec'
    """

    def __init__(
        self,
        num_items: int,
        *,
        d_model: int = 64,
        num_layers: int = 2,
        mixer: Literal["mamba", "mamba2", "gated_deltanet"] = "mamba",
        d_state: int = 32,
        d_conv: int = 4,
        expand: int = 2,
        dropout: float = 0.2,
        layer_norm: bool = True,
        **shared: Any,
    ) -> None:
        encoder = _encoder(encoders.MambaRec, locals())
        super().__init__(num_items, encoder=encoder, **shared)


class MoEMaTrRec(SequentialRecommender):
    """MoEMaTrRec: attention and Mamba mixed by a gate; see `seqrec.encoders.MoEMaTrRec`.

    Args:
        num_items: Items of the catalogue.
        d_model: Width D of item vectors and states.
        num_layers: Blocks.
        num_heads: Attention heads, a divisor of `d_model`.
        mixer: "mamba", "mamba2" or "gated_deltanet".
        d_state: States per inner channel of Mamba.
        d_conv: Events that Mamba's convolution sees.
        expand: Inner width of Mamba divided by `d_model`.
        d_feedforward: Hidden width of the feed-forward layer; None is `d_model`.
        dropout: Share of the embedded values, and of the encoder's activations, that training sets to 0.
        layer_norm: False leaves out every layer norm.
        rotary: Whether attention rotates queries and keys by position, which can be streamed; see
            `seqrec.encoders.MoEMaTrRec`.
        causal: False as published: the mixture sees newer events; see `seqrec.encoders.MoEMaTrRec`.
        shared: Further arguments of `SequentialRecommender`.

    Example:
        >>> from seqrec import MoEMaTrRec
        >>> MoEMaTrRec(num_items=100, d_model=16, max_length=50).title
        'MoEMaTrRec'
    """

    def __init__(
        self,
        num_items: int,
        *,
        d_model: int = 64,
        num_layers: int = 2,
        num_heads: int = 1,
        mixer: Literal["mamba", "mamba2", "gated_deltanet"] = "mamba",
        d_state: int = 32,
        d_conv: int = 4,
        expand: int = 2,
        d_feedforward: int | None = None,
        dropout: float = 0.2,
        layer_norm: bool = True,
        rotary: bool = False,
        causal: bool = True,
        **shared: Any,
    ) -> None:
        encoder = _encoder(encoders.MoEMaTrRec, locals())
        super().__init__(num_items, encoder=encoder, **shared)


class Samba(SequentialRecommender):
    """Samba: Mamba and sliding window attention in turns (Ren et al. 2024); see `seqrec.encoders.Samba`.

    Args:
        num_items: Items of the catalogue.
        d_model: Width D of item vectors and states.
        num_layers: Blocks; with 1 there is no attention.
        window: Newest events that attention sees, the present one included, at most `max_length`; None is 64.
        num_heads: Attention heads, a divisor of `d_model` that leaves them an even width.
        mixer: "mamba", "mamba2" or "gated_deltanet".
        d_state: States per inner channel of Mamba.
        d_conv: Events that Mamba's convolution sees.
        expand: Inner width of Mamba divided by `d_model`.
        d_feedforward: Hidden width of the feed-forward layer; None is `d_model`.
        dropout: Share of the embedded values, and of the encoder's activations, that training sets to 0.
        layer_norm: False leaves out every layer norm.
        shared: Further arguments of `SequentialRecommender`.

    Example:
        >>> from seqrec import Samba
        >>> Samba(num_items=100, d_model=16, max_length=100).title
        'Samba'
    """

    def __init__(
        self,
        num_items: int,
        *,
        d_model: int = 64,
        num_layers: int = 2,
        window: int | None = None,
        num_heads: int = 1,
        mixer: Literal["mamba", "mamba2", "gated_deltanet"] = "mamba",
        d_state: int = 32,
        d_conv: int = 4,
        expand: int = 2,
        d_feedforward: int | None = None,
        dropout: float = 0.2,
        layer_norm: bool = True,
        **shared: Any,
    ) -> None:
        encoder = _encoder(encoders.Samba, locals())
        super().__init__(num_items, encoder=encoder, **shared)


class HRNN(SequentialRecommender):
    """HRNN: a recurrence over sessions, and one over their events (Quadrana et al. 2017); see `seqrec.encoders.HRNN`.

    Args:
        num_items: Items of the catalogue.
        d_model: Width D of item vectors and states.
        num_layers: Blocks over events, and as many over sessions.
        session_events: Events of a session; None is 32 without `session_gap`.
        session_gap: Longest time between two events of a session, in the unit of the log's timestamps; needs `time`.
            None cuts sessions by `session_events`.
        mixer: "mamba", "mamba2" or "gated_deltanet".
        d_state: States per inner channel of Mamba.
        d_conv: Events that Mamba's convolution sees.
        expand: Inner width of Mamba divided by `d_model`.
        dropout: Share of the embedded values, and of summaries of sessions, that training sets to 0.
        layer_norm: False leaves out every layer norm.
        shared: Further arguments of `SequentialRecommender`.

    Example:
        >>> from seqrec.models import HRNN
        >>> HRNN(num_items=100, d_model=16, max_length=50).title
        'HRNN'
    """

    def __init__(
        self,
        num_items: int,
        *,
        d_model: int = 64,
        num_layers: int = 2,
        session_events: int | None = None,
        session_gap: int | None = None,
        mixer: Literal["mamba", "mamba2", "gated_deltanet"] = "mamba",
        d_state: int = 32,
        d_conv: int = 4,
        expand: int = 2,
        dropout: float = 0.2,
        layer_norm: bool = True,
        **shared: Any,
    ) -> None:
        encoder = _encoder(encoders.HRNN, locals())
        super().__init__(num_items, encoder=encoder, **shared)


class BERT4Rec(SequentialRecommender):
    """BERT4Rec: attention in both directions, for masked items (Sun et al. 2019); see `seqrec.encoders.BERT4Rec`.

    Args:
        num_items: Items of the catalogue.
        d_model: Width D of item vectors and states.
        num_layers: Blocks.
        num_heads: Attention heads, a divisor of `d_model`.
        d_feedforward: Hidden width of the feed-forward layer; None is 4 times `d_model`.
        dropout: Share of the embedded values, and of the encoder's activations, that training sets to 0.
        layer_norm: False leaves out every layer norm.
        rotary: Whether attention rotates queries and keys by position.
        shared: Further arguments of `SequentialRecommender`.

    Example:
        >>> from seqrec import BERT4Rec
        >>> BERT4Rec(num_items=100, d_model=16, max_length=50).title
        'BERT4Rec'
    """

    def __init__(
        self,
        num_items: int,
        *,
        d_model: int = 64,
        num_layers: int = 2,
        num_heads: int = 1,
        d_feedforward: int | None = None,
        dropout: float = 0.2,
        layer_norm: bool = True,
        rotary: bool = False,
        **shared: Any,
    ) -> None:
        encoder = _encoder(encoders.BERT4Rec, locals())
        super().__init__(num_items, encoder=encoder, **shared)


class SSD4Rec(SequentialRecommender):
    """SSD4Rec: Mamba-2 in both directions, for masked items (Qu et al. 2024); see `seqrec.encoders.SSD4Rec`.

    Args:
        num_items: Items of the catalogue.
        d_model: Width D of item vectors and states.
        num_layers: Blocks.
        mixer: "mamba", "mamba2" or "gated_deltanet".
        beta: Weight of the reversed direction, above 0.
        share_weights: Whether both directions have the same weights.
        d_state: States per inner channel of Mamba.
        d_conv: Events that Mamba's convolution sees.
        expand: Inner width of Mamba divided by `d_model`.
        d_feedforward: Hidden width of the feed-forward layer; None is 4 times `d_model`.
        dropout: Share of the embedded values, and of the encoder's activations, that training sets to 0.
        layer_norm: False leaves out every layer norm.
        shared: Further arguments of `SequentialRecommender`.

    Example:
        >>> from seqrec import SSD4Rec
        >>> SSD4Rec(num_items=100, d_model=16, max_length=50).title
        'SSD4Rec'
    """

    def __init__(
        self,
        num_items: int,
        *,
        d_model: int = 64,
        num_layers: int = 2,
        mixer: Literal["mamba", "mamba2", "gated_deltanet"] = "mamba2",
        beta: float = 0.1,
        share_weights: bool = True,
        d_state: int = 32,
        d_conv: int = 4,
        expand: int = 2,
        d_feedforward: int | None = None,
        dropout: float = 0.2,
        layer_norm: bool = True,
        **shared: Any,
    ) -> None:
        encoder = _encoder(encoders.SSD4Rec, locals())
        super().__init__(num_items, encoder=encoder, **shared)
