"""A callback that also ranks, in a test, items that were shown at random. B users, C items of a user, N of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import polars
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.data.conditions import condition_error, event_condition
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.report_table import ReportTable, report_table
from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID
from seqrec.data.sources import Table
from seqrec.data.splits import judged_ranges
from seqrec.data.store import EventStore
from seqrec.errors import InputError
from seqrec.evaluation.metrics import EXPOSED, UserMean, auc, hit_rate, ndcg
from seqrec.evaluation.report import finite, interval_text
from seqrec.evaluation.target_ranks import Targets, candidate_ranks
from seqrec.runs.trainer_checks import data_of, is_printed
from seqrec.types import JudgedTargets, RaggedItems, SequenceBatch

CUTOFFS = (5, 10)
METRICS = ("AUC", *(f"{name}@{k}" for name in ("HR", "NDCG") for k in CUTOFFS))
Int64 = NDArray[np.int64]
# After all times.
NEVER = np.iinfo(np.int64).max


class ExposureReport(pl.Callback):
    """Also ranks, in a test, the items that each user was shown at random; off unless a log of them is named.

    Users can only meet items that a service shows, so an ordinary test favours models that agree with it. Items that
    were shown at random are free of this (Gao et al. 2022, KuaiRand: An Unbiased Sequential Recommendation Dataset with
    Randomly Exposed Videos). The users, their histories and the model's states are those of the ordinary test. The
    candidates of a user are the items that it was shown at random after its history, each once, seen before or not. The
    targets are the items that met the condition at least once. A user is judged if it has targets and other candidates.

    The table has the model, `Popularity` (training events of each item) and `Chance` (all scores equal). Values are
    logged as `test_exposed_AUC` and so on, means over users:

    - `AUC`: share of the pairs of a target and another candidate in which the target is ahead; ties count half.
    - `HR@K` and `NDCG@K` among the candidates, which are few: compare them with `Chance`.

    Train only on what was before the exposures, with `GlobalTime`. With another split, training contains other users'
    events of the same days.

    Args:
        path: The log of random exposures: a CSV, TSV or Parquet file, or a glob of some, in one of the forms that
            `Table` reads. KuaiRand's is `log_random_4_22_to_5_08_1k.csv`. None is none.
        positive: SQL condition on its columns that makes an exposure a target.
        user: Column of user ids.
        item: Column of item ids.
        timestamp: Column of times, in the unit of the store.

    Example:
        >>> import lightning.pytorch as pl
        >>> from seqrec import ExposureReport
        >>> report = ExposureReport("KuaiRand-1K/data/log_random_4_22_to_5_08_1k.csv", positive="long_view = 1")
        >>> trainer = pl.Trainer(callbacks=[report], logger=False, enable_checkpointing=False)
    """

    # Name in commands and in JSON.
    key = "exposures"

    def __init__(
        self,
        path: str | None = None,
        positive: str = "is_click = 1",
        user: str = "user_id",
        item: str = "video_id",
        timestamp: str = "time_ms",
    ) -> None:
        self.path = path
        self.positive = positive
        self.user = user
        self.item = item
        self.timestamp = timestamp
        self.protocol = ""
        self.models: dict[str, dict[str, float]] = {}
        self.intervals: dict[str, dict[str, tuple[float, float]]] = {}
        self.users = 0
        self._exposures: Exposures | None = None
        self._means: dict[str, dict[str, UserMean]] = {}
        self._scorers: dict[str, Scorer] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse before the training what the test after it would refuse; see `on_test_start`."""
        if self.path is not None:
            self._read(trainer, self.path)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the exposures.

        Raises:
            InputError: if the trainer has no `SequenceDataModule`, the split is prequential, the store or the log has
                no times, a column is missing, the condition is wrong, or no exposure can be judged.
            MissingInputError: if the file does not exist.
        """
        self.models, self.intervals, self._exposures, self._scorers = {}, {}, None, {}
        if self.path is None:
            return
        data, exposures = self._read(trainer, self.path)
        self._exposures, model = exposures.to(pl_module.device), cast("Any", pl_module)
        asked = "-requesttime" if model.reads_request_time else ""
        self.protocol = f"exposed({' '.join(self.positive.split())})-seenin-tiemean-{data.split.id}{asked}"
        counts = torch.from_numpy(data.train_item_counts()).double().unsqueeze(1).to(pl_module.device)
        self._scorers = {"Popularity": Scorer(counts), "Chance": Scorer(torch.zeros_like(counts))}
        self._scorers.pop(model.title, None)
        self._means = {
            name: {metric: UserMean().to(pl_module.device) for metric in METRICS}
            for name in (model.title, *self._scorers)
        }

    def _read(self, trainer: pl.Trainer, path: str) -> tuple[SequenceDataModule, Exposures]:
        data = data_of(trainer, self)
        if data.split.prequential:
            raise InputError(
                f"exposures.path judges one state a user, but the split {data.split.id} asks before each target: leave "
                "data.split.prequential or exposures.path out"
            )
        source = Table(path, user=self.user, item=self.item, timestamp=self.timestamp)
        return data, read_exposures(source, self.positive, data.store, _ends_of_histories(data))

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: SequenceBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Rank the exposed items of a batch's users."""
        if self._exposures is None:
            return
        model, exposures = cast("Any", pl_module), self._exposures
        chosen = exposures.counts[batch.user_ids].nonzero().flatten()
        if not len(chosen):
            return
        if model.title not in self._scorers:
            self._scorers = {model.title: model.scorer(), **self._scorers}
        with torch.no_grad():
            if model.reads_request_time:
                batch = batch.asked_at(exposures.first_times[batch.user_ids])
            states, users = model.last_states(batch)[chosen], batch.user_ids[chosen]
            targets, others = exposures.candidates(users)
            for name, scorer in self._scorers.items():
                own = states if name == model.title else states.new_ones((len(users), 1), dtype=torch.float64)
                judged = JudgedTargets(
                    user_ids=users,
                    history_lengths=batch.seen_events.counts[chosen],
                    rows=targets.rows,
                    item_ids=targets.item_ids,
                    ranks=candidate_ranks(scorer, own, targets, others),
                    repeated=torch.zeros_like(targets.rows, dtype=torch.bool),
                )
                for metric, values in _values(judged, (others > 0).sum(1)).items():
                    self._means[name][metric].update(values)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the model's metrics of all users."""
        if self._exposures is None:
            return
        # compute() sums over processes, so each of them logs the same number.
        self.models = {name: {m: float(mean.compute()) for m, mean in own.items()} for name, own in self._means.items()}
        self.intervals = {name: {m: mean.interval for m, mean in own.items()} for name, own in self._means.items()}
        title = next(iter(self._means))
        self.users = self._means[title]["AUC"].users
        for metric, value in self.models[title].items():
            pl_module.log(f"test_{EXPOSED}{metric}", value, sync_dist=True, reduce_fx="max")
        self._exposures, self._scorers = None, {}

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Print the table, in the first process, unless the command is not `verbose`."""
        if stage == "test" and self.models and is_printed(trainer, stage):
            print(self.table())

    def table(self) -> ReportTable | None:
        """Return a table of the last test, with the number of users and the protocol as its title; None without one."""
        if not self.models:
            return None
        rows = [
            [name, *(f"{value:.4f}" for value in values.values()), interval_text(self.intervals[name]["AUC"])]
            for name, values in self.models.items()
        ]
        heading = f"items shown at random to {self.users:,} of these users, protocol {self.protocol}"
        return report_table(["model", *METRICS, "AUC, 95% interval"], rows, title=heading)

    def as_dict(self) -> dict[str, Any] | None:
        """Return protocol, users, metrics and intervals as plain values, for JSON; None without exposures."""
        if not self.models:
            return None
        plain = {name: {m: finite(value) for m, value in values.items()} for name, values in self.models.items()}
        ends = {name: {m: [*map(finite, pair)] for m, pair in own.items()} for name, own in self.intervals.items()}
        return {"protocol": self.protocol, "users": self.users, "models": plain, "intervals": ends}


@dataclass(frozen=True)
class Exposures(RaggedItems):
    """The items that users were shown at random, of users with targets and others; U users of the store.

    Attributes:
        item_ids: (N,) int64 internal ids, ascending and distinct for each user.
        offsets: (U + 2,) int64, as in `RaggedItems`; row u is that of user u, from 1.
        is_target: (N,) bool, whether the item met the condition.
        first_times: (U + 1,) int64, time of each user's first exposure; of others, `NEVER` or that of the newest event.
    """

    is_target: Tensor
    first_times: Tensor

    def candidates(self, user_ids: Tensor) -> tuple[Targets, Tensor]:
        """Return the targets of users (B,) who have items, and their other candidates (B, C), padded with 0."""
        places, is_shown = self.places_of(user_ids)
        is_target = self.is_target[places] & is_shown
        rows, columns = is_target.nonzero(as_tuple=True)
        item_ids = self.item_ids[places]
        return Targets(rows, item_ids[rows, columns]), item_ids.where(is_shown & ~is_target, 0)


def read_exposures(source: Table, positive: str, store: EventStore, known: Int64) -> Exposures:
    """Read the exposures of users who have targets and others after their history.

    Args:
        source: The log of exposures.
        positive: Condition that makes an exposure a target; null counts as false.
        store: The store, with the ids that the model knows.
        known: (U,) time of the newest event of each user's history; `NEVER` for users who are not judged.

    Raises:
        InputError: if a column is missing, the condition is wrong, or no user can be judged.
        MissingInputError: if the file does not exist.
    """
    argument = f"exposures.path={source.path!r}"
    try:
        frame = source.scan()
    except InputError as error:
        raise type(error)(f"exposures: {error}") from error
    try:
        met = event_condition(frame, positive, "exposures.positive").fill_null(value=False).alias("met")
        rows = frame.select(USER_ID, ITEM_ID, TIMESTAMP, met).collect()
    except polars.exceptions.PolarsError as error:
        raise condition_error(positive, "exposures.positive", error) from error
    users = store.user_vocabulary.lookup_series(rows[USER_ID])
    items = store.item_vocabulary.lookup_series(rows[ITEM_ID])
    times = rows[TIMESTAMP].to_numpy()
    later = times > np.concatenate([[NEVER], known])[users]
    kept = (users > 0) & (items > 0) & later
    pairs, places = np.unique(np.stack([users[kept], items[kept]]), axis=1, return_inverse=True)
    is_target = np.zeros(pairs.shape[1], np.bool_)
    is_target[places.ravel()[rows["met"].to_numpy()[kept]]] = True
    num_users = len(known) + 1
    positives = np.bincount(pairs[0, is_target], minlength=num_users)
    judged = (positives > 0) & (np.bincount(pairs[0], minlength=num_users) > positives)
    if not judged.any():
        reasons = {
            "of users that the store lacks": (users == 0).sum(),
            "of items that it lacks": ((users > 0) & (items == 0)).sum(),
            "not after the history of a user who is tested": ((users > 0) & (items > 0) & ~later).sum(),
            f"of users without both kinds of {positive!r}": kept.sum(),
        }
        counted = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)
        raise InputError(
            f"{argument}: none of its {len(rows):,} rows can be judged: {counted or 'it is empty'}; name the random "
            "log of the same data set, and a split with a test that begins before it, such as GlobalTime"
        )
    chosen = judged[pairs[0]]
    first_times = np.full(num_users, NEVER)
    np.minimum.at(first_times, users[kept], times[kept])
    # Users of the same batch without exposures are asked, too.
    first_times = np.where(judged, first_times, np.concatenate([[0], known]))
    offsets = np.searchsorted(pairs[0, chosen], np.arange(num_users + 1))
    arrays = (pairs[1, chosen], offsets, is_target[chosen], first_times)
    return Exposures(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))


def _ends_of_histories(data: SequenceDataModule) -> Int64:
    """Return (U,) the time of the newest event of each user's history in the test; `NEVER` for users not judged."""
    store = data.store
    if store.timestamps is None:
        raise InputError(
            f"{store.directory}: the log has no timestamps, so it is unknown which exposures are after a history; "
            "leave exposures.path out"
        )
    starts, ends = judged_ranges(data.split, store, "test")
    times = np.asarray(store.timestamps[np.maximum(starts - 1, 0)]).astype(np.int64)
    return np.where(ends > starts, times, NEVER)


def _values(judged: JudgedTargets, num_others: Tensor) -> dict[str, Tensor]:
    """Return each user's metrics (B,) float64 by name, with (B,) other candidates than the targets."""
    found = {"AUC": auc(judged, num_others)}
    for k in CUTOFFS:
        found |= {f"HR@{k}": hit_rate(judged, k), f"NDCG@{k}": ndcg(judged, k)}
    return {name: found[name].clamp(0, 1) for name in METRICS}
