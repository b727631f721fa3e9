"""A callback that compares a model with baselines, user by user, at the end of a test."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import lightning.pytorch as pl
import numpy as np
import polars
from lightning.pytorch.trainer.states import TrainerFn

from seqrec.catalogue.distributed import gather_objects
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.store import EventStore
from seqrec.errors import InputError
from seqrec.evaluation.list_report import ListReport
from seqrec.evaluation.metrics import COLD, WARM
from seqrec.evaluation.report import report_parts
from seqrec.evaluation.results.comparison import Comparison, Difference, Estimate, compare
from seqrec.evaluation.results.file import Results
from seqrec.evaluation.results.writer import judged_targets, results_frame
from seqrec.models.baselines.baseline import Baseline
from seqrec.models.baselines.item_knn import ItemKNN
from seqrec.models.baselines.judged import BaselineResults
from seqrec.models.baselines.markov import Markov
from seqrec.models.baselines.popularity import Popularity
from seqrec.models.baselines.recent_items import RecentItems
from seqrec.models.recommender import Recommender
from seqrec.models.sequential import SequentialRecommender
from seqrec.runs.trainer_checks import caveats, is_printed
from seqrec.training.losses import FullSoftmax

# Beyond one of these, baselines are only compared on demand: on one core they would take more than some three minutes,
# and their tables more than some 700 MB.
MAX_EVENTS, MAX_ITEMS, MAX_SCORES = 20_000_000, 200_000, 5_000_000_000
# The metrics with intervals. The second one decides whether a baseline is worse.
METRICS, DECIDING = ("HR@10", "NDCG@10"), "NDCG@10"
# Models may log further metrics, which baselines do not have.
RANK_METRIC = re.compile(r"(HR|MRR|NDCG|Recall|Precision)@\d+")
# Below this dropout, more may help.
HIGH_DROPOUT = 0.5


@dataclass(frozen=True)
class BaselineReport:
    """Baselines compared with a model on the same targets.

    Attributes:
        rows: Metrics of each baseline by name, as the model's are named.
        comparison: Intervals of the model and the baselines, and paired differences to the model, for HR@10 and
            NDCG@10; None if no baseline was judged.
        not_worse: Baselines that the model does not beat: NDCG@10 is as high or higher, or the 95% interval of the
            paired difference contains 0.
        notes: Lines for people: what was left out, which baselines are not worse, and what to try.
    """

    rows: dict[str, dict[str, float]]
    comparison: Comparison | None
    not_worse: list[str]
    notes: list[str]

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The interval of NDCG@10 of each model by name; empty if no baseline was judged."""
        estimates = () if self.comparison is None else self.comparison.estimates
        return {each.run: each.interval for each in estimates if each.metric == DECIDING}

    def as_dict(self) -> dict[str, Any]:
        """Return intervals, differences and notes as plain values, for JSON."""
        comparison = None if self.comparison is None else asdict(self.comparison)
        return {"not_worse": self.not_worse, "notes": self.notes, "comparison": comparison}


