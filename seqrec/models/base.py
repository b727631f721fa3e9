"""What all recommenders share: evaluation by a stated protocol, prediction of the best items."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, overload

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from seqrec import __version__
from seqrec.catalogue.scorer import Scorer
from seqrec.catalogue.search import ExactSearch, ItemSearch
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.vocabulary import Vocabulary
from seqrec.evaluation.metrics import ranking_metrics
from seqrec.evaluation.protocols import FullRanking, Protocol, TrainingCounts
from seqrec.models.histories import recommend
from seqrec.models.recommending import RecommendOptions, best_items
from seqrec.registry import public_path
from seqrec.runs.callbacks import FiniteLoss, StepSeeds, UseAtomicCheckpoints
from seqrec.runs.trainer_checks import check_trainer
from seqrec.types import History, JudgedTargets, Recommendations, SequenceBatch

if TYPE_CHECKING:
    import polars

# Where a checkpoint says what it is, beside what Lightning writes.
CHECKPOINT_KEY = "seqrec"


class Recommender(pl.LightningModule, ABC):
    """A model that scores items for users by dot products of states and item vectors.

    It logs `val_HR@K`, `val_NDCG@K`, `test_HR@K` and `test_NDCG@K` for K = 5, 10, 20, and recall and precision
    where the split holds out several items a user.

    Attributes:
        protocol: How targets are ranked; full ranking without seen items unless set. A trainer's command on a
            `SequenceDataModule` replaces it by the same one with the data's split and order of events.
        terms: What `predict_step` returns for each user.
        search: How the best items are found; the whole catalogue is scored unless set.
        item_vocabulary: The log's item ids; a trainer's commands on a `SequenceDataModule` set it, and
            `seqrec.inference.load` does. None before.
        user_vocabulary: The log's user ids, likewise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Protocol = FullRanking()
        self.terms = RecommendOptions()
        self.search: ItemSearch = ExactSearch()
        self.item_vocabulary: Vocabulary | None = None
        self.user_vocabulary: Vocabulary | None = None
        self.metrics = nn.ModuleDict({stage: ranking_metrics() for stage in ("val", "test")})
        self._judging: tuple[Scorer, TrainingCounts | None] | None = None

    @property
    def title(self) -> str:
        """What tables call the model."""
        return type(self).__name__

    @abstractmethod
    def last_states(self, batch: SequenceBatch) -> Tensor:
        """(B, D) states behind each row's newest event."""

    @abstractmethod
    def scorer(self) -> Scorer:
        """Scores of items for states, with the present weights."""

    def configure_callbacks(self) -> list[pl.Callback]:
        """Whole checkpoint files, randomness that a resumed run repeats, and an end to runs that diverge."""
        # Asked again by each of the trainer's commands.
        present = {type(callback) for callback in getattr(self._trainer, "callbacks", [])}
        return [
            callback()
            for callback in (UseAtomicCheckpoints, StepSeeds, FiniteLoss)
            if callback not in present
        ]

    def setup(self, stage: str) -> None:
        """Refuse a trainer that does not go with recommenders (`check_trainer`); take the log's ids from the data."""
        check_trainer(self.trainer)
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, SequenceDataModule):
            self.item_vocabulary = data.store.item_vocabulary
            self.user_vocabulary = data.store.user_vocabulary

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the checkpoint say which class it is of, and whose item ids it means; see `load`."""
        record = {"version": __version__, "class_path": public_path(type(self))}
        data = getattr(self._trainer, "datamodule", None)
        if isinstance(data, SequenceDataModule):
            record |= {"store": str(data.store_directory.absolute()), "items": data.store.items_digest}
        checkpoint[CHECKPOINT_KEY] = record

    # Lightning hands what a step returns to callbacks as it is, but its types know tensors and mappings alone.
    def validation_step(  # type: ignore[override]
        self, batch: SequenceBatch, batch_idx: int
    ) -> JudgedTargets:
        """Add a batch to the validation metrics; returns its ranks."""
        return self._judge("val", batch)

    def test_step(  # type: ignore[override]
        self, batch: SequenceBatch, batch_idx: int
    ) -> JudgedTargets:
        """Add a batch to the test metrics; returns its ranks."""
        return self._judge("test", batch)

    def on_validation_epoch_start(self) -> None:
        """Take split, order and counts from the data, and the scorer of the present weights."""
        self._start_judging("val")

    def on_test_epoch_start(self) -> None:
        """Take split, order and counts from the data, and the scorer of the present weights."""
        self._start_judging("test")

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics of all users."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics of all users."""
        self._log_metrics("test")

    def predict_step(self, batch: SequenceBatch, batch_idx: int) -> Recommendations:
        """Best items for each user of the batch, by `terms`."""
        return best_items(self, self.scorer(), batch, self.terms)

    @overload
    def recommend(
        self,
        histories: Sequence[Sequence[Any]],
        top_k: int = ...,
        *,
        filter_seen: bool = ...,
        block: Collection[Any] | None = ...,
        max_length: int | None = ...,
        batch_size: int = ...,
    ) -> list[list[Any]]: ...
    @overload
    def recommend(
        self,
        histories: polars.DataFrame,
        top_k: int = ...,
        *,
        filter_seen: bool = ...,
        block: Collection[Any] | None = ...,
        max_length: int | None = ...,
        batch_size: int = ...,
    ) -> polars.DataFrame: ...
    @overload
    def recommend(
        self,
        histories: History,
        top_k: int = ...,
        *,
        filter_seen: bool = ...,
        block: Collection[Any] | None = ...,
        max_length: int | None = ...,
        batch_size: int = ...,
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
    ) -> Any:
        """Best next items for users given by their histories, who need not have been in training.

        Args:
            histories: One of: for each user a list of the log's own item ids, oldest first; a frame with the columns
                user_id and item_id, and with timestamp unless each user's rows are in time order; a `History` of
                internal ids.
            top_k: Items a user.
            filter_seen: Whether items of the user's history are left out.
            block: The log's ids of items that nobody gets.
            max_length: Newest events that the model sees; None is what the model was trained with.
            batch_size: Users encoded at a time.

        Returns:
            For lists, the log's own item ids for each user, best first. For a frame, a frame with the columns
            user_id, item_id, rank (1 is best) and score, users in the order in which they first stand there. For a
            `History`, internal ids and scores on the CPU. Fewer than `top_k` where no more are allowed.

        Raises:
            InputError: a user without any known item, a number out of range, a frame without these columns, or a model
                that does not know the log's ids.

        Warns:
            UserWarning: items that the model does not know were dropped; says how many.
        """
        return recommend(
            self,
            histories,
            top_k=top_k,
            filter_seen=filter_seen,
            block=block,
            max_length=max_length,
            batch_size=batch_size,
        )

    def _start_judging(self, stage: str) -> None:
        data, counts, several = getattr(self.trainer, "datamodule", None), None, False
        if isinstance(data, SequenceDataModule):
            self.protocol = self.protocol.on(data.split, data.event_order)
            several = data.split.several_targets
            if self.protocol.candidates.needs_item_counts:
                counts = TrainingCounts(torch.from_numpy(data.train_item_counts())).to(self.device)
        self.metrics[stage] = ranking_metrics(self.protocol.normaliser, several_targets=several).to(
            self.device
        )
        # Once an epoch: nothing that scores changes in between.
        self._judging = (self.scorer(), counts)

    def _judge(self, stage: str, batch: SequenceBatch) -> JudgedTargets:
        scorer, counts = self._judging or (self.scorer(), None)
        judged = self.protocol.judge(self.last_states(batch), batch, scorer, counts)
        self._metrics(stage).update(judged)
        return judged

    def _metrics(self, stage: str) -> MetricCollection:
        metrics = self.metrics[stage]
        assert isinstance(metrics, MetricCollection)
        return metrics

    def _log_metrics(self, stage: str) -> None:
        # compute() adds up over ranks, so every rank logs the same number.
        values: dict[str, Any] = self._metrics(stage).compute()
        for name, value in values.items():
            shown = name in ("HR@10", "NDCG@10")
            # Equal on all ranks already, which Lightning does not know; a mean of three could round.
            self.log(f"{stage}_{name}", value.float(), prog_bar=shown, sync_dist=True, reduce_fx="max")
        self._metrics(stage).reset()
        self._judging = None
