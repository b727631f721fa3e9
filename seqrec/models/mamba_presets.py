"""The presets around Mamba; see `seqrec.models.presets`."""

from __future__ import annotations

from typing import Literal

from seqrec import encoders
from seqrec.catalogue.table import ItemTable
from seqrec.models.sequential import SequentialRecommender
from seqrec.training.losses import Loss
from seqrec.training.optim import OptimizerFactory


class RecMamba(SequentialRecommender):
    """RecMamba: Mamba in place of attention (Yang et al. 2024); see `seqrec.encoders.RecMamba`.

    Args:
        num_items: Items of the catalogue.
        d_model: Width D of item vectors and states.
        num_layers: Blocks.
        mixer: "mamba" or "mamba2".
        d_state: States of each inner channel of Mamba.
        d_conv: Events that Mamba's convolution sees.
        expand: Inner width of Mamba divided by `d_model`.
        d_feedforward: Hidden width of the feed-forward layer; None is `d_model`.
        dropout: Share of embedded values, and of what else the encoder says, set to 0 in training.
        layer_norm: False leaves every layer norm out.
        max_length: Longest history in events that positions are learned for.
        positions: Whether events get learned positions, counted back from the newest.
        user_embedding: Whether a vector of the user is added to each event.
        num_users: Users of the log; needed with `user_embedding`.
        item_table: How items are stored and compared with states; None is `ItemTable()`.
        loss: Objective; None is `BCE` with one uniform negative.
        optimizer: None is `Adam` with step size 1e-3.
    """

    def __init__(
        self,
        num_items: int,
        *,
        d_model: int = 64,
        num_layers: int = 2,
        mixer: Literal["mamba", "mamba2"] = "mamba",
        d_state: int = 32,
        d_conv: int = 4,
        expand: int = 2,
        d_feedforward: int | None = None,
        dropout: float = 0.2,
        layer_norm: bool = True,
        max_length: int = 200,
        positions: bool = True,
        user_embedding: bool = False,
        num_users: int = 0,
        item_table: ItemTable | None = None,
        loss: Loss | None = None,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__(
            num_items,
            encoder=encoders.RecMamba(
                d_model,
                num_layers=num_layers,
                mixer=mixer,
                d_state=d_state,
                d_conv=d_conv,
                expand=expand,
                d_feedforward=d_feedforward,
                dropout=dropout,
                layer_norm=layer_norm,
            ),
            max_length=max_length,
            positions=positions,
            user_embedding=user_embedding,
            num_users=num_users,
            item_table=item_table,
            loss=loss,
            optimizer=optimizer,
        )


class MambaRec(SequentialRecommender):
    """MambaRec: Mamba in place of the whole block; see `seqrec.encoders.MambaRec`.

    Args:
        num_items: Items of the catalogue.
        d_model: Width D of item vectors and states.
        num_layers: Blocks.
        mixer: "mamba" or "mamba2".
        d_state: States of each inner channel of Mamba.
        d_conv: Events that Mamba's convolution sees.
        expand: Inner width of Mamba divided by `d_model`.
        dropout: Share of embedded values, and of what else the encoder says, set to 0 in training.
        layer_norm: False leaves every layer norm out.
        max_length: Longest history in events that positions are learned for.
        positions: Whether events get learned positions, counted back from the newest.
        user_embedding: Whether a vector of the user is added to each event.
        num_users: Users of the log; needed with `user_embedding`.
        item_table: How items are stored and compared with states; None is `ItemTable()`.
        loss: Objective; None is `BCE` with one uniform negative.
        optimizer: None is `Adam` with step size 1e-3.
    """

    def __init__(
        self,
        num_items: int,
        *,
        d_model: int = 64,
        num_layers: int = 2,
        mixer: Literal["mamba", "mamba2"] = "mamba",
        d_state: int = 32,
        d_conv: int = 4,
        expand: int = 2,
        dropout: float = 0.2,
        layer_norm: bool = True,
        max_length: int = 200,
        positions: bool = True,
        user_embedding: bool = False,
        num_users: int = 0,
        item_table: ItemTable | None = None,
        loss: Loss | None = None,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__(
            num_items,
            encoder=encoders.MambaRec(
                d_model,
                num_layers=num_layers,
                mixer=mixer,
                d_state=d_state,
                d_conv=d_conv,
                expand=expand,
                dropout=dropout,
                layer_norm=layer_norm,
            ),
            max_length=max_length,
            positions=positions,
            user_embedding=user_embedding,
            num_users=num_users,
            item_table=item_table,
            loss=loss,
            optimizer=optimizer,
        )


class MoEMaTrRec(SequentialRecommender):
    """MoEMaTrRec: attention and Mamba mixed by a gate; see `seqrec.encoders.MoEMaTrRec`.

    Args:
        num_items: Items of the catalogue.
        d_model: Width D of item vectors and states.
        num_layers: Blocks.
        num_heads: Attention heads, a divisor of `d_model`.
        mixer: "mamba" or "mamba2".
        d_state: States of each inner channel of Mamba.
        d_conv: Events that Mamba's convolution sees.
        expand: Inner width of Mamba divided by `d_model`.
        d_feedforward: Hidden width of the feed-forward layer; None is `d_model`.
        dropout: Share of embedded values, and of what else the encoder says, set to 0 in training.
        layer_norm: False leaves every layer norm out.
        rotary: Whether attention turns queries and keys by their positions, which can be streamed; see
            `seqrec.encoders.MoEMaTrRec`.
        causal: False as published: the mixture sees newer events; see `seqrec.encoders.MoEMaTrRec`.
        max_length: Longest history in events that positions are learned for.
        positions: Whether events get learned positions, counted back from the newest.
        user_embedding: Whether a vector of the user is added to each event.
        num_users: Users of the log; needed with `user_embedding`.
        item_table: How items are stored and compared with states; None is `ItemTable()`.
        loss: Objective; None is `BCE` with one uniform negative.
        optimizer: None is `Adam` with step size 1e-3.
    """

    def __init__(
        self,
        num_items: int,
        *,
        d_model: int = 64,
        num_layers: int = 2,
        num_heads: int = 1,
        mixer: Literal["mamba", "mamba2"] = "mamba",
        d_state: int = 32,
        d_conv: int = 4,
        expand: int = 2,
        d_feedforward: int | None = None,
        dropout: float = 0.2,
        layer_norm: bool = True,
        rotary: bool = False,
        causal: bool = True,
        max_length: int = 200,
        positions: bool = True,
        user_embedding: bool = False,
        num_users: int = 0,
        item_table: ItemTable | None = None,
        loss: Loss | None = None,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__(
            num_items,
            encoder=encoders.MoEMaTrRec(
                d_model,
                num_layers=num_layers,
                num_heads=num_heads,
                mixer=mixer,
                d_state=d_state,
                d_conv=d_conv,
                expand=expand,
                d_feedforward=d_feedforward,
                dropout=dropout,
                layer_norm=layer_norm,
                rotary=rotary,
                causal=causal,
            ),
            max_length=max_length,
            positions=positions,
            user_embedding=user_embedding,
            num_users=num_users,
            item_table=item_table,
            loss=loss,
            optimizer=optimizer,
        )
