"""A sequence encoder between a tied item table and an objective."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from seqrec.data.datamodule import SequenceDataModule
from seqrec.embeddings import ItemEmbedding
from seqrec.encoders import SequenceEncoder
from seqrec.errors import InputError
from seqrec.layers import LearnedPositions
from seqrec.losses import BCE, Loss
from seqrec.models.base import Recommender
from seqrec.optim import Adam, OptimizerFactory
from seqrec.scoring import Scorer
from seqrec.specs import from_spec, to_spec
from seqrec.types import History, SequenceBatch


class SequentialRecommender(Recommender):
    """P(next item | history, user): embeds events, encodes them, scores items by dot products.

    `x = sqrt(D) * item + position + user`, states = encoder(x), score = state . item, as in SASRec
    (Kang & McAuley 2018). The presets `GRU4Rec`, `SASRec`, .. are this class with one encoder and plain arguments;
    `SequentialRecommender.load_from_checkpoint` reads their checkpoints too.

    Args:
        num_items: Items of the catalogue; ids are 1..num_items.
        encoder: The sequence encoder; a `class_path` / `init_args` dict builds one.
        max_length: Longest history, in events, that positions are learned for.
        positions: Whether events get learned positions, counted back from the newest.
        user_embedding: Whether a vector of the user is added to each event. Unknown users get none.
        num_users: Users of the log; needed with `user_embedding`.
        loss: Objective; None is `BCE` with one uniform negative.
        optimizer: None is `Adam` with step size 1e-3.

    Raises:
        InputError: `user_embedding` without `num_users`, or values out of range.
    """

    def __init__(
        self,
        num_items: int,
        *,
        encoder: SequenceEncoder,
        max_length: int = 200,
        positions: bool = True,
        user_embedding: bool = False,
        num_users: int = 0,
        loss: Loss | None = None,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__()
        self.encoder: SequenceEncoder = from_spec(encoder)
        self.loss: Loss = from_spec(loss) or BCE()
        self.optimizer: OptimizerFactory = from_spec(optimizer) or Adam()
        d_model = self.encoder.d_model
        self.items = ItemEmbedding(num_items, d_model)
        if max_length < 1:
            raise InputError(f"max_length={max_length} must be at least 1")
        self.positions = LearnedPositions(max_length, d_model) if positions else None
        if user_embedding and num_users < 1:
            raise InputError("user_embedding needs num_users: the number of users in the training log")
        self.users = ItemEmbedding(num_users, d_model) if user_embedding else None
        encoder_spec = to_spec(self.encoder)
        # Plain values only, so that checkpoints load with weights_only=True. The encoder's own arguments stand
        # there twice: in its spec for this class, and flat for the presets. Lightning passes on those that fit.
        self.save_hyperparameters(
            {
                **encoder_spec["init_args"],
                "num_items": num_items,
                "encoder": encoder_spec,
                "max_length": max_length,
                "positions": positions,
                "user_embedding": user_embedding,
                "num_users": num_users,
                "loss": to_spec(self.loss),
                "optimizer": to_spec(self.optimizer),
            }
        )

    @property
    def title(self) -> str:
        """The encoder's name, which presets share."""
        return type(self.encoder).__name__

    def forward(self, history: History, user_ids: Tensor | None = None) -> Tensor:
        """States of all events.

        Args:
            history: (B, L) events.
            user_ids: (B,) int64, 0 for unknown; None is unknown for all.

        Returns:
            (B, L, D); states at padding mean nothing.

        Raises:
            InputError: with positions, a history longer than `max_length`.
        """
        x: Tensor = self.items(history.item_ids) * self.encoder.d_model**0.5
        if self.positions is not None:
            x = x + self.positions(history)
        if self.users is not None and user_ids is not None:
            x = x + self.users(user_ids).unsqueeze(1)
        states: Tensor = self.encoder(x, history)
        return states

    def last_states(self, batch: SequenceBatch) -> Tensor:
        """See `Recommender.last_states`."""
        states = self(batch.history, batch.user_ids)
        last: Tensor = states[torch.arange(len(batch), device=states.device), batch.history.lengths - 1]
        return last

    def scorer(self) -> Scorer:
        """See `Recommender.scorer`."""
        return Scorer(self.items.weight)

    def on_fit_start(self) -> None:
        """Give the objective the training's item counts, where it needs them and the data module has them."""
        data = getattr(self.trainer, "datamodule", None)
        if self.loss.needs_item_counts and isinstance(data, SequenceDataModule):
            self.loss.use_item_counts(torch.from_numpy(data.train_item_counts()))

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> Tensor:
        """Loss of one batch, times its weight, so that all targets of an epoch count the same."""
        loss: Tensor = self.loss(self(batch.history, batch.user_ids), batch, self.scorer())
        weighted = loss * batch.weight
        self.log("train_loss_step", loss, prog_bar=True, batch_size=1)
        self.log("train_loss_epoch", weighted, prog_bar=True, on_step=False, on_epoch=True, batch_size=1)
        return weighted

    def configure_optimizers(self) -> Optimizer:
        """Optimiser of all parameters."""
        return self.optimizer.build(self)
