"""Ranking metrics as torchmetrics classes with a state of three integers, whatever the number of users."""

from __future__ import annotations

from abc import ABC
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from seqrec.errors import InputError, check_at_least
from seqrec.evaluation.metrics.functional import (
    check_normaliser,
    from_fixed_point,
    hit_rate,
    mean_of_lists,
    mrr,
    ndcg,
    precision,
    recall,
    to_fixed_point,
)
from seqrec.types import JudgedTargets

CUTOFFS = (5, 10, 20)
# Before the names of metrics of targets that are cold items, and of the others.
COLD, WARM = "cold_", "warm_"
# Before the names of metrics among items that were exposed.
EXPOSED = "exposed_"


class RankMetric(Metric, ABC):
    """Mean over users of a function of their targets' ranks, exact to the last digit for any batches and processes.

    The sum is kept in fixed point; sums of floats depend on their order, and therefore on batches and processes. A
    subclass sets `function`, or overrides `of_list` if the metric has further parameters.

    Attributes:
        separate_lists: Whether each target is in a list of its own (`GlobalTime.prequential`): the metric of a user is
            then the mean over these lists.
        only_items: (num_items + 1,) bool, True for the items with which targets count; None counts all. Users without
            such a target are left out.

    Raises:
        InputError: if `k`, the length of the list, is below 1.
    """

    full_state_update = False
    higher_is_better = True
    separate_lists = False
    function: ClassVar[staticmethod[[JudgedTargets, int], Tensor]]
    total: Tensor
    count: Tensor
    only_items: Tensor | None

    def __init__(self, k: int) -> None:
        super().__init__()
        check_at_least(1, k=k)
        self.k = k
        self.register_buffer("only_items", None, persistent=False)
        self.add_state("total", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def per_user(self, judged: JudgedTargets) -> Tensor:
        """Return the metric of each user, (B,) float64."""
        return mean_of_lists(judged, self.of_list) if self.separate_lists else self.of_list(judged)

    def of_list(self, judged: JudgedTargets) -> Tensor:
        """Return the metric of each user, (B,) float64, whose targets are in one list."""
        return self.function(judged, self.k)

    def update(self, judged: JudgedTargets) -> None:
        """Add a batch of users."""
        if self.only_items is not None:
            judged = judged.only(self.only_items[judged.item_ids])
            if not len(judged.rows):
                return
        self.total += to_fixed_point(self.per_user(judged)).sum(0)
        self.count += len(judged.user_ids)

    def compute(self) -> Tensor:
        """Return the mean over all users so far, float64; NaN before the first."""
        return from_fixed_point(self.total) / self.count


class HitRate(RankMetric):
    """HR@k: share of users with a target among the first k."""

    function = staticmethod(hit_rate)


class MRR(RankMetric):
    """MRR@k: mean of 1 / rank of each user's first target, 0 after the k-th place."""

    function = staticmethod(mrr)


class NDCG(RankMetric):
    """NDCG@k: gains of the targets on the list, divided by those of a best list.

    Args:
        k: Length of the list, at least 1.
        normaliser: Divisor of the gains: "achievable", "cutoff" or "none"; see `seqrec.evaluation.metrics.ndcg`.

    Raises:
        InputError: if `k` is below 1, or the normaliser is unknown.
    """

    def __init__(self, k: int, normaliser: str = "achievable") -> None:
        super().__init__(k)
        check_normaliser(normaliser)
        self.normaliser = normaliser

    def of_list(self, judged: JudgedTargets) -> Tensor:
        """Return `ndcg`."""
        return ndcg(judged, self.k, self.normaliser)


class Recall(RankMetric):
    """Recall@k: share of a user's targets among the first k; equals HR@k if users have one target."""

    function = staticmethod(recall)


class Precision(RankMetric):
    """Precision@k: share of the first k that are targets; equals HR@k / k if users have one target."""

    function = staticmethod(precision)


class RepeatedTargets(Metric):
    """Share of all targets that are among the items of the user's history, whatever the model.

    A list without seen items contains none of them, so with `filter_seen` a part of the metrics measures what such
    lists can never show.

    Example:
        >>> import torch
        >>> from seqrec.evaluation.metrics import RepeatedTargets
        >>> from seqrec.types import JudgedTargets, TargetRanks
        >>> one, two = torch.tensor([0, 1]), torch.tensor([4, 5])
        >>> share = RepeatedTargets()
        >>> share.update(JudgedTargets(one, two, one, two, TargetRanks(one, one), torch.tensor([True, False])))
        >>> share.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    full_state_update = False
    repeated: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("repeated", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, judged: JudgedTargets) -> None:
        """Add a batch of users."""
        self.repeated += judged.repeated.sum()
        self.count += len(judged.repeated)

    def compute(self) -> Tensor:
        """Return the share of all targets so far, float64; NaN before the first."""
        return self.repeated.double() / self.count


def ranking_metrics(
    normaliser: str = "achievable",
    *,
    several_targets: bool = False,
    separate_lists: bool = False,
    cold_items: Tensor | None = None,
) -> MetricCollection:
    """Return HR@K and NDCG@K for K = 5, 10, 20, and if users may have several targets also Recall@K and Precision@K.

    `separate_lists` is that of `RankMetric`. With `cold_items` (num_items + 1,) bool, True for cold items, each metric
    is also computed for the targets that are cold items, as `cold_HR@10`, and for the others, as `warm_HR@10`; a user
    counts with its targets of that kind, and NaN means that no user has one.

    Raises:
        InputError: if the normaliser, that of `seqrec.evaluation.metrics.ndcg`, is unknown.

    Example:
        >>> list(ranking_metrics())
        ['HR@10', 'HR@20', 'HR@5', 'NDCG@10', 'NDCG@20', 'NDCG@5']
    """
    kinds: dict[str, Tensor | None] = {"": None}
    if cold_items is not None:
        kinds |= {COLD: cold_items, WARM: ~cold_items}
    metrics: dict[str, RankMetric] = {}
    for prefix, only_items in kinds.items():
        for k in CUTOFFS:
            of_kind: dict[str, RankMetric] = {"HR": HitRate(k), "NDCG": NDCG(k, normaliser)}
            if several_targets:
                of_kind |= {"Recall": Recall(k), "Precision": Precision(k)}
            for name, metric in of_kind.items():
                metric.separate_lists, metric.only_items = separate_lists, only_items
                metrics[f"{prefix}{name}@{k}"] = metric
    # torchmetrics would group metrics with equal values after the first batch, and HR@5 can equal HR@10 by chance.
    return MetricCollection(metrics, compute_groups=False)  # type: ignore[arg-type]  # invariant dict


def metric_named(name: str, normaliser: str = "achievable") -> RankMetric:
    """Return a metric by its name in tables: HR, MRR, NDCG, Recall or Precision, `@` and the length of the list.

    `normaliser` is that of `seqrec.evaluation.metrics.ndcg`.

    Raises:
        InputError: if the name is unknown, or the length below 1.

    Example:
        >>> metric_named("NDCG@10").k
        10
    """
    title, _, k = name.partition("@")
    if title == "NDCG" and k.isdecimal():
        return NDCG(int(k), normaliser)
    others: dict[str, type[RankMetric]] = {"HR": HitRate, "MRR": MRR, "Recall": Recall, "Precision": Precision}
    if title not in others or not k.isdecimal():
        known = ", ".join(f"{known}@K" for known in sorted([*others, "NDCG"]))
        raise InputError(f"unknown metric {name!r}; known: {known} with K such as 10")
    return others[title](int(k))