class BaselineComparison(pl.Callback):
    """Compares the model with `Popularity`, `Markov` and `ItemKNN` after each test and validation by a trainer.

    If seen items are candidates (`filter_seen=False`), `RecentItems` is compared too. The baselines have their default
    arguments and are judged on the same targets by the same protocol, except that they read no time of a request. Their
    results are kept in the store's folder: another run with the same store, split, protocol and length computes
    nothing. If a `ListReport` judges the model's lists, it judges theirs, too. Trainer commands print a table unless
    they are called with `verbose=False`. Validations while fitting and a `fast_dev_run` are not compared.

    Args:
        enabled: Whether baselines are compared. None: unless the log has more than 20 million events or 200,000 items,
            or the catalogue would be scored for so many targets that these are more than 5 billion scores.

    Raises:
        InputError: if a test has no `SequenceDataModule`, or the model is no `Recommender`.

    Example:
        >>> import lightning.pytorch as pl
        >>> from seqrec import BaselineComparison
        >>> trainer = pl.Trainer(callbacks=[BaselineComparison()], logger=False, enable_checkpointing=False)
    """

    def __init__(self, enabled: bool | None = None) -> None:
        self.enabled = enabled
        self._judged: _Judged | None = None
        self._frames: list[polars.DataFrame] | None = None
        self._collects = False

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start to collect the model's ranks."""
        self._judged, self._frames = None, None
        fitting = trainer.state.fn == TrainerFn.FITTING
        if self.enabled is False or fitting or getattr(trainer, "fast_dev_run", False):
            return
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, SequenceDataModule) or not isinstance(pl_module, Recommender):
            raise InputError(
                "BaselineComparison needs a Recommender and a SequenceDataModule, which has the log; test with them, "
                "or leave the callback out"
            )
        self._frames, self._collects = [], bool(self.enabled) or _excess(data.store) is None

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect a batch's targets.

        Raises:
            TypeError: if the model's step returns something else.
        """
        if self._frames is None or not self._collects:
            return
        judged = judged_targets(pl_module, "test_step" if trainer.testing else "validation_step", outputs)
        store = trainer.datamodule.store  # type: ignore[attr-defined]  # checked at the start
        self._frames.append(results_frame(judged.to("cpu"), store, None))

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring the targets of all processes together."""
        if self._frames is None:
            return
        assert isinstance(pl_module, Recommender)
        stage = "test" if trainer.testing else "validate"
        prefix = {"test": "test_", "validate": "val_"}[stage]
        frames = [frame for of_rank in gather_objects(self._frames) for frame in of_rank]
        frame = polars.concat(frames).sort("user_id", "item_id", "timestamp") if frames else polars.DataFrame()
        metrics = trainer.callback_metrics.items()
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by its callback connector
        self._judged = _Judged(
            stage=stage,
            model=pl_module,
            data=trainer.datamodule,  # type: ignore[attr-defined]  # as above
            frame=frame,
            metrics={name.removeprefix(prefix): float(x) for name, x in metrics if name.startswith(prefix)},
            caveats=caveats(trainer, pl_module, prefix.removesuffix("_")),
            forced=bool(self.enabled),
            lists=next((each for each in callbacks if isinstance(each, ListReport) and each.values), None),
        )
        self._frames = None

    on_validation_start, on_validation_batch_end = on_test_start, on_test_batch_end
    on_validation_end = on_test_end

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Print the table, in the first process, unless the command is not `verbose`."""
        if self._judged and is_printed(trainer, stage):
            print(self._judged.text())

    @property
    def report(self) -> BaselineReport | None:
        """The comparison of the last test or validation, computed when it is first read; None without one.

        Only one process of a job may read it.
        """
        return None if self._judged is None else self._judged.report


@dataclass(frozen=True)
class _Judged:
    """A model's results of a stage, and the report on them; `lists` has those of the model, if they are judged."""

    stage: str
    model: Recommender
    data: SequenceDataModule
    frame: polars.DataFrame
    metrics: dict[str, float]
    caveats: list[str]
    forced: bool
    lists: ListReport | None

    @cached_property
    def report(self) -> BaselineReport:
        baselines = self._baselines()
        names = " and ".join(", ".join(each.__name__ for each in baselines).rsplit(", ", 1))
        if not self.forced and (excess := _excess(self.data.store, len(self.frame))):
            remedy = "--baselines.enabled true, or BaselineComparison(enabled=True), compares them anyway"
            return BaselineReport({}, None, [], [f"{names} are left out: {excess}; {remedy}"])
        judged = BaselineResults(self.data, self.model.protocol, self.stage)
        whole = judged.of(baselines)
        results = [self._on_same_users(each) for each in whole]
        title, protocol = self.model.title, self.model.protocol
        header = replace(results[0].header, model=title, protocol=protocol.id, settings=protocol.describe())
        # Of the protocol, only that the model reads the time of a request may differ.
        runs = [Results(title, header, self.frame), *results]
        comparison = compare(runs, metrics=METRICS, across_protocols=protocol.request_time)
        lost = [] if self.caveats else list(_not_worse(comparison))
        notes = [_sentence(title, each) for each in lost]
        if lost and isinstance(self.model, SequentialRecommender):
            notes.append(f"to try: {', '.join(_remedies(self.model))}")
        if protocol.request_time:
            notes.append(f"{title} reads the time of the request, {names} do not")
        if self.lists is not None and len(whole[0].frame) == len(self.frame):
            judged.judge_lists(baselines, self.lists, self.model)
        elif self.lists is not None:
            notes.append(f"lists of {names} are not judged, as the trainer limited its batches")
        rows = {each.name: self._metrics_of(each) for each in results}
        return BaselineReport(rows, comparison, [each.run for each in lost], notes)

    def text(self) -> str:
        report = self.report
        users = f" of {self.frame['user_id'].n_unique():,} users" if len(self.frame) else ""
        parts = report_parts(
            f"{self.stage}{users}, protocol {self.model.protocol.id}",
            {self.model.title: self.metrics, **report.rows},
            intervals=report.intervals,
            caveats=self.caveats,
            notes=report.notes,
        )
        return "\n".join(map(str, parts))

    def _baselines(self) -> list[type[Baseline]]:
        every: list[type[Baseline]] = [Popularity, Markov, ItemKNN]
        every += [] if self.model.protocol.filter_seen else [RecentItems]
        return [each for each in every if each.__name__ != self.model.title]

    def _on_same_users(self, results: Results) -> Results:
        """Return only the users that the model judged, if the trainer limited its batches."""
        if len(results.frame) == len(self.frame):
            return results
        judged = self.frame.select("user_id").unique()
        frame = results.frame.join(judged, on="user_id", how="semi").sort("user_id", "item_id", "timestamp")
        return Results(results.name, results.header, frame)

    def _metrics_of(self, results: Results) -> dict[str, float]:
        """Return the metrics that the model has, and of cold and warm items if the split hides some."""
        names = [name for name in self.metrics if RANK_METRIC.fullmatch(name)]
        parts = {"": results}
        if (hidden := self.data.hidden_items) is not None:
            cold = hidden[self.data.store.item_vocabulary.lookup_series(results.frame["item_id"])]
            parts |= {COLD: results.only(cold), WARM: results.only(~cold)}
        found: dict[str, float] = {}
        for prefix, part in parts.items():
            values = part.metrics(names)
            means = values.mean(0) if len(values) else np.full(len(names), np.nan)
            found |= {f"{prefix}{name}": float(mean) for name, mean in zip(names, means, strict=True)}
        return found


