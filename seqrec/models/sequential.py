"""A recommender built from a sequence encoder, an item table and a loss. B users, L events, D width."""

# Longer than 400 lines because Lightning needs its hooks on one class.

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, TypeVar

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from seqrec.catalogue.content import check_same_content, sizes_of_content
from seqrec.catalogue.scorer import Scorer
from seqrec.catalogue.sharding import clip_norm, keep_own_state, save_whole_state
from seqrec.catalogue.table import ItemEmbedding, ItemTable
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.event_columns import EventColumn, chosen_columns
from seqrec.data.schema import NUMERIC, USERS
from seqrec.data.store import EventStore
from seqrec.encoders import SequenceEncoder
from seqrec.encoders.column_embedding import ColumnEmbedding
from seqrec.encoders.event_time import UNITS, EventTime, RequestReadOut, TimeEmbedding, needed_times
from seqrec.encoders.layers import LearnedPositions, newest_events
from seqrec.errors import InputError, check_at_least
from seqrec.models.column_heads import ColumnHead, ColumnHeads, columns_of, predict_columns
from seqrec.models.explain import explain
from seqrec.models.masked_items import MaskedItems, MaskVector, followed_by_mask, masked_batch, masking_for
from seqrec.models.similar_items import ItemSimilarity
from seqrec.models.streaming import CarriedState, StreamingRecommender
from seqrec.runs.callbacks import GatherTables
from seqrec.runs.lightning_internals import attached_trainer, is_accumulating, log_step
from seqrec.runs.measurement import PendingCopy
from seqrec.runs.trainer_checks import check_sharding
from seqrec.specs import from_spec, kind_of, shown_spec, to_spec, with_defaults
from seqrec.training.losses import BCE, Loss
from seqrec.training.optim import Adam, OptimizerFactory, describe_optimizer
from seqrec.training.optim.clipping import clip_gradients
from seqrec.types import History, SequenceBatch

Model = TypeVar("Model", bound="SequentialRecommender")
# `Column.sizes` by name.
Sizes = Mapping[str, Mapping[str, Any]]


