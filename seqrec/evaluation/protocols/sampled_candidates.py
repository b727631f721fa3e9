"""Candidates drawn for each user, and draws that depend only on a seed and the user.

B users, T targets, D width, C candidates, N draws, V = num_items + 1.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.errors import InputError, NothingToDrawError, check_at_least
from seqrec.evaluation.protocols.candidates import Candidates, TrainingCounts, times_asked
from seqrec.evaluation.target_ranks import Targets, candidate_ranks
from seqrec.training.negatives import draw_unseen
from seqrec.types import SeenItems, SequenceBatch, TargetRanks

# Maximum number of draws of a user, which must contain the wanted number of different items.
MAX_DRAWS = 1 << 14


class SampledCandidates(Candidates):
    """Items drawn for each user.

    Draws depend only on the seed and the user's id: every model, batch size and number of processes gets the same
    candidates. They are never the user's targets, nor seen items if these are filtered. Sampled metrics can order
    models differently from full ones (Krichene & Rendle 2020, On Sampled Metrics for Item Recommendation).
    """

    seed: int

    def __init__(self, count: int, *, alive_only: bool, replacement: bool, seed: int) -> None:
        check_at_least(1, count=count)
        self.count = count
        self.alive_only = self.needs_first_times = alive_only
        self.replacement = replacement
        self.seed = seed

    @abstractmethod
    def weights(self, item_counts: TrainingCounts | None) -> Tensor | None:
        """Return (V,) int64, how likely each item is drawn, 0 for padding; None if all items are equally likely."""

    def drawn(
        self,
        targets: Targets,
        batch: SequenceBatch,
        num_items: int,
        *,
        filter_seen: bool,
        item_counts: TrainingCounts | None = None,
    ) -> Tensor:
        """Return the candidates (B, C) of each user, among items 1..num_items; see `ranks` for the other arguments.

        Raises:
            InputError: if a user has too few candidates.
        """
        rows, items = [targets.rows], [targets.item_ids]
        if filter_seen:
            rows, items = [batch.seen_events.rows, *rows], [batch.seen_events.item_ids.long(), *items]
        pairs, weights, alive = (torch.cat(rows), torch.cat(items)), self.weights(item_counts), None
        if self.alive_only:
            # With items in the order of their first events, those that are alive are the first ones.
            assert item_counts is not None
            assert item_counts.first_times is not None
            order = item_counts.by_first_time
            if weights is None:
                weights = (order > 0).long()
            weights = weights[order]
            alive = torch.searchsorted(item_counts.first_times[order[1:]], times_asked(batch), right=True)
            places = order.argsort()[pairs[1]]
            there = places <= alive[pairs[0]]
            pairs = pairs[0][there], places[there]
        avoid = SeenItems.from_events(*pairs, len(batch))

        def draw(number: int) -> Tensor:
            uniforms = hashed_uniforms(batch.user_ids, number, self.seed)
            if weights is None:
                return draw_unseen(uniforms, torch.arange(len(batch), device=uniforms.device), avoid, num_items)
            drawn = draw_by_weight(uniforms, avoid, weights, alive)
            return drawn if alive is None else order[drawn]

        if self.replacement:
            return draw(self.count)
        fewest = int(_num_drawable(avoid, num_items, weights, alive).min())
        if fewest < self.count:
            raise InputError(
                f"count={self.count} different candidates, but a user has only {fewest} that it has not seen: lower "
                "count, or set replacement: true"
            )
        return first_distinct(draw, self.count)

    def ranks(
        self,
        scorer: Scorer,
        states: Tensor,
        targets: Targets,
        batch: SequenceBatch,
        *,
        filter_seen: bool,
        item_counts: TrainingCounts | None = None,
    ) -> TargetRanks:
        """Rank each target among drawn candidates; see `Candidates.ranks`."""
        counts = self.known_counts(item_counts, scorer)
        drawn = self.drawn(targets, batch, scorer.num_items, filter_seen=filter_seen, item_counts=counts)
        return candidate_ranks(scorer, states, targets, drawn)


class UniformCandidates(SampledCandidates):
    """Items drawn uniformly.

    Args:
        count: Candidates C of a user, without its targets.
        trained_only: Whether only items with training events are drawn.
        alive_only: Whether only items that somebody had met when the user was asked are drawn; see `WholeCatalogue`.
        replacement: Whether an item may be drawn twice; it then counts twice.
        seed: Seed of the draws.

    Raises:
        InputError: if `count` is below 1.

    Example:
        >>> from seqrec import Protocol, UniformCandidates
        >>> Protocol(candidates=UniformCandidates(100)).id
        'uniform100-seenout-tiemean-loo-seed0'
    """

    def __init__(
        self,
        count: int = 100,
        *,
        trained_only: bool = False,
        alive_only: bool = False,
        replacement: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(count, alive_only=alive_only, replacement=replacement, seed=seed)
        self.trained_only = trained_only
        self.needs_item_counts = trained_only

    @property
    def id(self) -> str:
        """`uniform100`, followed by `-trained`, `-alive` and `-distinct` if they apply."""
        trained, distinct = "-trained" * self.trained_only, "-distinct" * (not self.replacement)
        return f"uniform{self.count}{trained}{'-alive' * self.alive_only}{distinct}"

    def weights(self, item_counts: TrainingCounts | None) -> Tensor | None:
        """Return 1 for each item with training events; None, which is all items, without `trained_only`."""
        if not self.trained_only:
            return None
        assert item_counts is not None
        return item_counts.trained.long()


class PopularityCandidates(SampledCandidates):
    """Items drawn in proportion to their training events; items without any are never drawn.

    BERT4Rec is evaluated in this way (Sun et al. 2019, section 4.2), with 100 different items that the user has not
    seen.

    Args:
        count: Candidates C of a user, without its targets.
        alive_only: Whether only items that somebody had met when the user was asked are drawn; see `WholeCatalogue`.
        replacement: Whether an item may be drawn twice; it then counts twice.
        seed: Seed of the draws.

    Raises:
        InputError: if `count` is below 1.

    Example:
        >>> from seqrec import PopularityCandidates, Protocol
        >>> Protocol(candidates=PopularityCandidates(100, seed=1)).id
        'popularity100-distinct-seenout-tiemean-loo-seed1'
    """

    needs_item_counts = True

    def __init__(self, count: int = 100, *, alive_only: bool = False, replacement: bool = False, seed: int = 0) -> None:
        super().__init__(count, alive_only=alive_only, replacement=replacement, seed=seed)

    @property
    def id(self) -> str:
        """`popularity100`, followed by `-alive` and `-distinct` if they apply."""
        return f"popularity{self.count}{'-alive' * self.alive_only}{'' if self.replacement else '-distinct'}"

    def weights(self, item_counts: TrainingCounts | None) -> Tensor:
        """Return the number of training events of each item."""
        assert item_counts is not None
        assert item_counts.counts is not None
        return item_counts.counts


def hashed_uniforms(keys: Tensor, count: int, seed: int) -> Tensor:
    """Return (B, count) float64 in [0, 1) that depend only on the seed, the key (B,) and the column, on every device.

    SplitMix64's finaliser (Steele, Lea & Flood 2014) over a counter; int64 arithmetic wraps as uint64's does.
    """
    columns = torch.arange(count, device=keys.device)
    # The golden-ratio increment 0x9E3779B97F4A7C15 and the finaliser's two constants, as signed numbers.
    x = (_mix(keys * -7046029254386353131 + seed).unsqueeze(1) + columns) * -7046029254386353131
    return _logical_shift(_mix(x), 11).double() * 2.0**-53


def draw_by_weight(uniforms: Tensor, avoid: SeenItems, weights: Tensor, last: Tensor | None = None) -> Tensor:
    """Map uniform numbers (B, N), float64 in [0, 1), to items (B, N) in proportion to their weights, with replacement.

    Each user gets none of the items in `avoid`, without rejection. Item i owns `weights[i]` slots in a row of all
    slots; `weights` (V,) int64 are at least 0, and 0 for padding. A user's free slots are those of the items that it
    does not avoid. One binary search finds the avoided items before the x-th free slot. With `last` (B,), each user
    gets items up to that one, and avoids none after it.

    Raises:
        InputError: if a user avoids all items that have a weight.
    """
    ends = weights.cumsum(0)
    taken = torch.cat([weights.new_zeros(1), weights[avoid.item_ids].cumsum(0)])
    base, total = taken[avoid.offsets[:-1]], ends[-1]
    free = (total if last is None else ends[last]) - (taken[avoid.offsets[1:]] - base)
    if bool((free <= 0).any()):
        raise NothingToDrawError(
            "a user has seen all items that could be drawn as candidates; leave such users out, or keep seen items "
            "(filter_seen: false)",
            (free <= 0).nonzero().flatten().tolist(),
        )
    place = (uniforms * free.unsqueeze(1)).long()
    rows = avoid.rows
    before = (ends - weights)[avoid.item_ids] - (taken[:-1] - base[rows])
    users = torch.arange(len(uniforms), device=uniforms.device).unsqueeze(1)
    passed = torch.searchsorted(rows * (total + 1) + before, users * (total + 1) + place, right=True)
    slots = place + taken[passed] - base.unsqueeze(1)
    return torch.searchsorted(ends, slots, right=True)


def first_distinct(draw: Callable[[int], Tensor], count: int) -> Tensor:
    """Return the first `count` different items (B, count) of each user's draws, in their order.

    `draw` returns (B, n) draws for a number n; those for a smaller n are the first of them. Repeated draws are skipped,
    which gives draws without replacement in proportion to the remaining weights.

    Raises:
        InputError: if the maximum number of draws contains too few different items, because some are rarely drawn.
    """
    num_draws = 2 * count
    while num_draws <= max(MAX_DRAWS, 2 * count):
        drawn = draw(num_draws)
        ordered, order = drawn.sort(dim=1, stable=True)
        new_in_order = torch.ones_like(drawn, dtype=torch.bool)
        new_in_order[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        is_new = torch.zeros_like(new_in_order).scatter_(1, order, new_in_order)
        place = is_new.cumsum(1) - 1
        if bool((place[:, -1] + 1 >= count).all()):
            rows, columns = (is_new & (place < count)).nonzero(as_tuple=True)
            result = drawn.new_empty(len(drawn), count)
            result[rows, place[rows, columns]] = drawn[rows, columns]
            return result
        num_draws *= 2
    raise InputError(
        f"{num_draws // 2:,} draws give fewer than {count} different candidates for a user: lower count, or set "
        "replacement: true"
    )


def _num_drawable(avoid: SeenItems, num_items: int, weights: Tensor | None, last: Tensor | None) -> Tensor:
    """Return (B,) the number of different items that can be drawn for each user."""
    if weights is None:
        return num_items - avoid.counts
    taken = torch.cat([avoid.offsets.new_zeros(1), (weights > 0)[avoid.item_ids].cumsum(0)])
    drawable = (weights > 0).cumsum(0)
    return (drawable[-1] if last is None else drawable[last]) - (taken[avoid.offsets[1:]] - taken[avoid.offsets[:-1]])


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _logical_shift(x, 30)) * -4658895280553007687
    x = (x ^ _logical_shift(x, 27)) * -7723592293110705685
    return x ^ _logical_shift(x, 31)


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros; torch's own shift of int64 copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
