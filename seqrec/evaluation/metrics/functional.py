"""Ranking metrics of each user's targets, as pure functions of ranks; ties count as the mean over their orders.

B users, T targets of all of them, k length of the list.

**Ties.** A target with `better` candidates above it and `tied` others at its score has each of the places
better + 1 .. better + tied + 1 with equal probability. Every metric is its expectation over the orders of the tied
(McSherry & Najork 2008, Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied
Scores), not the outcome of one order. Targets of one user are candidates for each other, so targets of equal score
have equal `better`, and take distinct places among those that they share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from seqrec.errors import InputError
from seqrec.types import ROW_STRIDE, JudgedTargets

NORMALISERS = ("achievable", "cutoff", "none")
# Bits of each of the two parts after the binary point. Sums of values up to 1 reach 2^32 before the high part
# overflows. A value loses at most 2^-63, which is below the last bit of any float64 above 2^-10.
PART_BITS = 31


class Places(NamedTuple):
    """Places of a ranking that targets of equal score share.

    Attributes:
        above: (N,) int64, places before the shared ones.
        shared: (N,) int64, places that the tied share, at least `targets`.
        targets: (N,) int64, number of the user's targets among the tied.
    """

    above: Tensor
    shared: Tensor
    targets: Tensor


def hit_rate(judged: JudgedTargets, k: int) -> Tensor:
    """Return (B,) float64, the probability that at least one target is among the first `k`.

    If m targets share n places, and c of these are inside the list, the m targets are a random subset of the places:
    all miss with the hypergeometric probability C(n-m, c) / C(n, c).

    Example:
        >>> import torch
        >>> from seqrec.types import JudgedTargets, TargetRanks
        >>> users, ones = torch.tensor([1, 2]), torch.ones(2, dtype=torch.int64)
        >>> ranks = TargetRanks(better=torch.tensor([0, 12]), tied=torch.tensor([0, 0]))
        >>> judged = JudgedTargets(users, ones, torch.tensor([0, 1]), ones, ranks, ones.bool())
        >>> hit_rate(judged, k=10).tolist()
        [1.0, 0.0]
    """
    first = _first_places(judged)
    inside = _inside(first, k)
    # The same as below for one target, without the rounding of a difference from 1.
    alone = inside.double() / first.shared
    if _one_target_each(judged):
        return alone
    missed = _all_miss(first, k).gather(1, inside.unsqueeze(1)).squeeze(1)
    return torch.where(first.targets == 1, alone, 1 - missed)


def mrr(judged: JudgedTargets, k: int) -> Tensor:
    """Return (B,) float64, 1 / rank of the user's first target if that rank is at most `k`, else 0.

    The first of m targets on n shared places has the j-th of them with probability C(n-j, m-1) / C(n, m).
    """
    first = _first_places(judged)
    alone = _mean_gain(first, 1 / _positions(judged, k))
    if _one_target_each(judged):
        return alone
    steps = torch.arange(k, device=first.above.device)
    here = _all_miss(first, k)[:, :-1] * first.targets.unsqueeze(1) / (first.shared.unsqueeze(1) - steps).clamp_min(1)
    places = first.above.unsqueeze(1) + 1 + steps
    expected = (here / places).masked_fill(places > k, 0).sum(1)
    return torch.where(first.targets == 1, alone, expected)


def ndcg(judged: JudgedTargets, k: int, normaliser: str = "achievable") -> Tensor:
    """Return (B,) float64, the sum of `1 / log2(1 + rank)` over targets of rank <= k, divided by a normaliser.

    Järvelin & Kekäläinen 2002, Cumulated Gain-Based Evaluation of IR Techniques, with gains of 1.

    Args:
        judged: Targets and their ranks.
        k: Length of the list.
        normaliser: "achievable" divides by the gain of the best order of the user's targets, min(targets, k) of
            them on the first places. "cutoff" divides by the gain of a list of k targets, which a user with fewer
            cannot reach: with one target and k = 10 by 4.54. "none" does not divide: DCG.

    Raises:
        InputError: if the normaliser is unknown.
    """
    check_normaliser(normaliser)
    gains = 1 / torch.log2(1 + _positions(judged, k))
    found = _per_user(judged, _mean_gain(_places(judged), gains))
    if normaliser == "none":
        return found
    ideal = _running_sum(gains)
    if normaliser == "cutoff":
        return found / ideal[k]
    # Counting targets makes Python wait for a GPU, and the ideal gain of one target is 1.
    return found if _one_target_each(judged) else found / ideal[judged.counts.clamp_max(k)]


def recall(judged: JudgedTargets, k: int) -> Tensor:
    """Return (B,) float64, the expected share of the user's targets that are among the first `k`."""
    return _hits(judged, k) / judged.counts


def precision(judged: JudgedTargets, k: int) -> Tensor:
    """Return (B,) float64, the expected share of the first `k` that are targets; a shorter catalogue counts as `k`."""
    return _hits(judged, k) / k