class SequentialRecommender(StreamingRecommender):
    """P(next item | history, user): embeds events, encodes them, scores items by dot products.

    `x = sqrt(D) * item + position + time + columns + user`, states = encoder(x), score = state . item, as in SASRec
    (Kang & McAuley 2018), which has only items and positions. The presets `GRU4Rec`, `SASRec`, .. are this class with
    one encoder and plain arguments; `SequentialRecommender.load_from_checkpoint` also reads their checkpoints.

    Args:
        num_items: Items of the catalogue; ids are 1..num_items.
        encoder: The sequence encoder; a `class_path` / `init_args` dict builds one.
        max_length: Longest history in events that positions are learned for.
        positions: Whether events get learned positions, counted back from the newest.
        user_embedding: Whether to add a vector of the user to each event. Unknown users get none.
        num_users: Users of the log; needed with `user_embedding` and `user_columns`.
        user_columns: Names of columns of users, such as age, that add vectors to each event of a user, as `ItemContent`
            describes them. None is none, also if the log has columns. Unknown users have no values.
        log_user_columns: Sizes of the store's columns of users by name (`EventStore.user_column_sizes`), of which
            `user_columns` names some. `use_store` and trainers read their values.
        time: What the model reads of the time of events and requests; None is nothing.
        event_columns: Columns of events that the model reads: descriptions, or names of columns of `log_columns`. None
            is none, also if the log has columns. A checkpoint has their descriptions.
        log_columns: Columns of the log, `SequenceDataModule.event_columns`; needed for names in `event_columns`.
        item_table: How items are stored and compared with states; None is `ItemTable()`.
        item_columns: Sizes of the store's columns of items by name (`EventStore.item_column_sizes`), of which
            `item_table.content` names some. `use_store` and trainers read their values.
        loss: Objective; None is `BCE` with one uniform negative.
        masking: How training masks items, for a bidirectional encoder such as BERT4Rec; None is `MaskedItems()` for
            those. The loss is then that of the masked items, and a state is that of a mask after the history.
        heads: Columns of the next event that the model predicts besides the item, with the weights of their losses; the
            model need not read them. Their names are those of `log_columns`. None is none. See `predict_columns`.
        carry_state: Whether training starts each window from the encoder's state after the user's previous window
            (`CarriedState`), so that a state depends on all earlier events. Gradients end at the start of a window.
            Needs an encoder with a state of constant size, no learned positions, and `StridedWindows`.
        optimizer: None is `Adam` with step size 1e-3.

    Attributes:
        items: Vectors of items.
        output_items: Vectors that score candidates if these have a table of their own; otherwise None.
        users: Vectors of users; None without `user_embedding` and `user_columns`.
        event_time: Vectors of the time of events; None without `time`.
        column_embedding: Vectors of the columns of events; None without `event_columns`.
        read_out: Reads the time of a request; None without `time.request`.
        masking: How training masks items; None for a causal encoder.
        mask: The vector of masked items; None for a causal encoder.
        heads: Read-outs of columns of the next event, from the states before `to_scoring_space`; None without `heads`.

    Raises:
        InputError: if `user_embedding` or `user_columns` is set without `num_users`, the log has no column of a name in
            `event_columns`, `user_columns` or `heads`, a value is out of range, the encoder cannot `carry_state`, or
            `masking_for` refuses an argument for the encoder.

    Example:
        >>> from seqrec import SequentialRecommender
        >>> from seqrec.encoders import MambaRec
        >>> model = SequentialRecommender(100, encoder=MambaRec(d_model=16), max_length=50, positions=False)
        >>> state = model.init_state(batch_size=2)
        >>> states, state = model.eval().step(torch.tensor([3, 7]), state)
        >>> states.shape
        torch.Size([2, 16])
    """

    __signature__: ClassVar[inspect.Signature]
    has_fresh_weights = True
    # `WarmStart.ckpt` of the one that gave this model its weights.
    warm_started_from: str | None = None
    # Computes `loss_of_batch` in its own way while a callback such as `GraphedStep` sets it.
    graphed_loss: Callable[[SequenceBatch], Tensor] | None = None
    _losses: PendingCopy | None = None
    _weight: Tensor | None = None
    # Settings that a resumed run's optimizer had, if they were others; and the optimizer that this model built.
    _optimizer_before: OptimizerFactory | None = None
    _built: Optimizer | None = None

    def __init__(
        self,
        num_items: int,
        *,
        encoder: SequenceEncoder,
        max_length: int = 200,
        positions: bool = True,
        user_embedding: bool = False,
        num_users: int = 0,
        user_columns: Sequence[str] | None = None,
        log_user_columns: dict[str, Any] | None = None,
        time: EventTime | None = None,
        event_columns: Sequence[str | EventColumn] | None = None,
        log_columns: Sequence[EventColumn] | None = None,
        item_table: ItemTable | None = None,
        item_columns: dict[str, Any] | None = None,
        loss: Loss | None = None,
        masking: MaskedItems | None = None,
        heads: Sequence[ColumnHead] | None = None,
        carry_state: bool = False,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__()
        self.encoder: SequenceEncoder = from_spec(encoder, SequenceEncoder)
        self.loss: Loss = from_spec(loss, Loss) or BCE()
        self.optimizer: OptimizerFactory = from_spec(optimizer, OptimizerFactory) or Adam()
        self.item_table: ItemTable = from_spec(item_table, ItemTable) or ItemTable()
        columns = sizes_of_content(self.item_table.content, item_columns)
        self.items, self.output_items = self._make_tables(num_items, columns)
        check_at_least(1, max_length=max_length)
        self._check_window(max_length)
        unread = {"time": time, "event_columns": event_columns, "heads": heads}
        self.masking = masking_for(self.encoder, from_spec(masking, MaskedItems), self.loss, unread)
        masked = self.masking is not None
        self.mask = MaskVector(self.encoder.d_model, std=self.item_table.std) if masked else None
        self.positions = LearnedPositions(max_length, self.encoder.d_model, further=masked) if positions else None
        of_users = sizes_of_content(user_columns or (), log_user_columns, group=USERS)
        self.users = self._make_users(num_users, of_users, ids=user_embedding)
        self.time: EventTime | None = from_spec(time, EventTime)
        self.event_time, self.read_out = self._make_time(self.time)
        self.event_columns = read = chosen_columns(from_spec(event_columns, EventColumn), log_columns)
        self.column_embedding = ColumnEmbedding(read, self.encoder.d_model) if read else None
        predicted = from_spec(heads, ColumnHead)
        self.heads = ColumnHeads(predicted, log_columns, self.encoder.d_model) if predicted else None
        self.carried = CarriedState(self.encoder, max_length, positions=positions) if carry_state else None
        # DDP would send all rows of these tables, and the columns of items at each step.
        self._ddp_params_and_buffers_to_ignore = [*self._sparse_embeddings(), *self._buffers_of_items()]
        plain = {"max_length": max_length, "positions": positions, "num_items": num_items, "num_users": num_users}
        self._save_settings({**plain, "user_embedding": user_embedding}, columns, of_users)

    def _check_window(self, max_length: int) -> None:
        window = self.encoder.window
        if window is not None and window > max_length:
            raise InputError(
                f"window={window} is longer than the histories, max_length={max_length}, so that attention would see "
                "all of their events: give a smaller window, or longer histories"
            )

    def _save_settings(self, plain: dict[str, Any], of_items: Sizes, of_users: Sizes) -> None:
        # Plain values only, for weights_only=True. The encoder's arguments are there twice: in its spec for this class,
        # and flat for the presets. Loading passes on the ones that the class takes.
        parts = ("encoder", "time", "event_columns", "item_table", "loss", "optimizer")
        specs = {name: None if (part := getattr(self, name)) is None else to_spec(part) for name in parts}
        own: dict[str, Any] = {} if self.heads is None else {"heads": to_spec(self.heads.described)}
        own |= {} if self.masking is None else {"masking": to_spec(self.masking)}
        own |= {"carry_state": True} if self.carried else {}
        own |= {"item_columns": of_items} if of_items else {}
        own |= {"user_columns": list(of_users), "log_user_columns": of_users} if of_users else {}
        self.save_hyperparameters({**to_spec(self.encoder)["init_args"], **plain, **own, **specs})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """List the arguments that a subclass forwards as `**shared` in its signature."""
        super().__init_subclass__(**kwargs)
        taken = dict(inspect.signature(cls.__init__).parameters)
        del taken["self"]
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
            # The subclass sets those without a default itself.
            shared = inspect.signature(cls.__mro__[1]).parameters.items()
            taken |= {name: it for name, it in shared if name not in taken and it.default is not it.empty}
            taken = {name: it for name, it in taken.items() if it.kind is not it.VAR_KEYWORD}
        cls.__signature__ = inspect.Signature(list(taken.values()))

    @classmethod
    def from_hyperparameters(cls: type[Model], hparams: dict[str, Any]) -> Model:
        """Build a model from a checkpoint's hyperparameters, which contain more than one class takes."""
        taken = set(inspect.signature(cls).parameters)
        encoder = hparams.get("encoder")
        if not isinstance(encoder, dict) or not isinstance(encoder.get("init_args"), dict):
            raise InputError(f"the hyperparameters have no encoder, but {encoder!r}")
        if not set(encoder["init_args"]) <= taken:
            taken.add("encoder")
        return cls(**{name: value for name, value in hparams.items() if name in taken})

    @property
    def num_user_vectors(self) -> int:
        """Number of users of the log if the model was built with `user_embedding` or `user_columns`; else 0."""
        return int(self.hparams["num_users"]) if self.users is not None else 0

    @property
    def title(self) -> str:
        """The encoder's name, which presets share."""
        return type(self.encoder).__name__

    @property
    def lr(self) -> float:
        """Step size of the optimizer's dense part; setting it, as Lightning's `Tuner` does, changes `optimizer`.

        Raises:
            AttributeError: if the optimizer's settings have no `lr`.
        """
        return self.optimizer.lr  # type: ignore[attr-defined,no-any-return]  # a user's own may have none

    @lr.setter
    def lr(self, value: float) -> None:
        self.optimizer.lr = value  # type: ignore[attr-defined]
        self.hparams["optimizer"] = to_spec(self.optimizer)

    @property
    def reads_request_time(self) -> bool:
        """Whether the model reads the time of a request."""
        return self.read_out is not None

    def forward(self, history: History, user_ids: Tensor | None = None) -> Tensor:
        """Return the states of all events, before any time of a request is read.

        Args:
            history: (B, L) events; for a bidirectional encoder item 0 at an event is a masked item.
            user_ids: (B,) int64, 0 for unknown; None means unknown for all.

        Returns:
            (B, L, D); states at padding mean nothing.

        Raises:
            InputError: if a history is longer than `max_length` and positions are learned, or has no timestamps or
                columns and the model reads them.
        """
        states: Tensor = self.encoder(self._embedded(history, user_ids), history)
        return states

    def last_states(self, batch: SequenceBatch) -> Tensor:
        """Return the (B, D) states after each row's newest event, as asked at the batch's times of requests.

        With a bidirectional encoder they are the states of a mask that follows that event.
        """
        return self.to_scoring_space(self.request_states(batch))

    def request_states(self, batch: SequenceBatch) -> Tensor:
        """Return what `last_states` returns, before `to_scoring_space`."""
        history, times = batch.history, batch.request_times
        at = None if times is None else newest_events(times, history.lengths)
        return self._newest(self._scaled(history.item_ids), history, batch.user_ids, at=at)

    def states_before_targets(self, batch: SequenceBatch) -> Tensor:
        """Return the (T, D) states before each target of a prequential batch, as asked at the target's time.

        They are those of one stream over each row's history, so a state sees all events before it. A model that cannot
        be streamed encodes the newest `max_length` events before each target.
        """
        if self.positions is not None or not self.encoder.can_stream:
            return super().states_before_targets(batch)
        assert batch.held_out is not None
        assert batch.held_out.positions is not None
        history = batch.history
        every, _ = self.extend(history, self.init_state(len(batch)), batch.user_ids)
        places = (batch.held_out.rows, batch.held_out.positions - 1)
        states = every[places]
        if self.read_out is not None:
            at = None if batch.request_times is None else batch.request_times[places]
            states = self.at_request(states, needed_times(history)[places], at)
        return self.to_scoring_space(states)

    def newest_states(
        self, x: Tensor, history: History, user_ids: Tensor | None, *, at: Tensor | None = None, stream: bool = False
    ) -> Tensor:
        """Return what `last_states` returns, for scaled item vectors x (B, L, D), and requests at times `at` (B,).

        `stream` computes the state of a stream over all L events of each row from its start, with the errors of
        `init_state`.
        """
        return self.to_scoring_space(self._newest(x, history, user_ids, at=at, stream=stream))

    def _newest(
        self, x: Tensor, history: History, user_ids: Tensor | None, *, at: Tensor | None, stream: bool = False
    ) -> Tensor:
        if stream:
            self._refuse_learned_positions()
        if self.mask is not None:
            x, history = F.pad(x, (0, 0, 0, 1)), followed_by_mask(history)
        x = self.encoder_input(x, history, user_ids)
        if stream:
            start = self.encoder.init_state(len(x), max_length=int(self.hparams["max_length"]))
            states = self.encoder.advance(x, None, start.tensors, *self.encoder.times_of(history))[0][:, -1]
        else:
            states = self.encoder.newest(x, history)
        if self.read_out is not None:
            states = self.at_request(states, newest_events(needed_times(history), history.lengths), at)
        return states

    def at_request(self, states: Tensor, newest: Tensor, at: Tensor | None) -> Tensor:
        """Return states as asked at a given time; unchanged unless the model has a `read_out`.

        Args:
            states: (..., D) of the encoder.
            newest: (...) int64, the time of the newest event of each.
            at: (...) int64, the times of the requests.

        Raises:
            InputError: if `at` is None, but the model reads it.
        """
        if self.read_out is None:
            return states
        if at is None:
            self.request_timestamp(None)
        out: Tensor = self.read_out(states, newest, at)
        return out

    def request_timestamp(self, at: int | datetime | None) -> int | None:
        """Return the time of a request in the log's unit; see `Recommender.request_timestamp`."""
        if self.time is None or not self.time.request:
            return super().request_timestamp(at)
        if at is None:
            raise InputError(
                f"{self.title} was trained with time.request, so it must know when it is asked: give at=.., a "
                f"timestamp in {self.time.unit} as in the log, or a datetime with a time zone"
            )
        return self.time.timestamp(at)

    def to_scoring_space(self, states: Tensor) -> Tensor:
        """Return states (..., D) in the form in which their dot products with item vectors are scores.

        They are scaled to length 1 / temperature if scores are cosines, with another column of ones if items have
        biases.
        """
        if self.item_table.temperature is not None:
            states = F.normalize(states, dim=-1) / self.item_table.temperature
        return F.pad(states, (0, 1), value=1.0) if self.item_table.bias else states

    def scorer(self) -> Scorer:
        """Return the scorer of the current weights."""
        items = self.items if self.output_items is None else self.output_items
        return items.scorer(unit_columns=None if self.item_table.temperature is None else items.d_model)

    def item_similarity(self) -> ItemSimilarity:
        """Return the cosines of the item vectors that score; see `similar_items`."""
        return ItemSimilarity.of_vectors(self.scorer(), self.encoder.d_model)

    explain = explain
    predict_columns = predict_columns

    def _embedded(self, history: History, user_ids: Tensor | None) -> Tensor:
        return self.encoder_input(self._scaled(history.item_ids), history, user_ids)

    def _scaled(self, item_ids: Tensor) -> Tensor:
        """Return scaled item vectors (..., D)."""
        vectors: Tensor = self.items(item_ids) * self.encoder.d_model**0.5
        return vectors

    def encoder_input(self, x: Tensor, history: History, user_ids: Tensor | None) -> Tensor:
        """Return the encoder's input for scaled item vectors (B, L, D).

        The vector of masked items, positions, times, columns and users are added.
        """
        if self.mask is not None:
            x = x + self.mask(history.item_ids)
        if self.positions is not None:
            x = x + self.positions(history)
        if self.event_time is not None:
            x = x + self.event_time(needed_times(history), history.times_before)
        if self.column_embedding is not None:
            x = x + self.column_embedding(history.features, x.shape[:2])
        if self.users is not None and user_ids is not None:
            x = x + self.users(user_ids).unsqueeze(1)
        return x

    def use_store(self, store: EventStore) -> None:
        """Take the log's ids, and the columns of items and users that the model reads, unless a checkpoint had them.

        Raises:
            InputError: if the store has other columns than the model was built for.
        """
        super().use_store(store)
        for _, table in self.item_tables():
            if table.content is not None and table.content.group == USERS:
                table.content.read(store.user_columns, sizes=store.user_column_sizes)
            elif table.content is not None:
                table.content.read(store.item_columns, sizes=store.item_column_sizes)

    def setup(self, stage: str) -> None:
        """Check the trainer's settings and the log, also its times and columns if the model reads them.

        Numbers of columns are then standardised as the model knows them, also in batches of another split.

        Raises:
            InputError: if the log has no times, they are dates in another unit than that of `time`, or none although
                hours or weekdays are read, or if the log lacks a column.
            StoreError: if a column has other values than in the log that the model was trained on.
        """
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, SequenceDataModule):
            return
        self._tell_columns(data)
        data.carry_state = self.carried is not None
        if self.time is None:
            return
        times = data.store.timestamps
        if times is None:
            raise InputError(
                f"model.time is set, but {data.store.directory} has no timestamps: name the column of times in "
                "data.source, or leave model.time out"
            )
        some = times[:: max(1, len(times) // 10_000)]
        self.time.check_log(int(some.min()), int(some.max()))

    def _tell_columns(self, data: SequenceDataModule) -> None:
        """Tell the data which columns the model reads and predicts, and how it standardises them."""
        predicted = () if self.heads is None else self.heads.columns
        data.read_as([*self.event_columns, *predicted])
        data.target_columns = tuple(column.name for column in predicted)

    def configure_callbacks(self) -> list[pl.Callback]:
        """Return the default callbacks, plus one that gathers sharded tables for evaluation."""
        # Each of the trainer's commands calls this.
        present = any(isinstance(c, GatherTables) for c in getattr(attached_trainer(self), "callbacks", []))
        added: list[pl.Callback] = [GatherTables()] if self.item_table.sharded and not present else []
        return [*super().configure_callbacks(), *added]

    def configure_model(self) -> None:
        """Make the rows of sharded tables: this process's share within a trainer, all of them without one.

        Trainers and `load_from_checkpoint` call it. Call it yourself if you use the model in another way.

        Raises:
            InputError: if the trainer's strategy or precision does not support sharded tables.
        """
        if not self.item_table.sharded:
            return
        ranks, rank, device = 1, 0, self.device
        if (trainer := attached_trainer(self)) is not None:
            check_sharding(trainer)
            ranks, rank, device = trainer.world_size, trainer.global_rank, trainer.strategy.root_device
        for _, table in self.item_tables():
            table.make_rows(ranks, rank, device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the model's record, and the whole optimizer state of sharded tables."""
        super().on_save_checkpoint(checkpoint)
        save_whole_state(checkpoint, self.trainer.optimizers, self._sparse_embeddings())
        if self.carried is not None:
            self.carried.save(checkpoint)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights, which are then no fresh ones."""
        self.has_fresh_weights = False
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare the log; if training resumes, compare the optimizer and keep only this process's shard of its state.

        Raises:
            InputError: if another kind of optimizer or schedule is asked for than the checkpoint's.
            StoreError: if it was trained on a log with other items.
        """
        super().on_load_checkpoint(checkpoint)
        trainer = attached_trainer(self)
        self._keep_scales(checkpoint)
        if trainer is not None:
            check_same_content(checkpoint.get("hyper_parameters", {}), self.hparams)
        if trainer is not None and trainer.state.fn == TrainerFn.FITTING:
            self._optimizer_before = self._other_optimizer(checkpoint)
            keep_own_state(checkpoint, self._sparse_embeddings())
            if self.carried is not None:
                self.carried.load(checkpoint, trainer.global_rank, trainer.world_size)

    def _keep_scales(self, checkpoint: Mapping[str, Any]) -> None:
        """Standardise numbers of columns as a checkpoint's model does."""
        read, predicted = self.event_columns, () if self.heads is None else self.heads.columns
        theirs, heads = columns_of(checkpoint.get("hyper_parameters", {}))
        if theirs.keys() != {column.name for column in read} or heads.keys() != {column.name for column in predicted}:
            return  # its weights are refused
        for column in (*read, *predicted):
            column.check_codes({**heads, **theirs}[column.name].vocabulary, "the checkpoint")
        self.use_scales({**heads, **theirs})

    def use_scales(self, columns: Mapping[str, EventColumn]) -> None:
        """Standardise the numbers of columns of events that are read or predicted as in `columns`, by name."""
        self.event_columns = tuple(_scaled(column, columns) for column in self.event_columns)
        self.hparams["event_columns"] = to_spec(self.event_columns)
        if self.column_embedding is not None:
            self.column_embedding.columns = self.event_columns
        if self.heads is not None:
            self.heads.columns = tuple(_scaled(column, columns) for column in self.heads.columns)
            self.hparams["heads"] = to_spec(self.heads.described)
        data = getattr(attached_trainer(self), "datamodule", None)
        if isinstance(data, SequenceDataModule):
            self._tell_columns(data)

    def use_content_scales(self, hparams: Mapping[str, Any], store: EventStore) -> None:
        """Standardise the numbers of a store's columns of items and users as a model with these hyperparameters."""
        for _, table in self.item_tables():
            if table.content is not None:
                of_users = table.content.group == USERS
                argument = "log_user_columns" if of_users else "item_columns"
                table.content.use_scales(hparams[argument], store.user_columns if of_users else store.item_columns)
                self.hparams[argument] = {**self.hparams[argument], **table.content.sizes}

    def _other_optimizer(self, checkpoint: Mapping[str, Any]) -> OptimizerFactory | None:
        """Return a checkpoint's optimizer if a resumed run has other settings, else None; refuse another kind."""
        now = to_spec(self.optimizer)
        was = with_defaults(checkpoint.get("hyper_parameters", {}).get("optimizer"), now)
        if not isinstance(was, dict) or was == now:
            return None
        old, new = was.get("init_args", {}), now["init_args"]
        for name, before, after in (
            ("optimizer", was.get("class_path"), now["class_path"]),
            ("optimizer.schedule", old.get("schedule"), new.get("schedule")),
            ("optimizer.table", kind_of(old.get("table")), kind_of(new.get("table"))),
        ):
            if before != after:
                raise InputError(
                    f"model.{name} is {shown_spec(after)}, but the checkpoint has the state of {shown_spec(before)}; "
                    "resume with that, or begin a new run without --ckpt_path"
                )
        had: OptimizerFactory = from_spec(was, OptimizerFactory)
        return had

    def on_train_start(self) -> None:
        """Give the resumed optimizer the settings that were asked for; the checkpoint's are those of before."""
        before, self._optimizer_before = self._optimizer_before, None
        if before is None:
            return
        live = next((each for each in self.trainer.optimizers if each is self._built), None)
        if live is None:
            rank_zero_info("model.optimizer is not what it was, and is not used: configure_optimizers builds its own")
            return
        old_groups, new_groups = (each.build(self).param_groups for each in (before, self.optimizer))
        for group, was, asked in zip(live.param_groups, old_groups, new_groups, strict=True):
            # Whatever schedule there is, its step sizes are proportional to the first.
            scaled = {name: group[name] for name in ("lr", "initial_lr", "max_lr", "min_lr") if name in group}
            new, old = asked["lr"], was["lr"]
            group.update({name: asked[name] for name in asked if name != "params" and asked[name] != was.get(name)})
            group.update({name: new if value == old else value * new / old for name, value in scaled.items()})
        for config in self.trainer.lr_scheduler_configs:
            if hasattr(config.scheduler, "base_lrs"):
                config.scheduler.base_lrs = [group.get("initial_lr", group["lr"]) for group in live.param_groups]
        rank_zero_info(f"resumed with other settings of the optimizer: {describe_optimizer(live)}")

    def on_fit_start(self) -> None:
        """Start with equal tables in all processes, and pass the training's item counts to a loss that needs them."""
        for name, table in self.item_tables():
            rank_zero_info(f"{name}: {table.summary}")
            table.start_equal()
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, SequenceDataModule):
            return
        if self.loss.needs_item_counts:
            self.loss.use_item_counts(torch.from_numpy(data.train_item_counts()))
        if self.item_table.content:
            trained = torch.from_numpy(data.trained_items())
            for _, table in self.item_tables():
                if table is not self.users:
                    table.use_trained_items(trained)

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> Tensor:
        """Return the mean loss over a batch's targets, plus the weighted losses of the columns that are predicted."""
        self.has_fresh_weights = False
        remedy = "leave such users out, or allow seen items: --model.loss.negatives.exclude_seen false"
        parts: list[Tensor] = []
        with self._naming_users(batch, remedy):
            loss = self.loss_of_batch(batch, parts) if self.graphed_loss is None else self.graphed_loss(batch)
        self._weight = batch.weight
        shown = [loss, batch.weight, *parts]
        self._losses = PendingCopy(torch.stack([each.detach().to(loss.device, loss.dtype) for each in shown]))
        return loss

    def loss_of_batch(self, batch: SequenceBatch, parts: list[Tensor] | None = None) -> Tensor:
        """Return the mean loss over a batch's targets, without the side effects of a step.

        With `carry_state` it continues from the call before. With `heads` it is the weighted sum of the losses of the
        item and of the columns, which `parts` gets.
        """
        if self.carried is not None:
            states = self.carried.advance(self.encoder, self._embedded(batch.history, batch.user_ids), batch)
        elif self.masking is None:
            states = self(batch.history, batch.user_ids)
        else:
            history, batch = masked_batch(batch, self.masking.draw(batch))
            states = self(history, batch.user_ids)[:, 1:]
        if self.read_out is not None:
            states = self.at_request(states, needed_times(batch.history), batch.request_times)
        loss: Tensor = self.loss(self.to_scoring_space(states), batch, self.scorer())
        if self.heads is None:
            return loss
        of_columns = self.heads.losses(states, batch).values()
        if parts is not None:
            parts += [loss, *of_columns]
        return loss + sum(weight * each for weight, each in zip(self.heads.weights, of_columns, strict=True))

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute gradients of the loss times the batch's weight, so all targets of an epoch count the same.

        The weight is `SequenceBatch.weight`, of mean 1 over an epoch. Loggers, callbacks and `Tuner.lr_find` get the
        loss without it; gradient clipping gets the gradients with it, which the optimizer uses.
        """
        super().backward(loss if self._weight is None else loss * self._weight, *args, **kwargs)
        self._weight = None

    def on_after_backward(self) -> None:
        """Log the step's loss. If an update is due, average row-sparse gradients over processes, as DDP does others."""
        # Logged here and from the CPU, as the progress bar would otherwise wait for the GPU.
        if self._losses is not None:
            (loss, weight, *parts), self._losses = self._losses.read(), None
            log_step(self, "train_loss_step", loss, on_step=True)
            log_step(self, "train_loss_epoch", loss, on_step=False, weight=float(weight))
            if self.heads is not None:
                for name, part in zip(self.heads.loss_names, parts, strict=True):
                    log_step(self, name, part, on_step=False, weight=float(weight))
        if not is_accumulating(self.trainer):
            for table in self._sparse_tables():
                table.share_gradient()

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip gradients as Lightning does, including row-sparse ones and the shards of all processes."""
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
        """Return one optimizer of all parameters, and its schedule, which advances with each update."""
        optimizer = self._built = self.optimizer.build(self)
        rank_zero_info(f"optimizer: {describe_optimizer(optimizer)}")
        if self.optimizer.schedule is None:
            return optimizer
        scheduler = self.optimizer.schedule.build(optimizer, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _make_time(self, time: EventTime | None) -> tuple[TimeEmbedding | None, RequestReadOut | None]:
        """Return the parts that read times, and let the encoder's mixers read gaps if they shall."""
        if time is None:
            if self.encoder.reads_gaps:
                raise InputError(
                    f"{type(self.encoder).__name__} reads the time between events, so the model must read times: set "
                    "time, such as time: {gap: buckets} (HRNN without session_gap needs none)"
                )
            return None, None
        if time.in_mixers:
            self.encoder.read_gaps(UNITS[time.unit])
        width = self.encoder.d_model
        return TimeEmbedding(time, width), RequestReadOut(time, width) if time.request else None

    def _make_tables(self, num_items: int, columns: Sizes) -> tuple[ItemEmbedding, ItemEmbedding | None]:
        """Return the table of the history, and that of the candidates if it is another."""
        table = self.item_table
        of_items: dict[str, Any] = {"content": columns, "ids": table.ids, "id_dropout": table.dropped_ids}
        scoring: dict[str, Any] = {"reads_all": self.loss.reads_all_items, "bias": table.bias, **of_items}
        if not table.separate_output:
            return self._make_table(num_items, **scoring), None
        return self._make_table(num_items, **of_items), self._make_table(num_items, **scoring)

    def _make_users(self, num_users: int, columns: Sizes, *, ids: bool) -> ItemEmbedding | None:
        """Return the table of users, with vectors of their own if `ids`; None if nothing of them is read."""
        if not ids and not columns:
            return None
        if num_users < 1:
            asked = "user_embedding" if ids else "user_columns"
            raise InputError(f"{asked} needs num_users: the number of users in the training log")
        return self._make_table(
            num_users, content=columns, ids=ids, sharded=self.item_table.sharded and ids, group=USERS
        )

    def _make_table(self, num_items: int, *, reads_all: bool = False, **of_items: Any) -> ItemEmbedding:
        settings = self.item_table
        return ItemEmbedding(
            num_items,
            self.encoder.d_model,
            std=settings.std,
            sparse=settings.is_sparse(num_items + 1, reads_all=reads_all),
            dtype=getattr(torch, settings.dtype),
            **{"sharded": settings.sharded, **of_items},
        )

    def _buffers_of_items(self) -> list[str]:
        return [f"{name}.{own}" for name, table in self.item_tables() for own, _ in table.named_buffers()]

    def item_tables(self) -> list[tuple[str, ItemEmbedding]]:
        """Return the tables of items and users with their names in the model."""
        return [(name, module) for name, module in self.named_children() if isinstance(module, ItemEmbedding)]

    def tables_by_weight(self) -> dict[str, ItemEmbedding]:
        """Return the tables of items and users by the names of their weights."""
        return {f"{name}.table.weight": table for name, table in self.item_tables()}

    def _sparse_tables(self) -> list[ItemEmbedding]:
        return [table for _, table in self.item_tables() if table.sparse]

    def _sparse_embeddings(self) -> dict[str, nn.Embedding]:
        return {name: table.table for name, table in self.tables_by_weight().items() if table.sparse}


def _scaled(column: EventColumn, columns: Mapping[str, EventColumn]) -> EventColumn:
    if column.kind != NUMERIC:
        return column
    return EventColumn(column.name, NUMERIC, mean=columns[column.name].mean, std=columns[column.name].std)
