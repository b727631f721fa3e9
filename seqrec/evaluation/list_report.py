"""A callback that judges the recommended lists themselves while a model is tested. B users, K places of a list."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from seqrec.catalogue.recommend import RecommendOptions, best_items
from seqrec.data.columns import Column
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.report_table import ReportTable, report_table
from seqrec.errors import InputError, check_at_least
from seqrec.evaluation.metrics import (
    LIST_METRICS,
    Calibration,
    Coverage,
    Diversity,
    Gini,
    MeanPopularity,
    RepeatShare,
    UserListMetric,
    UserNovelty,
    column_distance,
    item_codes,
)
from seqrec.evaluation.protocols import Protocol, WholeCatalogue
from seqrec.evaluation.report import finite, interval_text, number_text
from seqrec.registry import did_you_mean
from seqrec.runs.trainer_checks import data_of, is_printed
from seqrec.types import SequenceBatch


class ListReport(pl.Callback):
    """Judges the items that a model recommends in a test or validation, hit or not; off unless metrics are named.

    The lists are the best items of the whole catalogue, without seen ones if the protocol filters these. They are made
    only if metrics are named, by a second pass of the encoder over each batch. Values are logged as `test_Gini@10`,
    next to the ranking metrics. Validations while fitting are not judged.

    - `Coverage`: share of the catalogue that is in a list. `Gini`: how unequally lists use the catalogue.
    - `Popularity`: mean training events of the items. `Novelty`: their mean self-information in bits.
    - `Diversity`: mean distance of the items of a list. `Repeats`: share of items from the user's history.
    - `Calibration`: divergence of a column's values in the list from those in the history.

    With `BaselineComparison`, the lists of the baselines that it compares are judged too, by the same distance.

    `seqrec.evaluation.metrics` names the formula and the paper of each. Their state has the size of the catalogue at
    most, and is summed over processes.

    Args:
        metrics: Names of the metrics, as above. None is none.
        cutoffs: Lengths K of the lists, each at least 1, or 2 with `Diversity`.
        diversity_column: Column of items whose values give the distance of two items: categorical, categories (Jaccard
            distance) or vector (1 - cosine). None takes 1 - the model's own similarity, cosines of its item vectors.
        calibration_column: Column of items, categorical or categories; needed for `Calibration`.

    Raises:
        InputError: if a metric is unknown or twice, a cutoff is too small or twice, or a column is named without its
            metric, or missing.

    Example:
        >>> import lightning.pytorch as pl
        >>> from seqrec import ListReport
        >>> report = ListReport(["Coverage", "Novelty"], cutoffs=[10, 20])
        >>> trainer = pl.Trainer(callbacks=[report], logger=False, enable_checkpointing=False)
    """

    # Name in commands and in JSON.
    key = "lists"

    def __init__(
        self,
        metrics: Sequence[str] | None = None,
        cutoffs: Sequence[int] = (10,),
        diversity_column: str | None = None,
        calibration_column: str | None = None,
    ) -> None:
        self.metrics = tuple(metrics or ())
        self.cutoffs = tuple(cutoffs)
        self.diversity_column = diversity_column
        self.calibration_column = calibration_column
        self.values: dict[str, float] = {}
        self.intervals: dict[str, tuple[float, float]] = {}
        self.others: dict[str, dict[str, float]] = {}
        self._collection: MetricCollection | None = None
        self._scorer: Any = None
        self._options = RecommendOptions()
        self._check()

    def _check(self) -> None:
        for name in self.metrics:
            if name not in LIST_METRICS:
                hint = did_you_mean(name, LIST_METRICS)
                raise InputError(
                    f"lists.metrics has {name!r}, which is unknown; known: {', '.join(LIST_METRICS)}{hint}"
                )
        for argument, given in (("metrics", self.metrics), ("cutoffs", self.cutoffs)):
            if len(set(given)) < len(given):
                raise InputError(f"lists.{argument}={list(given)} has a value twice; name each once")
        if not self.cutoffs:
            raise InputError("lists.cutoffs is empty; name at least one length, such as 10")
        check_at_least(2 if "Diversity" in self.metrics else 1, **{"lists.cutoffs": min(self.cutoffs)})
        columns = {"Diversity": self.diversity_column, "Calibration": self.calibration_column}
        for name, column in columns.items():
            if column is not None and name not in self.metrics:
                raise InputError(
                    f"lists.{name.lower()}_column={column!r} has no effect without {name}; add it to lists.metrics"
                )
        if "Calibration" in self.metrics and self.calibration_column is None:
            raise InputError("Calibration needs the column that it compares: --lists.calibration_column genres")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse before the training what the test after it would refuse; see `on_test_start`."""
        if self.metrics:
            self._built(data_of(trainer, self), pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Build the metrics.

        Raises:
            InputError: if the trainer has no `SequenceDataModule`, the protocol does not rank the whole catalogue for
                one request a user, a list is longer than the catalogue, or the store lacks a column.
        """
        self.values, self.intervals, self.others, self._collection, self._scorer = {}, {}, {}, None, None
        if self.metrics and trainer.state.fn != TrainerFn.FITTING:
            self._collection = self._built(data_of(trainer, self), pl_module)

    def _built(self, data: SequenceDataModule, pl_module: pl.LightningModule) -> MetricCollection:
        model = cast("Any", pl_module)
        protocol: Protocol = model.protocol
        self._refuse(protocol, data)
        counts = torch.from_numpy(data.train_item_counts())
        candidates = cast("WholeCatalogue", protocol.candidates)
        allowed = counts.nonzero().flatten() if candidates.trained_only else None
        self._options = RecommendOptions(max(self.cutoffs), filter_seen=protocol.filter_seen, allowed=allowed)
        builders = self._builders(model, data, counts)
        metrics = {f"{name}@{k}": builders[name](k) for name in self.metrics for k in self.cutoffs}
        # torchmetrics would group metrics with equal states after the first batch.
        collection = MetricCollection(metrics, compute_groups=False)  # type: ignore[arg-type]  # invariant dict
        return collection.to(pl_module.device)

    def _refuse(self, protocol: Protocol, data: SequenceDataModule) -> None:
        candidates = protocol.candidates
        if not isinstance(candidates, WholeCatalogue) or candidates.alive_only:
            raise InputError(
                f"lists.metrics judges lists of the whole catalogue, but protocol {protocol.id} ranks other "
                "candidates: choose --protocol FullRanking, or leave lists.metrics out"
            )
        if max(self.cutoffs) > data.num_items:
            raise InputError(f"lists.cutoffs has {max(self.cutoffs)}, but the catalogue has {data.num_items} items")
        if data.split.prequential:
            raise InputError(
                f"lists.metrics judges one list a user, but the split {data.split.id} asks before each target: leave "
                "data.split.prequential or lists.metrics out"
            )

    def _builders(self, model: Any, data: SequenceDataModule, counts: Tensor) -> dict[str, Callable[[int], Metric]]:
        """Return what makes each metric for a cutoff; columns are read only for metrics that are asked for."""
        found: dict[str, Callable[[int], Metric]] = {
            "Coverage": lambda k: Coverage(counts, k),
            "Gini": lambda k: Gini(counts, k),
            "Popularity": lambda k: MeanPopularity(counts, k),
            "Novelty": lambda k: UserNovelty(counts, k),
            "Repeats": RepeatShare,
        }
        if "Diversity" in self.metrics:
            argument, name = f"lists.diversity_column={self.diversity_column!r}", self.diversity_column
            if name is None:
                distance = _model_distance(model)
            else:
                distance = column_distance(_column(data, name, argument), argument)
            found["Diversity"] = lambda k: Diversity(distance, k)
        if self.calibration_column is not None:
            argument = f"lists.calibration_column={self.calibration_column!r}"
            codes = item_codes(_column(data, self.calibration_column, argument), argument)
            found["Calibration"] = lambda k: Calibration(codes, k)
        return found

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Recommend to the users of a batch, and judge the lists."""
        if self._collection is None:
            return
        model = cast("Any", pl_module)
        if self._scorer is None:
            self._scorer = model.scorer()
        with torch.no_grad():
            best = best_items(model, self._scorer, batch, self._options)
            self._collection.update(best, seen=batch.seen_events)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the metrics of all users."""
        if self._collection is None:
            return
        # compute() sums over processes, so each of them logs the same number.
        values: dict[str, Tensor] = self._collection.compute()
        self.values = self._ordered(values)
        judged = {name: metric for name, metric in self._collection.items() if isinstance(metric, UserListMetric)}
        self.intervals = {name: metric.interval for name, metric in judged.items()}
        prefix = "test" if trainer.testing else "val"
        for name, value in values.items():
            pl_module.log(f"{prefix}_{name}", value.float(), sync_dist=True, reduce_fx="max")
        self._collection = self._scorer = None

    on_validation_start, on_validation_batch_end = on_test_start, on_test_batch_end
    on_validation_epoch_end = on_test_epoch_end

    def judge_others(
        self,
        others: Iterable[Any],
        tested: pl.LightningModule,
        data: SequenceDataModule,
        batches: Callable[[], Iterable[SequenceBatch]],
    ) -> None:
        """Judge the lists of other models as those of the tested one, by its protocol and its distance of items.

        One process judges all users; others need not call it.

        Args:
            others: The models, counted or trained.
            tested: The model of the last test or validation.
            data: Its log.
            batches: Makes batches of the users who were judged, on the device of the models.
        """
        collection = self._built(data, tested)
        for metric in collection.values():
            metric.distributed_available_fn = _is_alone
        for other in others:
            collection.reset()
            scorer = other.scorer()
            with torch.no_grad():
                for batch in batches():
                    best = best_items(other, scorer, batch, self._options)
                    collection.update(best.to(tested.device), seen=batch.seen_events.to(tested.device))
            self.others[other.title] = self._ordered(collection.compute())

    def _ordered(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Return values in the order of `metrics`, by which the collection does not sort."""
        return {f"{name}@{k}": float(values[f"{name}@{k}"]) for name in self.metrics for k in self.cutoffs}

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Print the table, in the first process, unless the command is not `verbose`."""
        if self.values and is_printed(trainer, stage):
            print(self.table())

    def table(self) -> ReportTable | None:
        """Return a table of the metrics of the last test or validation; None without any."""
        if not self.values:
            return None
        return report_table(*lists_cells(self.values, self.intervals, self.others))

    def as_dict(self) -> dict[str, Any] | None:
        """Return values, intervals and columns as plain values, for JSON; None without metrics. NaN is None."""
        if not self.values:
            return None
        pairs = {name: [finite(end) for end in pair] for name, pair in self.intervals.items()}
        return {
            "metrics": {name: finite(value) for name, value in self.values.items()},
            "intervals": pairs,
            "baselines": {
                title: {name: finite(value) for name, value in values.items()} for title, values in self.others.items()
            },
            "diversity_column": self.diversity_column,
            "calibration_column": self.calibration_column,
        }


def lists_cells(
    values: Mapping[str, float | None],
    intervals: Mapping[str, Sequence[float | None]],
    others: Mapping[str, Mapping[str, float | None]],
) -> tuple[list[str], list[list[str]]]:
    """Return column names, and a line for each metric of lists: the model's value, its interval, and other models'.

    Example:
        >>> lists_cells({"Gini@10": 0.5}, {}, {"Popularity": {"Gini@10": 0.98}})
        (['lists', 'value', '95% interval', 'Popularity'], [['Gini@10', '0.5000', '', '0.9800']])
    """
    lines = [
        [
            name,
            number_text(value),
            interval_text(intervals.get(name)),
            *(number_text(other.get(name)) for other in others.values()),
        ]
        for name, value in values.items()
    ]
    return ["lists", "value", "95% interval", *others], lines


def _column(data: SequenceDataModule, name: str, argument: str) -> Column:
    columns = data.store.item_columns
    if name not in columns:
        known = f"it has {', '.join(columns)}" if columns else "it has none: name them in data.schema.items"
        raise InputError(f"{argument} is no column of the store's items; {known}{did_you_mean(name, columns)}")
    return columns[name]


def _is_alone() -> bool:
    """Tell a metric that there are no other processes to sum over."""
    return False


def _model_distance(model: Any) -> Callable[[Tensor], Tensor]:
    """Return 1 minus the model's similarity of items, at least 0."""
    similarity = model.item_similarity()

    def distance(item_ids: Tensor) -> Tensor:
        flat = item_ids.flatten()
        others = item_ids.repeat_interleave(item_ids.shape[1], 0)
        similarities: Tensor = similarity.scorer.score(similarity.states(flat), others)
        return (1 - similarities.double()).clamp_min(0).view(*item_ids.shape, item_ids.shape[1])

    return distance