def _excess(store: EventStore, targets: int = 0) -> str | None:
    """Return why a log is too large to compare baselines unasked; None if it is not."""
    sizes = {
        "events": (store.num_events, MAX_EVENTS),
        "items": (store.num_items, MAX_ITEMS),
        "scores (targets times items)": (targets * store.num_items, MAX_SCORES),
    }
    for name, (size, most) in sizes.items():
        if size > most:
            return f"{size:,} {name} are more than {most:,}"
    return None


def _not_worse(comparison: Comparison) -> Iterator[Estimate]:
    for each in comparison.estimates:
        if each.metric == DECIDING and each.difference is not None and _is_not_worse(each.difference):
            yield each


def _is_not_worse(difference: Difference) -> bool:
    """Return whether a baseline's mean is as high or higher, or 0 is in the interval of its difference."""
    return difference.mean >= 0 or difference.interval[1] >= 0


def _sentence(model: str, baseline: Estimate) -> str:
    change, name = baseline.difference, baseline.run
    assert change is not None
    low, high = change.interval
    verdict = "better" if low > 0 else "not worse"
    size = f"{'higher' if change.mean > 0 else 'lower'} by {abs(change.mean):.4f}" if change.mean else "the same"
    noise = "" if change.mean >= 0 else ", within noise"
    pairs = f"95% interval of the paired difference {low:+.4f} to {high:+.4f}, {baseline.users:,} users"
    return f"{name} is {verdict} than {model}: its {DECIDING} is {size}{noise} ({pairs})"


def _remedies(model: SequentialRecommender) -> Iterator[str]:
    yield "more updates (longer patience, smaller batches)"
    dropout = model.hparams.get("dropout")
    if isinstance(dropout, (int, float)) and dropout < HIGH_DROPOUT:
        yield f"dropout up to {HIGH_DROPOUT}"
    if not isinstance(model.loss, FullSoftmax):
        yield "FullSoftmax as the loss"
    yield "a shorter max_length"
