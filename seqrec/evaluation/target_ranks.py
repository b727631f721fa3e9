"""Ranks of targets among candidates, a part of the catalogue at a time.

Shapes: B users, T targets of all of them, C candidates of a block, D width, V = num_items + 1, S hidden places, R
targets of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.types import RaggedItems, TargetRanks, TensorRecord

# Scores of a block of a matrix product on CPU: scores in the cache of a core are compared several times faster.
CPU_BLOCK_SCORES = 1 << 19
# Candidates of a block, because a sum of more ones is not exact in float32.
MAX_BLOCK_ITEMS = 1 << 24
# Pairs of state and item that are compared again at a time, if rounding decides.
RECOUNT_PAIRS = 1 << 16


@dataclass(frozen=True)
class Targets(TensorRecord):
    """Targets to rank. All targets of a user are in one list, together with the user's other candidates.

    `rows` (T,) are the users' rows, ascending; every user has a target. `item_ids` (T,) are distinct within a row.
    """

    rows: Tensor
    item_ids: Tensor


@dataclass(frozen=True)
class _Block:
    """Some candidates of all users with their scores.

    Attributes:
        scores: (B, C), overwritten when they are counted.
        item_ids: (1, C) if users share the candidates, else (B, C).
        hidden: (S,) int64, places of non-candidates in the flat scores, in any order, repeats allowed. Targets may be
            among them and are still candidates.
        absent: (B, C) or (1, C) bool, further non-candidates, likewise; None is none.
        own: (T,) int64, places of the targets in the flat scores, -1 if a target is not in the block.
    """

    scores: Tensor
    item_ids: Tensor
    hidden: Tensor
    own: Tensor
    absent: Tensor | None = None

    def hide(self, scores: Tensor, value: float) -> None:
        """Set (B, C) numbers to `value` at all that are no candidates."""
        scores.view(-1).index_fill_(0, self.hidden, value)
        if self.absent is not None:
            scores.masked_fill_(self.absent, value)


@torch.no_grad()
def catalogue_ranks(
    scorer: Scorer,
    states: Tensor,
    targets: Targets,
    *,
    hidden: RaggedItems | None = None,
    trained: Tensor | None = None,
    first_times: Tensor | None = None,
    asked_at: Tensor | None = None,
) -> TargetRanks:
    """Rank each target among the whole catalogue.

    **Tie rule.** Candidates with exactly the target's score are counted apart (`TargetRanks.tied`): every rule for
    ties is exact, and constant scores never look good. A NaN score counts as better than the target's, and a target
    with a NaN score has every candidate above it.

    **Rounding.** A matrix product sums in an order that depends on the place, so items with the same vector can
    differ in the last digits. Scores that differ by no more than that are compared again, by products in float64
    rounded to the table's precision. Ranks therefore depend neither on blocks nor on batches.

    A user's scores are computed once, whatever the number of its targets.

    Args:
        scorer: Scores the catalogue.
        states: (B, D).
        targets: The targets of the users.
        hidden: Items of each user that are no candidates, except for the user's targets. None hides none.
        trained: (V,) bool, the items that are candidates, next to the targets. None is all.
        first_times: (V,) int64, the time of each item's first event; with it, items whose first event is after
            `asked_at` are no candidates of a user, except for the user's targets. None is all.
        asked_at: (B,) int64, when each user is asked; needed with `first_times`.

    Returns:
        Counts (T,); the target itself is not counted.
    """
    bound = scorer.rounding(states)
    block_scores = scorer.score_budget
    if bound is not None and states.device.type == "cpu":
        block_scores = min(block_scores, CPU_BLOCK_SCORES)
    size = min(max(1, block_scores // max(1, len(states))), scorer.num_items, MAX_BLOCK_ITEMS)
    count = _Count(scorer, states, targets, bound, single=size == scorer.num_items)

    def absent(part: slice) -> Tensor | None:
        found = None if trained is None else ~trained[part].unsqueeze(0)
        if first_times is None:
            return found
        assert asked_at is not None
        later = first_times[part] > asked_at.unsqueeze(1)
        return later if found is None else later | found

    for block in _catalogue_blocks(scorer, states, targets, hidden, absent, size):
        count.add(block)
    return count.ranks


@torch.no_grad()
def candidate_ranks(scorer: Scorer, states: Tensor, targets: Targets, candidates: Tensor) -> TargetRanks:
    """Rank each target among given candidates and the user's other targets, by the rules of `catalogue_ranks`.

    `candidates` (B, C) are item ids, none of them a target of the row; a repeated one counts repeatedly, and 0 is none.
    """
    counts = torch.bincount(targets.rows, minlength=len(states))
    places = torch.arange(len(targets.rows), device=states.device) - (counts.cumsum(0) - counts)[targets.rows]
    most = int(counts.max())
    item_ids = torch.cat([candidates.new_zeros(len(candidates), most), candidates], dim=1)
    item_ids[targets.rows, places] = targets.item_ids
    width = item_ids.shape[1]
    # Users with fewer targets than others have no candidate in the places after theirs.
    rows, columns = (item_ids == 0).nonzero(as_tuple=True)
    count = _Count(scorer, states, targets, scorer.rounding(states), single=True)
    scores = scorer.score(count.states, item_ids)
    count.add(_Block(scores, item_ids, rows * width + columns, targets.rows * width + places))
    return count.ranks


def _catalogue_blocks(
    scorer: Scorer,
    states: Tensor,
    targets: Targets,
    hidden: RaggedItems | None,
    absent: Callable[[slice], Tensor | None],
    size: int,
) -> Iterator[_Block]:
    """Yield the catalogue in blocks of `size` items; `absent` returns `_Block.absent` of a range of items."""
    device, end = states.device, scorer.num_items + 1
    starts = list(range(1, end, size))
    empty = torch.empty(0, dtype=torch.int64, device=device)
    rows, items = (empty, empty) if hidden is None else (hidden.rows, hidden.item_ids.long())
    bounds = [0, len(rows)]
    if len(starts) > 1:
        items, order = items.sort()
        rows = rows[order]
        bounds = torch.searchsorted(items, torch.tensor([*starts, end], device=device)).tolist()
    for number, first in enumerate(starts):
        width = min(size, end - first)
        part = slice(bounds[number], bounds[number + 1])
        places = rows[part] * width + (items[part] - first)
        inside = (targets.item_ids >= first) & (targets.item_ids < first + width)
        own = torch.where(inside, targets.rows * width + (targets.item_ids - first), -1)
        item_ids = torch.arange(first, first + width, device=device).unsqueeze(0)
        scores, others = scorer.score_chunk(states, first, width), absent(slice(first, first + width))
        yield _Block(scores, item_ids, places, own, others)


class _Count:
    """Counts the candidates above and tied with each target, block after block.

    `bound` (B,) is the largest change of a score by rounding, None if equal scores are equal numbers. With `single`,
    one block contains all targets.
    """

    def __init__(self, scorer: Scorer, states: Tensor, targets: Targets, bound: Tensor | None, *, single: bool) -> None:
        self.scorer, self.targets, self.bound, self.single = scorer, targets, bound, single
        self.states = states if bound is None else scorer.cast(states)
        self.ranks = TargetRanks(torch.zeros_like(targets.item_ids), torch.zeros_like(targets.item_ids))
        self.scores: Tensor | None = None
        if bound is not None:
            self.scores = scorer.precise_scores(self.states[targets.rows], targets.item_ids)
        elif not single:
            own = scorer.score(states[targets.rows], targets.item_ids.unsqueeze(1))
            self.scores = own.squeeze(1)

    def add(self, block: _Block) -> None:
        """Count the candidates of a block."""
        flat = block.scores.view(-1)
        own = block.own if self.single else block.own[block.own >= 0]
        own_scores = flat[own]
        if self.scores is None:
            self.scores = own_scores
        block.hide(block.scores, -torch.inf)
        flat[own] = own_scores
        # -inf equals the score of hidden items, and NaN compares with nothing.
        special = ~(self.scores > -torch.inf)
        any_special = bool(special.any())
        rows, most = self.targets.rows, len(block.scores)
        for begin in range(0, len(rows), most):
            part = slice(begin, begin + most)
            # As many targets as users means one for each user.
            scores = block.scores if len(rows) == most else block.scores[rows[part]]
            skipped = special[part] if any_special else None
            if self.bound is None:
                self._add_exact(scores, block, part, skipped)
            else:
                self._add_rounded(scores, self.bound[rows[part]].unsqueeze(1), block, part, skipped)
        if any_special:
            self._add_special(block, special.nonzero().squeeze(1))

    def _add_exact(self, scores: Tensor, block: _Block, part: slice, skipped: Tensor | None) -> None:
        """Count in `scores` (R, C) if equal scores are equal numbers."""
        assert self.scores is not None
        own = self.scores[part].unsqueeze(1)
        ones = torch.empty_like(scores, dtype=torch.float32)
        # Sums of floats are several times faster than those of bool.
        better = scores.shape[1] - torch.le(scores, own, out=ones).sum(1).long()
        tied = torch.eq(scores, own, out=ones).sum(1).long() - (block.own[part] >= 0).long()
        self._add(part, better, tied, skipped)

    def _add_rounded(self, scores: Tensor, bound: Tensor, block: _Block, part: slice, skipped: Tensor | None) -> None:
        """Count in `scores` (R, C), and compare scores again that differ by less than `bound` (R, 1)."""
        assert self.scores is not None
        own = self.scores[part].unsqueeze(1)
        low, high = own - bound, own + bound
        ones = torch.empty_like(scores, dtype=torch.float32)
        above = torch.gt(scores, high, out=ones).sum(1).long()
        below = torch.lt(scores, low, out=ones).sum(1).long()
        # The target itself is always near.
        near = scores.shape[1] - above - below - (block.own[part] >= 0).long()
        self._add(part, above, torch.zeros_like(above), skipped)
        if skipped is not None:
            near = near.masked_fill(skipped, 0)
        doubtful = near.nonzero().squeeze(1)
        some = scores[doubtful]
        rows, columns = (~(some > high[doubtful]) & ~(some < low[doubtful])).nonzero(as_tuple=True)
        self._recount(doubtful[rows] + part.start, columns, block.item_ids)

    def _recount(self, numbers: Tensor, columns: Tensor, item_ids: Tensor) -> None:
        """Compare the targets `numbers` (N,) with the candidates in `columns` (N,), one product at a time."""
        assert self.scores is not None
        for begin in range(0, len(numbers), RECOUNT_PAIRS):
            target, column = numbers[begin : begin + RECOUNT_PAIRS], columns[begin : begin + RECOUNT_PAIRS]
            user = self.targets.rows[target]
            items = item_ids[user if len(item_ids) > 1 else 0, column]
            scores, own = self.scorer.precise_scores(self.states[user], items), self.scores[target]
            other = items != self.targets.item_ids[target]
            self.ranks.better.index_add_(0, target, (~(scores <= own) & other).long())
            self.ranks.tied.index_add_(0, target, ((scores == own) & other).long())

    def _add_special(self, block: _Block, numbers: Tensor) -> None:
        """Count for the targets `numbers` with a score of NaN or minus infinity."""
        assert self.scores is not None
        visible = torch.ones_like(block.scores, dtype=torch.bool)
        block.hide(visible, False)
        visible.view(-1)[block.own[block.own >= 0]] = True
        for number in numbers.tolist():
            row, place = self.targets.rows[number], int(block.own[number])
            candidate = visible[row].clone()
            if place >= 0:
                candidate[place % len(candidate)] = False
            scores, own = block.scores[row], self.scores[number]
            self.ranks.better[number] += (~(scores <= own) & candidate).sum()
            self.ranks.tied[number] += ((scores == own) & candidate).sum()

    def _add(self, part: slice, better: Tensor, tied: Tensor, skipped: Tensor | None) -> None:
        if skipped is not None:
            better, tied = better.masked_fill(skipped, 0), tied.masked_fill(skipped, 0)
        self.ranks.better[part] += better
        self.ranks.tied[part] += tied
