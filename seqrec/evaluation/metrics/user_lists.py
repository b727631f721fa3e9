"""Metrics of each user's recommended list, averaged over users: diversity, novelty, repeats and calibration.

B users, K places of a list, V = num_items + 1, S entries of all rows together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from seqrec.data.columns import Column
from seqrec.data.schema import CATEGORICAL, CATEGORIES, NUMERIC
from seqrec.errors import InputError, check_at_least
from seqrec.evaluation.metrics.functional import from_fixed_point, to_fixed_point
from seqrec.evaluation.metrics.lists import first_items, self_information
from seqrec.types import ROW_STRIDE, RaggedItems, Recommendations, SeenItems

# Half the width of a 95% interval, in standard errors.
HALF_WIDTH = 1.959963984540054
# Share of the history's distribution that Steck mixes into that of the list.
ALPHA = 0.01

# Distances (B, K, K) of the items (B, K) of each list, at least 0. Those of item 0 are not read.
Distance = Callable[[Tensor], Tensor]


class UserMean(Metric):
    """Mean of a number of each user, with a state of four numbers, summed over processes.

    Attributes:
        interval: 95% interval of the mean when `compute` was last called: 1.96 standard errors on each side, from the
            variance over users. NaN below two users.
        users: Number of users then.

    Example:
        >>> import torch
        >>> from seqrec.evaluation.metrics import UserMean
        >>> mean = UserMean()
        >>> mean.update(torch.tensor([0.0, 0.5, torch.nan, 1.0], dtype=torch.float64))
        >>> mean.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    full_state_update = False
    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.interval = (float("nan"), float("nan"))
        self.users = 0
        self.add_state("total", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("squares", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Add the numbers (B,) float64 of a batch of users, at least 0; NaN leaves a user out."""
        values = values[~values.isnan()]
        self.total += to_fixed_point(values).sum(0)
        self.squares += values.square().sum()
        self.count += len(values)

    def compute(self) -> Tensor:
        """Return the mean over all users so far, () float64; NaN before the first."""
        mean = from_fixed_point(self.total) / self.count
        variance = (self.squares - self.count * mean.square()).clamp_min(0) / (self.count - 1)
        width = float(HALF_WIDTH * (variance / self.count).sqrt()) if self.count > 1 else float("nan")
        self.interval = (float(mean) - width, float(mean) + width)
        self.users = int(self.count)
        return mean


class UserListMetric(UserMean, ABC):
    """Mean over users of a function of their list. Users for whom it is not defined are left out.

    Args:
        k: Number of items of each list that count, at least 1.

    Raises:
        InputError: if `k` is below 1.
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        check_at_least(1, k=k)
        self.k = k

    @abstractmethod
    def per_user(self, item_ids: Tensor, seen: RaggedItems) -> Tensor:
        """Return the metric of each user, (B,) float64, at least 0; NaN leaves the user out.

        Args:
            item_ids: (B, k) int64, the first items of the lists; 0 is a place without an item.
            seen: The items of each user's history, oldest first, repeated as they are there.
        """

    # MetricCollection chooses the arguments of each metric by name.
    def update(self, recommendations: Recommendations, seen: RaggedItems) -> None:  # type: ignore[override]
        """Add a batch of users, with the items of their histories.

        Raises:
            InputError: if lists are shorter than `k`.
        """
        super().update(self.per_user(first_items(recommendations, self.k), seen))


class UserNovelty(UserListMetric):
    """Novelty@k: mean self-information `-log2 p(item)` of a list's items, in bits, averaged over users.

    The formula, the paper and the rule for items without training events are those of
    `seqrec.evaluation.metrics.Novelty`, which averages over recommendations instead; both are equal if all lists are
    full. RecTools' `MeanInvUserFreq` and RePlay's `Surprisal` divide an item's users by all users instead of its
    events by all events, which adds a constant if no user repeats an item. `Surprisal` also divides by the log2 of the
    number of users.

    Args:
        item_counts: (V,) training events of each item; item 0 is padding.
        k: Number of items of each list that count, at least 1.

    Example:
        >>> import torch
        >>> from seqrec.evaluation.metrics import UserNovelty
        >>> from seqrec.types import RaggedItems, Recommendations
        >>> metric = UserNovelty(torch.tensor([0, 6, 1, 1]), k=2)
        >>> lists = Recommendations(torch.tensor([[2, 3]]), torch.tensor([[0.9, 0.4]]), torch.tensor([1]))
        >>> metric.update(lists, RaggedItems(torch.tensor([1]), torch.tensor([0, 1])))
        >>> metric.compute()
        tensor(3., dtype=torch.float64)
    """

    item_counts: Tensor

    def __init__(self, item_counts: Tensor, k: int) -> None:
        super().__init__(k)
        self.register_buffer("item_counts", torch.as_tensor(item_counts), persistent=False)

    def per_user(self, item_ids: Tensor, seen: RaggedItems) -> Tensor:
        """See `UserListMetric.per_user`."""
        return _mean_where(self_information(self.item_counts)[item_ids], item_ids > 0)


class RepeatShare(UserListMetric):
    """Repeats@k: share of a list's items that are in the user's history, averaged over users.

    The repetition ratio RepR of Li et al. 2023, A Next Basket Recommendation Reality Check. It is 0 if seen items are
    filtered. RePlay's `Novelty` is 1 minus it.
    """

    def per_user(self, item_ids: Tensor, seen: RaggedItems) -> Tensor:
        """See `UserListMetric.per_user`."""
        rows = torch.arange(len(item_ids), device=item_ids.device).unsqueeze(1)
        is_seen = torch.isin(rows * ROW_STRIDE + item_ids, seen.rows * ROW_STRIDE + seen.item_ids)
        return _mean_where(is_seen.double(), item_ids > 0)


class Diversity(UserListMetric):
    """Diversity@k: mean distance of all pairs of different places of a list, averaged over users.

    The diversity of a list of Smyth & McClave 2001, Similarity vs. Diversity, averaged over users as in Ziegler et al.
    2005, Improving Recommendation Lists Through Topic Diversification. A list of fewer than two items
    has no pair and is left out; RecTools' `IntraListDiversity`, which is the same otherwise, counts it as 0. The
    `intra_list_similarity` of recmetrics is 1 minus it, with cosines.

    Args:
        distance: Distances of the items of each list: `column_distance`, or another function.
        k: Number of items of each list that count, at least 2.

    Raises:
        InputError: if `k` is below 2.
    """

    def __init__(self, distance: Distance, k: int) -> None:
        check_at_least(2, k=k)
        super().__init__(k)
        self.distance = distance

    def per_user(self, item_ids: Tensor, seen: RaggedItems) -> Tensor:
        """See `UserListMetric.per_user`."""
        is_item = item_ids > 0
        places = torch.arange(self.k, device=item_ids.device)
        pairs = is_item.unsqueeze(2) & is_item.unsqueeze(1) & (places.unsqueeze(1) < places)
        return _mean_where(self.distance(item_ids).double().flatten(1), pairs.flatten(1))


class Calibration(UserListMetric):
    """Calibration@k: how far the values of a column in a list are from those in the history, averaged over users.

    Steck 2018, Calibrated Recommendations, section 3: `KL(p || q')`, with p the distribution of the values in the
    history, q that in the list, and `q' = (1 - alpha) q + alpha p` with alpha .01. 0 is a list with the history's
    shares. An item with several values gives each an equal part. All events of the history weigh the same, and so do
    all places of the list; the paper allows other weights. Items without a value are left out of p and
    q, and users without any in their history are left out. A list without any value has the largest divergence,
    `-log(alpha)`. In nats; the often copied code of E. Liu ("Calibrated Recommendations", ethen8181) takes log2.

    Args:
        values: The codes of each item, as `item_codes` returns them.
        k: Number of items of each list that count, at least 1.
    """

    codes: Tensor
    offsets: Tensor

    def __init__(self, values: RaggedItems, k: int) -> None:
        super().__init__(k)
        self.register_buffer("codes", values.item_ids, persistent=False)
        self.register_buffer("offsets", values.offsets, persistent=False)

    def per_user(self, item_ids: Tensor, seen: RaggedItems) -> Tensor:
        """See `UserListMetric.per_user`."""
        rows, places = item_ids.nonzero(as_tuple=True)
        wanted, shares = self._distribution(seen.rows, seen.item_ids.long(), len(item_ids))
        listed, parts = self._distribution(rows, item_ids[rows, places], len(item_ids))
        users = wanted // ROW_STRIDE
        found = torch.searchsorted(listed, wanted)
        # A last key that equals none.
        listed, parts = F.pad(listed, (0, 1), value=-1), F.pad(parts, (0, 1))
        reached = torch.where(listed[found] == wanted, parts[found], 0)
        terms = shares * torch.log(shares / ((1 - ALPHA) * reached + ALPHA * shares))
        divergence = terms.new_zeros(len(item_ids)).index_add_(0, users, terms).clamp_min(0)
        has_values = torch.zeros_like(divergence, dtype=torch.bool).index_fill_(0, users, True)
        return divergence.where(has_values & (item_ids > 0).any(1), torch.nan)

    def _distribution(self, rows: Tensor, item_ids: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
        """Return keys `row * ROW_STRIDE + code`, ascending, and the share (float64) of each code in its row."""
        counts = self.offsets[item_ids + 1] - self.offsets[item_ids]
        places = torch.repeat_interleave(torch.arange(len(item_ids), device=rows.device), counts)
        begins = counts.cumsum(0) - counts
        steps = torch.arange(len(places), device=rows.device) - begins[places]
        codes = self.codes[self.offsets[item_ids[places]] + steps]
        keys, inverse = torch.unique(rows[places] * ROW_STRIDE + codes, return_inverse=True)
        weights = 1 / counts[places].double()
        shares = weights.new_zeros(len(keys)).index_add_(0, inverse, weights)
        totals = weights.new_zeros(num_rows).index_add_(0, keys // ROW_STRIDE, shares)
        return keys, shares / totals[keys // ROW_STRIDE]


def column_distance(column: Column, argument: str) -> Distance:
    """Return a distance of items by their values in a column.

    Categories: the Jaccard distance of the sets of values, which is 0 or 1 for columns with one value an item.
    Vectors: 1 minus their cosine. An item without values has distance 1 to every item.

    Raises:
        InputError: if the column is of numbers, with the argument that named it.
    """
    if column.kind == NUMERIC:
        raise InputError(
            f"{argument} is a column of numbers; name one of kind categorical, categories or vector, or leave it out"
        )
    if column.kind in (CATEGORICAL, CATEGORIES):
        return _JaccardDistance(item_codes(column, argument))
    vectors = column.values

    def cosine_distance(item_ids: Tensor) -> Tensor:
        own = torch.from_numpy(vectors[item_ids.cpu().numpy()]).to(item_ids.device).double()
        own = F.normalize(own, dim=-1)
        return (1 - own @ own.mT).clamp_min(0)

    return cosine_distance


def item_codes(column: Column, argument: str) -> RaggedItems:
    """Return the distinct values of each item (V rows) of a column of categories, as codes from 1.

    Raises:
        InputError: if the column is of another kind, with the argument that named it.
    """
    if column.kind not in (CATEGORICAL, CATEGORIES):
        raise InputError(f"{argument} is of kind {column.kind}; name a column of kind categorical or categories")
    codes = torch.from_numpy(column.values.astype("int64"))
    if column.offsets is None:
        return SeenItems.from_events(torch.arange(len(codes)), codes, len(codes))
    rows = RaggedItems(codes, torch.from_numpy(column.offsets.astype("int64"))).rows
    return SeenItems.from_events(rows, codes, len(column.offsets) - 1)


class _JaccardDistance:
    """1 minus the shared values of two items over all their values."""

    def __init__(self, values: RaggedItems) -> None:
        self.values = values

    def __call__(self, item_ids: Tensor) -> Tensor:
        self.values = values = self.values.to(item_ids.device)
        counts = values.counts[item_ids]
        places, is_value = values.places_of(item_ids)
        codes = values.item_ids[places].where(is_value, 0) if places.numel() else places
        shared = counts.new_zeros((*item_ids.shape, item_ids.shape[1]))
        for place in range(item_ids.shape[1]):
            own = codes[:, place, None, :, None]
            shared[:, place] = ((own == codes.unsqueeze(2)) & (own > 0)).sum((2, 3))
        either = counts.unsqueeze(2) + counts.unsqueeze(1) - shared
        return 1 - shared / either.clamp_min(1).double()


def _mean_where(values: Tensor, kept: Tensor) -> Tensor:
    """Return the mean (B,) of the values (B, N) at which `kept` is True; NaN without any."""
    return values.where(kept, 0).sum(1) / kept.sum(1)
