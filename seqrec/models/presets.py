"""The encoders as whole models with plain arguments: `MambaRec(num_items=3416, d_model=64)`.

They take more than ten arguments, all plain: a preset's point is that nothing has to be built before it.
"""

from __future__ import annotations

from seqrec import encoders
from seqrec.catalogue.table import ItemTable
from seqrec.models.mamba_presets import MambaRec, MoEMaTrRec, RecMamba
from seqrec.models.sequential import SequentialRecommender
from seqrec.training.losses import Loss
from seqrec.training.optim import OptimizerFactory

__all__ = ["GRU4Rec", "MambaRec", "MoEMaTrRec", "RecMamba", "SASRec"]


class GRU4Rec(SequentialRecommender):
    """GRU4Rec: gated recurrent units (Hidasi et al. 2016); see `seqrec.encoders.GRU4Rec`.

    Args:
        num_items: Items of the catalogue.
        d_model: Width D of item vectors and states.
        num_layers: Stacked GRU layers.
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
        num_layers: int = 1,
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
            encoder=encoders.GRU4Rec(
                d_model,
                num_layers=num_layers,
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


class SASRec(SequentialRecommender):
    """SASRec: causal self-attention (Kang & McAuley 2018); see `seqrec.encoders.SASRec`.

    Args:
        num_items: Items of the catalogue.
        d_model: Width D of item vectors and states.
        num_layers: Blocks.
        num_heads: Attention heads, a divisor of `d_model`.
        d_feedforward: Hidden width of the feed-forward layer; None is `d_model`.
        dropout: Share of embedded values, and of what else the encoder says, set to 0 in training.
        layer_norm: False leaves every layer norm out.
        rotary: Whether attention turns queries and keys by their positions, which can be streamed; see
            `seqrec.encoders.SASRec`.
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
        d_feedforward: int | None = None,
        dropout: float = 0.2,
        layer_norm: bool = True,
        rotary: bool = False,
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
            encoder=encoders.SASRec(
                d_model,
                num_layers=num_layers,
                num_heads=num_heads,
                d_feedforward=d_feedforward,
                dropout=dropout,
                layer_norm=layer_norm,
                rotary=rotary,
            ),
            max_length=max_length,
            positions=positions,
            user_embedding=user_embedding,
            num_users=num_users,
            item_table=item_table,
            loss=loss,
            optimizer=optimizer,
        )
