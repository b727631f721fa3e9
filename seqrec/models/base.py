"""What all recommenders share: evaluation by a stated protocol, prediction of the best items."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn
from torchmetrics import MetricCollection

from seqrec.callbacks import FiniteLoss, StepSeeds
from seqrec.metrics import NDCG, HitRate
from seqrec.protocols import FullRanking, Protocol
from seqrec.scoring import Scorer
from seqrec.types import Recommendations, SequenceBatch

CUTOFFS = (5, 10, 20)


class Recommender(pl.LightningModule, ABC):
    """A model that scores items for users by dot products of states and item vectors.

    It logs `val_HR@K`, `val_NDCG@K`, `test_HR@K` and `test_NDCG@K` for K = 5, 10, 20.

    Attributes:
        protocol: How targets are ranked; full ranking without seen items unless set.
        top_k: Items a user that `predict_step` returns.
        filter_seen: Whether `predict_step` leaves out items of the user's history.
    """

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Protocol = FullRanking()
        self.top_k = 10
        self.filter_seen = True
        self.metrics = nn.ModuleDict({stage: ranking_metrics() for stage in ("val", "test")})

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
        """Randomness of a training step that a resumed run repeats, and an end to runs that diverge."""
        # Asked again by each of the trainer's commands.
        present = {type(callback) for callback in getattr(self._trainer, "callbacks", [])}
        return [callback() for callback in (StepSeeds, FiniteLoss) if callback not in present]

    def target_metrics(self, batch: SequenceBatch, metrics: MetricCollection) -> None:
        """Rank the batch's last targets by the protocol and add them to `metrics`."""
        metrics.update(self.protocol.ranks(self.last_states(batch), batch, self.scorer()))

    def validation_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        """Add a batch to the validation metrics."""
        self.target_metrics(batch, self._metrics("val"))

    def test_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        """Add a batch to the test metrics."""
        self.target_metrics(batch, self._metrics("test"))

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics of all users."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics of all users."""
        self._log_metrics("test")

    def predict_step(self, batch: SequenceBatch, batch_idx: int) -> Recommendations:
        """Best `top_k` items for each user of the batch."""
        exclude = batch.seen if self.filter_seen else None
        return self.scorer().top_k(self.last_states(batch), self.top_k, batch.user_ids, exclude=exclude)

    def _metrics(self, stage: str) -> MetricCollection:
        metrics = self.metrics[stage]
        assert isinstance(metrics, MetricCollection)
        return metrics

    def _log_metrics(self, stage: str) -> None:
        # compute() adds up over ranks, so every rank logs the same number.
        values: dict[str, Any] = self._metrics(stage).compute()
        for name, value in values.items():
            shown = name in ("HR@10", "NDCG@10")
            # Equal on all ranks already, which Lightning does not know.
            self.log(f"{stage}_{name}", value.float(), prog_bar=shown, sync_dist=True)
        self._metrics(stage).reset()


def ranking_metrics() -> MetricCollection:
    """HR@K and NDCG@K for K = 5, 10, 20."""
    metrics = {f"HR@{k}": HitRate(k) for k in CUTOFFS} | {f"NDCG@{k}": NDCG(k) for k in CUTOFFS}
    # Groups would be formed by equal values after the first batch, and HR@5 = HR@10 there can be chance.
    return MetricCollection(metrics, compute_groups=False)  # type: ignore[arg-type]  # invariant dict