def auc(judged: JudgedTargets, num_others: Tensor) -> Tensor:
    """Return (B,) float64, the share of pairs of a target and another candidate with the target ahead; ties count half.

    `num_others` (B,) is the number of candidates of each user that are no targets, at least 1.
    """
    counts, ranks = judged.counts, judged.ranks
    ahead = ranks.better.double() + ranks.tied.double() / 2
    ahead = ahead.new_zeros(len(counts)).index_add_(0, judged.rows, ahead)
    # Two targets of a user are ahead of each other once in all.
    among_targets = counts * (counts - 1) / 2
    return 1 - (ahead - among_targets) / (counts * num_others)


def mean_of_lists(judged: JudgedTargets, metric: Callable[[JudgedTargets], Tensor]) -> Tensor:
    """Return (B,) float64, the mean of a metric over a user's targets, of which each is in a list of its own."""
    rows = judged.rows
    alone = replace(
        judged,
        user_ids=judged.user_ids[rows],
        history_lengths=judged.history_lengths[rows],
        rows=torch.arange(len(rows), device=rows.device),
    )
    return _per_user(judged, metric(alone)) / judged.counts


def check_normaliser(normaliser: str) -> None:
    """Refuse a normaliser that is not in `NORMALISERS`."""
    if normaliser not in NORMALISERS:
        raise InputError(f"normaliser={normaliser!r} must be one of {', '.join(NORMALISERS)}")


def _one_target_each(judged: JudgedTargets) -> bool:
    return len(judged.rows) == len(judged.user_ids)


def _places(judged: JudgedTargets) -> Places:
    """Return the places (T,) of each target."""
    above, shared = judged.ranks.better, judged.ranks.tied + 1
    if _one_target_each(judged):
        return Places(above, shared, torch.ones_like(above))
    keys = judged.rows * ROW_STRIDE + above
    _, group, sizes = torch.unique(keys, return_inverse=True, return_counts=True)
    return Places(above, shared, sizes[group])


def _first_places(judged: JudgedTargets) -> Places:
    """Return the places (B,) of each user's first targets: those with the fewest candidates above."""
    places = _places(judged)
    if _one_target_each(judged):
        return places
    rows, most = judged.rows, torch.iinfo(torch.int64).max
    above = torch.full_like(judged.user_ids, most).scatter_reduce(0, rows, places.above, "amin")
    is_first = places.above == above[rows]

    def of_first(values: Tensor) -> Tensor:
        return torch.zeros_like(above).scatter_reduce(0, rows, values.where(is_first, 0), "amax")

    return Places(above, of_first(places.shared), of_first(places.targets))


def _inside(places: Places, k: int) -> Tensor:
    """Return (N,) int64, the number of shared places among the first `k`."""
    return (k - places.above).clamp_min(0).minimum(places.shared)


def _all_miss(places: Places, k: int) -> Tensor:
    """Return (N, k + 1) float64, column c: the probability that no target has one of the first c shared places."""
    steps = torch.arange(k, device=places.above.device)
    shared, targets = places.shared.unsqueeze(1), places.targets.unsqueeze(1)
    free = (shared - targets - steps).clamp_min(0).double() / (shared - steps).clamp_min(1)
    return torch.cat([free.new_ones(len(free), 1), free.cumprod(1)], dim=1)


def _positions(judged: JudgedTargets, k: int) -> Tensor:
    """Return (k,) float64: 1, 2, .., k."""
    return torch.arange(1, k + 1, dtype=torch.float64, device=judged.rows.device)


def _running_sum(gains: Tensor) -> Tensor:
    """Return (k + 1,) sums of the first 0, 1, .., k gains."""
    return torch.cat([gains.new_zeros(1), gains.cumsum(0)])


def _mean_gain(places: Places, gains: Tensor) -> Tensor:
    """Return (N,) the mean gain (k,) of the shared places; 0 after the list's end."""
    k, running = len(gains), _running_sum(gains)
    first, last = places.above.clamp_max(k), (places.above + places.shared).clamp_max(k)
    return (running[last] - running[first]) / places.shared


def _hits(judged: JudgedTargets, k: int) -> Tensor:
    """Return (B,) float64, the expected number of targets among the first `k`."""
    places = _places(judged)
    return _per_user(judged, _inside(places, k).double() / places.shared)


def _per_user(judged: JudgedTargets, values: Tensor) -> Tensor:
    """Return (B,) sums of the values (T,) of each user's targets, the same on every device."""
    if _one_target_each(judged):
        return values
    sums = torch.zeros(len(judged.user_ids), 2, dtype=torch.int64, device=values.device)
    return from_fixed_point(sums.index_add_(0, judged.rows, to_fixed_point(values)))


def to_fixed_point(values: Tensor) -> Tensor:
    """Return integers (.., 2) int64 of values (..) float64, at least 0, with sums that are exact in any order.

    Sums of floats depend on their order, and therefore on batches and processes. The high part counts units of 2^-31,
    the low one units of 2^-62.
    """
    scaled = values * 2.0**PART_BITS
    high = scaled.floor()
    # Exact: the difference of a float64 and its integer part is one too.
    low = ((scaled - high) * 2.0**PART_BITS).round()
    return torch.stack([high, low], dim=-1).long()


def from_fixed_point(parts: Tensor) -> Tensor:
    """Return the float64 (..) nearest to the value of integers (.., 2) of `to_fixed_point`, or of their sums."""
    return parts[..., 0].double() * 2.0**-PART_BITS + parts[..., 1].double() * 2.0 ** (-2 * PART_BITS)
