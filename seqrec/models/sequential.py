"""A sequence encoder between a tied item table and an objective."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from seqrec.catalogue.scorer import Scorer
from seqrec.catalogue.sharding import clip_norm, keep_own_state, save_whole_state
from seqrec.catalogue.table import ItemEmbedding, ItemTable
from seqrec.data.datamodule import SequenceDataModule
from seqrec.encoders import SequenceEncoder
from seqrec.encoders.layers import LearnedPositions
from seqrec.errors import InputError
from seqrec.models.streamed import StreamedRecommender
from seqrec.runs.callbacks import GatherTables
from seqrec.runs.lightning_internals import is_accumulating, log_step
from seqrec.runs.measurement import PendingCopy
from seqrec.runs.trainer_checks import check_sharding
from seqrec.specs import from_spec, to_spec
from seqrec.training.losses import BCE, Loss
from seqrec.training.optim import Adam, OptimizerFactory, describe_optimizer
from seqrec.training.optim.clipping import clip_gradients
from seqrec.types import History, SequenceBatch


class SequentialRecommender(StreamedRecommender):
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
        item_table: How items are stored and compared with states; None is `ItemTable()`.
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
        item_table: ItemTable | None = None,
        loss: Loss | None = None,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__()
        self.encoder: SequenceEncoder = from_spec(encoder)
        self.loss: Loss = from_spec(loss) or BCE()
        self.optimizer: OptimizerFactory = from_spec(optimizer) or Adam()
        self.item_table: ItemTable = from_spec(item_table) or ItemTable()
        d_model = self.encoder.d_model
        self.items, self.output_items = self._make_tables(num_items)
        if max_length < 1:
            raise InputError(f"max_length={max_length} must be at least 1")
        self.positions = LearnedPositions(max_length, d_model) if positions else None
        if user_embedding and num_users < 1:
            raise InputError("user_embedding needs num_users: the number of users in the training log")
        self.users = self._make_table(num_users) if user_embedding else None
        self._losses: PendingCopy | None = None
        # DDP would send all rows of these.
        self._ddp_params_and_buffers_to_ignore = [
            f"{name}.table.weight" for name, table in self._tables() if table.sparse
        ]
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
                "item_table": to_spec(self.item_table),
                "loss": to_spec(self.loss),
                "optimizer": to_spec(self.optimizer),
            }
        )

    @property
    def title(self) -> str:
        """The encoder's name, which presets share."""
        return type(self.encoder).__name__

    @property
    def lr(self) -> float:
        """Step size of the optimiser's dense part; setting it, as Lightning's `Tuner` does, changes `optimizer`.

        Raises:
            AttributeError: the optimiser's settings have no `lr`.
        """
        return self.optimizer.lr  # type: ignore[attr-defined,no-any-return]  # those of one's own may have none

    @lr.setter
    def lr(self, value: float) -> None:
        self.optimizer.lr = value  # type: ignore[attr-defined]
        self.hparams["optimizer"] = to_spec(self.optimizer)

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
        states: Tensor = self.encoder(self._embedded(history, user_ids), history)
        return states

    def last_states(self, batch: SequenceBatch) -> Tensor:
        """See `Recommender.last_states`."""
        x = self._embedded(batch.history, batch.user_ids)
        return self.to_scoring_space(self.encoder.newest(x, batch.history))

    def _embedded(self, history: History, user_ids: Tensor | None) -> Tensor:
        """(B, L, D) what the encoder gets of each event."""
        return self.add_positions(self.items(history.item_ids) * self.encoder.d_model**0.5, history, user_ids)

    def to_scoring_space(self, states: Tensor) -> Tensor:
        """States (..., D) in the form whose dot products with the scorer's item vectors are scores.

        Scaled to length 1 / temperature where scores are cosines, with a further 1 where items have biases.
        """
        if self.item_table.temperature is not None:
            states = F.normalize(states, dim=-1) / self.item_table.temperature
        return F.pad(states, (0, 1), value=1.0) if self.item_table.bias else states

    def scorer(self) -> Scorer:
        """See `Recommender.scorer`."""
        items = self.items if self.output_items is None else self.output_items
        return Scorer(
            items.source,
            sparse=items.sparse,
            unit_columns=None if self.item_table.temperature is None else items.d_model,
        )

    def configure_callbacks(self) -> list[pl.Callback]:
        """Those of all recommenders, and evaluation with sharded tables."""
        # Asked again by each of the trainer's commands.
        present = any(isinstance(c, GatherTables) for c in getattr(self._trainer, "callbacks", []))
        added: list[pl.Callback] = [GatherTables()] if self.item_table.sharded and not present else []
        return [*super().configure_callbacks(), *added]

    def configure_model(self) -> None:
        """Make the rows of sharded tables: this rank's within a trainer, all of them without one.

        Trainers call it when the job's ranks know each other, and `load_from_checkpoint` does; call it on a model that
        is used otherwise.

        Raises:
            InputError: the trainer's strategy or precision does not go with sharded tables.
        """
        if not self.item_table.sharded:
            return
        ranks, rank, device = 1, 0, self.device
        if self._trainer is not None:
            check_sharding(self._trainer)
            ranks, rank = self._trainer.world_size, self._trainer.global_rank
            device = self._trainer.strategy.root_device
        for _, table in self._tables():
            table.make_rows(ranks, rank, device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What every recommender's checkpoint says, with the whole optimiser state of sharded tables."""
        super().on_save_checkpoint(checkpoint)
        save_whole_state(checkpoint, self.trainer.optimizers, self._sparse_embeddings())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the rank's part of it there, where training goes on."""
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            keep_own_state(checkpoint, self._sparse_embeddings())

    def on_fit_start(self) -> None:
        """Start from the same tables on all ranks; give the objective the training's item counts if it needs them."""
        for name, table in self._tables():
            rank_zero_info(f"{name}: {table.summary}")
            table.start_equal()
        data = getattr(self.trainer, "datamodule", None)
        if self.loss.needs_item_counts and isinstance(data, SequenceDataModule):
            self.loss.use_item_counts(torch.from_numpy(data.train_item_counts()))

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> Tensor:
        """Loss of one batch, times its weight, so that all targets of an epoch count the same."""
        states = self.to_scoring_space(self(batch.history, batch.user_ids))
        loss: Tensor = self.loss(states, batch, self.scorer())
        weighted = loss * batch.weight
        self._losses = PendingCopy(torch.stack([loss.detach(), weighted.detach()]))
        return weighted

    def on_after_backward(self) -> None:
        """Log the step's loss; average row-sparse gradients over ranks, as DDP does others, when an update is due."""
        # Not before, and from the CPU: a progress bar's number makes Python wait for all that the GPU has to do.
        if self._losses is not None:
            (loss, weighted), self._losses = self._losses.read(), None
            log_step(self, "train_loss_step", loss, on_step=True)
            log_step(self, "train_loss_epoch", weighted, on_step=False)
        if not is_accumulating(self.trainer):
            for table in self._sparse_tables():
                table.share_gradient()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning's clipping, which also counts row-sparse gradients, and those of all ranks' rows."""
        spread = [table.weight for table in self._sparse_tables() if table.spread is not None]
        if not gradient_clip_val or not self._sparse_tables():
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm == "value":
            clip_gradients(self.parameters(), max_value=gradient_clip_val)
        elif spread:
            clip_norm(self.parameters(), spread, gradient_clip_val)
        else:
            clip_gradients(self.parameters(), max_norm=gradient_clip_val)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimiser of all parameters, and its schedule, which moves with each update."""
        optimizer = self.optimizer.build(self)
        rank_zero_info(f"optimizer: {describe_optimizer(optimizer)}")
        if self.optimizer.schedule is None:
            return optimizer
        scheduler = self.optimizer.schedule.build(optimizer, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _make_tables(self, num_items: int) -> tuple[ItemEmbedding, ItemEmbedding | None]:
        """The table that embeds the history, and the one of candidates if that is another."""
        separate, bias = self.item_table.separate_output, self.item_table.bias
        reads_all = self.loss.reads_all_items
        if not separate:
            return self._make_table(num_items, reads_all=reads_all, bias=bias), None
        return self._make_table(num_items), self._make_table(num_items, reads_all=reads_all, bias=bias)

    def _make_table(self, num_items: int, *, reads_all: bool = False, bias: bool = False) -> ItemEmbedding:
        settings = self.item_table
        return ItemEmbedding(
            num_items,
            self.encoder.d_model,
            std=settings.std,
            sparse=settings.is_sparse(num_items + 1, reads_all=reads_all),
            dtype=getattr(torch, settings.dtype),
            bias=bias,
            sharded=settings.sharded,
        )

    def _tables(self) -> list[tuple[str, ItemEmbedding]]:
        return [(name, module) for name, module in self.named_children() if isinstance(module, ItemEmbedding)]

    def _sparse_tables(self) -> list[ItemEmbedding]:
        return [table for _, table in self._tables() if table.sparse]

    def _sparse_embeddings(self) -> dict[str, nn.Embedding]:
        return {f"{name}.table.weight": table.table for name, table in self._tables() if table.sparse}
