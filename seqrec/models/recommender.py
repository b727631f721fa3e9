"""The base of all recommenders: evaluation by a protocol, and recommendation of the best items."""

# Longer than 400 lines because Lightning needs its hooks on one class.

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast, overload

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MetricCollection

from seqrec.catalogue.candidates import Candidates
from seqrec.catalogue.histories import read_histories, read_options
from seqrec.catalogue.recommend import RecommendOptions, best_items, recommend_block, trained_length
from seqrec.catalogue.scorer import Scorer
from seqrec.catalogue.search import ExactSearch, ItemSearch
from seqrec.catalogue.sharding import ShardedEmbedding
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.event_columns import EventColumn
from seqrec.data.store import EventStore
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError, NothingToDrawError
from seqrec.evaluation.metrics import RepeatedTargets, ranking_metrics
from seqrec.evaluation.protocols import FullRanking, Protocol, TrainingCounts
from seqrec.models.prequential import judge_batch, prefix_batches
from seqrec.models.similar_items import ItemSimilarity, similar_items
from seqrec.models.trained_on import CHECKPOINT_KEY, check_same_log, record_in, record_of
from seqrec.runs.callbacks import FiniteLoss, StepSeeds, UseAtomicCheckpoints
from seqrec.runs.lightning_internals import allow_instantiator, attached_trainer
from seqrec.runs.trainer_checks import check_trainer
from seqrec.specs import arguments_from_specs
from seqrec.types import History, JudgedTargets, Recommendations, SequenceBatch

if TYPE_CHECKING:
    import polars
    from typing_extensions import Unpack


Model = TypeVar("Model", bound="Recommender")


class RecommendArguments(TypedDict, total=False):
    """Arguments of `Recommender.recommend` by name, which it documents."""

    filter_seen: bool
    block: Collection[Any] | None
    max_length: int | None
    batch_size: int
    at: int | datetime | Sequence[int | datetime] | None
    candidates: Candidates | Collection[Any] | None


class Recommender(pl.LightningModule, ABC):
    """A model that scores items for users by dot products of states and item vectors.

    It logs `val_HR@K`, `val_NDCG@K`, `test_HR@K` and `test_NDCG@K` for K = 5, 10, 20, and also recall and precision
    if the split holds out several items per user.

    Attributes:
        protocol: How targets are ranked: by default against the full catalogue without seen items. A trainer's
            command on a `SequenceDataModule` replaces it by the same protocol with the data's split and event order.
        options: What `predict_step` recommends to each user.
        search: Finds the best items; the default scores the whole catalogue.
        event_columns: Columns of events that the model reads, besides items and times.
        item_vocabulary: The log's item ids, set by a trainer's commands on a `SequenceDataModule` and by
            `seqrec.load`; None before.
        user_vocabulary: The log's user ids, likewise.
        has_fresh_weights: Whether the weights were neither trained nor loaded; false if nothing is trained.
        repeated_targets: Share of the last judged targets that were in the user's history, by stage ("val", "test").

    Example:
        >>> import torch
        >>> from seqrec import History, Recommender, SASRec
        >>> model = SASRec(num_items=20, d_model=8, max_length=10)
        >>> isinstance(model, Recommender)
        True
        >>> history = History(item_ids=torch.tensor([[3, 7, 9]]), lengths=torch.tensor([3]))
        >>> model.recommend(history, top_k=5).item_ids.shape
        torch.Size([1, 5])
    """

    has_fresh_weights = False

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Protocol = FullRanking()
        self.options = RecommendOptions()
        self.search: ItemSearch = ExactSearch()
        self.event_columns: tuple[EventColumn, ...] = ()
        self.item_vocabulary: Vocabulary | None = None
        self.user_vocabulary: Vocabulary | None = None
        self.metrics = nn.ModuleDict({stage: ranking_metrics() for stage in ("val", "test")})
        self.repeated_targets: dict[str, float] = {}
        self.repeats = nn.ModuleDict({stage: RepeatedTargets() for stage in ("val", "test")})
        self._judging: tuple[Scorer, TrainingCounts | None] | None = None
        self._trained_on: dict[str, Any] = {}

    @property
    def num_user_vectors(self) -> int:
        """Users whose own vectors the model has, so it fits no log with other users; 0 if it has none."""
        return 0

    @property
    def reads_request_time(self) -> bool:
        """Whether the model reads the time of a request, as the protocol's id states."""
        return False

    def request_timestamp(self, at: int | datetime | None) -> int | None:
        """Return the time of a request in the log's unit, None for a model that reads none.

        Raises:
            InputError: if the model does not read the time of requests, but `at` is given, or the other way round.
        """
        if at is not None:
            raise InputError(
                f"at={at!r} would have no effect: {self.title} was not trained to read the time of a request; leave it "
                "out, or train with model.time.request: true"
            )
        return None

    @property
    def title(self) -> str:
        """Name of the model in tables."""
        return type(self).__name__

    @abstractmethod
    def last_states(self, batch: SequenceBatch) -> Tensor:
        """Return the (B, D) states after each row's newest event."""

    def states_before_targets(self, batch: SequenceBatch) -> Tensor:
        """Return the (T, D) states before each target of a prequential batch, from the newest `max_length` events."""
        prefixes = prefix_batches(batch, trained_length(self))
        return torch.cat([self.last_states(prefix) for _, prefix in prefixes])

    @classmethod
    def load_from_checkpoint(cls: type[Model], checkpoint_path: Any, *args: Any, **kwargs: Any) -> Model:
        """Load a model from a checkpoint; see `LightningModule.load_from_checkpoint`.

        No code runs from the file, unless `weights_only=False` is given: of the classes that it names, only those are
        built that `seqrec.load` allows.
        """
        # Lightning calls the functions on this list, and its error for others asks to add them. Its own one imports
        # every class that the file names.
        builder = f"{__name__}.build_from_hyperparameters"
        allow_instantiator(builder)
        return super().load_from_checkpoint(
            checkpoint_path, *args, **{"weights_only": True, **kwargs}, _instantiator=builder
        )

    @classmethod
    def from_hyperparameters(cls: type[Model], hparams: dict[str, Any]) -> Model:
        """Build a model without its weights from the hyperparameters of a checkpoint.

        Raises:
            InputError: if an argument may not be of the class that the checkpoint names.
        """
        return cls(**arguments_from_specs(cls, hparams))

    @abstractmethod
    def scorer(self) -> Scorer:
        """Return the scorer of the current weights."""

    def configure_callbacks(self) -> list[pl.Callback]:
        """Return the default callbacks: atomic checkpoints, per-step seeds, and a stop on non-finite loss."""
        # Each of the trainer's commands calls this.
        present = {type(callback) for callback in getattr(attached_trainer(self), "callbacks", [])}
        return [callback() for callback in (UseAtomicCheckpoints, StepSeeds, FiniteLoss) if callback not in present]

    def setup(self, stage: str) -> None:
        """Check the trainer's settings and take the log's ids from the data module.

        Raises:
            InputError: if `check_trainer` refuses the trainer.
            StoreError: if the model was trained on a log with other items.
        """
        check_trainer(self.trainer)
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, SequenceDataModule):
            check_same_log(self._trained_on, data.store, user_vectors=self.num_user_vectors)
            self.use_store(data.store)

    def use_store(self, store: EventStore) -> None:
        """Take the log's ids from the store that the model was trained on, or another one with the same items."""
        self.item_vocabulary, self.user_vocabulary = store.item_vocabulary, store.user_vocabulary

    def teardown(self, stage: str) -> None:
        """After a fit, remember the log that the model was trained on."""
        data = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and isinstance(data, SequenceDataModule):
            self._trained_on = record_of(type(self), data)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the model's class and the store of its items in a checkpoint; `seqrec.load` reads them."""
        data = getattr(attached_trainer(self), "datamodule", None)
        checkpoint[CHECKPOINT_KEY] = record_of(type(self), data if isinstance(data, SequenceDataModule) else None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare the log that a checkpoint is from with the trainer's, before its weights are read.

        Raises:
            InputError: if its weights do not fit this model.
            StoreError: if it was trained on a log with other items.
        """
        self._trained_on = record_in(checkpoint)
        trainer = attached_trainer(self)
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, SequenceDataModule):
            check_same_log(self._trained_on, data.store, user_vectors=self.num_user_vectors)
        if trainer is not None:
            self._check_weights(checkpoint)

    def _check_weights(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse weights of other shapes with the settings that differ; torch would list every weight."""
        if any(isinstance(module, ShardedEmbedding) for module in self.modules()):
            return  # its rows are spread when they are loaded
        own = {name: value.shape for name, value in self.state_dict().items() if isinstance(value, Tensor)}
        found = {name: value.shape for name, value in checkpoint["state_dict"].items() if isinstance(value, Tensor)}
        if own == found:
            return
        was, now = checkpoint.get("hyper_parameters", {}), dict(self.hparams)
        plain = [name for name in was if name in now and not isinstance(was[name], (dict, list))]
        differing = [f"{name}={was[name]!r} (here {now[name]!r})" for name in plain if was[name] != now[name]]
        cls = str(self._trained_on.get("class_path", "")).rpartition(".")[2]
        if cls.isidentifier() and cls != type(self).__name__:
            differing.insert(0, f"model {cls} (here {type(self).__name__})")
        if not differing:
            names = [name for name in {**own, **found} if own.get(name) != found.get(name)]
            state = "has no" if names[0] not in found else "has a needless" if names[0] not in own else "has another"
            differing = [f"it {state} {names[0]}, so it may be of another version of the code"]
        raise InputError(
            f"the checkpoint has weights of another model: {', '.join(differing)}; "
            "give the same settings (--ckpt_path of a run's folder has them all), or begin a new run"
        )

    # Lightning passes a step's result to callbacks unchanged, but its types only allow tensors and mappings.
    def validation_step(self, batch: SequenceBatch, batch_idx: int) -> JudgedTargets:  # type: ignore[override]
        """Add a batch to the validation metrics and return its ranks."""
        return self._judge("val", batch)

    def test_step(self, batch: SequenceBatch, batch_idx: int) -> JudgedTargets:  # type: ignore[override]
        """Add a batch to the test metrics and return its ranks."""
        return self._judge("test", batch)

    def on_validation_epoch_start(self) -> None:
        """Take split, event order and counts from the data, and the scorer of the current weights."""
        self._start_judging("test" if self.trainer.testing else "val")

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all users."""
        self._log_metrics("test" if self.trainer.testing else "val")

    on_test_epoch_start, on_test_epoch_end = on_validation_epoch_start, on_validation_epoch_end

    def predict_step(self, batch: SequenceBatch, batch_idx: int) -> Recommendations:
        """Return the best items for each user of the batch, by `options`."""
        return best_items(self, self.scorer(), batch, self.options)

    @overload
    def recommend(
        self, histories: Sequence[Sequence[Any]], top_k: int = ..., **options: Unpack[RecommendArguments]
    ) -> list[list[Any]]: ...
    @overload
    def recommend(
        self, histories: polars.DataFrame, top_k: int = ..., **options: Unpack[RecommendArguments]
    ) -> polars.DataFrame: ...
    @overload
    def recommend(
        self, histories: History, top_k: int = ..., **options: Unpack[RecommendArguments]
    ) -> Recommendations: ...
    def recommend(
        self,
        histories: Sequence[Sequence[Any]] | polars.DataFrame | History,
        top_k: int = 10,
        *,
        filter_seen: bool = True,
        block: Collection[Any] | None = None,
        max_length: int | None = None,
        batch_size: int = 128,
        at: int | datetime | Sequence[int | datetime] | None = None,
        candidates: Candidates | Collection[Any] | None = None,
    ) -> Any:
        """Return the best next items for users given by their histories; they need not have been in training.

        Args:
            histories: One of: a list of the log's item ids per user, oldest first; a frame with the columns user_id
                and item_id, and also timestamp unless each user's rows are in time order, and the columns that the
                model reads (`event_columns`), with the log's values; a `History` of internal ids.
            top_k: Items per user.
            filter_seen: Whether to leave out the items of the user's history.
            block: The log's ids of items that are never recommended.
            max_length: Newest events that the model sees; None is the length that it was trained with.
            batch_size: Users encoded at a time.
            at: When the recommendations are asked for, needed by a model that reads it (`EventTime.request`): a
                timestamp in the log's unit or a datetime with a time zone, for all users or one for each.
            candidates: The only items that are recommended: `Candidates`, or the log's ids; None is all.

        Returns:
            For lists, the log's item ids for each user, best first. For a frame, a frame with the columns user_id,
            item_id, rank (1 is best) and score, with users in order of appearance. For a `History`, internal ids and
            scores on the CPU. A user gets fewer than `top_k` items if no more are allowed.

        Raises:
            InputError: if a user has no known item, a number is out of range, a frame lacks a column or has a value
                of another type, the model does not know the log's ids, candidates are unknown or of another catalogue,
                or a time is missing, is not read, or is before the user's newest event.

        Warns:
            UserWarning: if items that the model does not know were dropped; with their number.

        Example:
            >>> import numpy as np
            >>> from seqrec import Popularity
            >>> from seqrec.data.vocabulary import Vocabulary
            >>> model = Popularity.from_counts(np.array([0, 5, 9, 1]))
            >>> model.item_vocabulary = Vocabulary(["apple", "bread", "cheese"])
            >>> model.recommend([["bread"], ["cheese", "apple"]], top_k=2)
            [['apple', 'cheese'], ['bread']]
        """
        for_all = at if not isinstance(at, Sequence) else at[0] if at else None
        options = read_options(self, top_k, filter_seen, block, for_all, candidates)
        events, answer = read_histories(self, histories)
        if isinstance(at, Sequence):
            events = events.asked_at([self.request_timestamp(time) for time in at])
        return answer(recommend_block(self, events, options, max_length=max_length, batch_size=batch_size))

    def item_similarity(self) -> ItemSimilarity:
        """Return what `similar_items` searches.

        Raises:
            InputError: if the model has no natural similarity of items.
        """
        raise InputError(
            f"{self.title} has no similarity of items: use a model with item vectors, such as SASRec, or ItemKNN"
        )

    similar_items = similar_items

    def on_predict_start(self) -> None:
        """Warn if the weights were neither trained nor loaded."""
        self._warn_of_fresh_weights()

    def _warn_of_fresh_weights(self) -> None:
        if self.has_fresh_weights and self.trainer.state.fn != TrainerFn.FITTING:
            rank_zero_warn(
                f"{self.title} is used with fresh weights: it was not trained and no weights were loaded, "
                "so its numbers mean nothing; call trainer.fit before, or give ckpt_path (after a loop of your own "
                "without training_step, set has_fresh_weights = False)"
            )

    def _start_judging(self, stage: str) -> None:
        self._warn_of_fresh_weights()
        data, counts = getattr(self.trainer, "datamodule", None), None
        shape: dict[str, Any] = {}
        if isinstance(data, SequenceDataModule):
            times = self.reads_request_time
            self.protocol = self.protocol.on(data.split, data.event_order, request_time=times, targets=data.targets)
            shape = {"several_targets": data.split.several_targets, "separate_lists": data.split.prequential}
            if data.hidden_items is not None:
                shape["cold_items"] = torch.from_numpy(data.hidden_items)
            candidates = self.protocol.candidates
            counts = TrainingCounts(
                torch.from_numpy(data.train_item_counts()) if candidates.needs_item_counts else None,
                torch.from_numpy(data.first_event_times) if candidates.needs_first_times else None,
            ).to(self.device)
        self.metrics[stage] = ranking_metrics(self.protocol.normaliser, **shape).to(self.device)
        # Those of a command in inference mode cannot be changed in another.
        self.repeats[stage] = RepeatedTargets().to(self.device)
        # Once per epoch, as the weights do not change within it.
        self._judging = (self.scorer(), counts)

    def _judge(self, stage: str, batch: SequenceBatch) -> JudgedTargets:
        scorer, counts = self._judging or (self.scorer(), None)
        with self._naming_users(batch, "leave such users out, or keep seen items: --protocol.filter_seen false"):
            judged = judge_batch(self, batch, scorer, counts)
        for metrics in self._of_stage(stage):
            metrics.update(judged)
        return judged

    @contextmanager
    def _naming_users(self, batch: SequenceBatch, remedy: str) -> Iterator[None]:
        """Name the users of a batch, by the log's ids, for whom nothing can be drawn, and what to do."""
        try:
            yield
        except NothingToDrawError as error:
            if not error.users:
                raise
            ids = batch.user_ids[list(error.users)].cpu().numpy()
            known = self.user_vocabulary
            names = ids.tolist() if known is None else list(known.external_ids(ids))
            shown = ", ".join(str(name) for name in names[:5]) + (", .." if len(names) > 5 else "")
            reason = str(error).partition("; ")[0]
            raise NothingToDrawError(f"user {shown}: {reason}; {remedy}", error.users) from error

    def _of_stage(self, stage: str) -> tuple[MetricCollection, RepeatedTargets]:
        return cast("MetricCollection", self.metrics[stage]), cast("RepeatedTargets", self.repeats[stage])

    def _log_metrics(self, stage: str) -> None:
        metrics, repeats = self._of_stage(stage)
        # compute() sums over processes, so each of them logs the same number.
        values: dict[str, Any] = metrics.compute()
        for name, value in values.items():
            shown = name in ("HR@10", "NDCG@10")
            # All processes have the same number already; `max` keeps it, while a mean could round.
            self.log(f"{stage}_{name}", value.float(), prog_bar=shown, sync_dist=True, reduce_fx="max")
        self.repeated_targets[stage] = float(repeats.compute())
        metrics.reset()
        repeats.reset()
        self._judging = None


def build_from_hyperparameters(cls: type[Model], hparams: dict[str, Any]) -> Model:
    """Build a model from the hyperparameters of a checkpoint, for Lightning."""
    return cls.from_hyperparameters({name: value for name, value in hparams.items() if name != "_class_path"})
