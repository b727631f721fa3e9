"""Scores of items for states, ranks of targets and best items, in chunks over the catalogue.

Shapes: B users, M positions, C candidates, D width, V = num_items + 1, K top-k.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.errors import InputError
from seqrec.sharding import ShardedEmbedding
from seqrec.types import Recommendations, SeenItems, TargetRanks

# Scores held at a time when the whole catalogue is scored: 2^25 floats are 128 MiB.
SCORE_BUDGET = 1 << 25
# Pairs of state and item that are compared again at a time, where rounding decides.
RECOUNT_PAIRS = 1 << 16


class Scorer:
    """Dot products of states with item vectors.

    Args:
        table: (V, D); row 0 is padding and is never a candidate. Or an embedding whose rows lie spread over ranks.
        sparse: Whether gradients of the table are torch's sparse tensors over the rows that were read.
        unit_columns: The first so many columns of each row are scaled to length 1 before they are compared, for
            scores that are cosines; None scales none.
        score_budget: Scores held at a time, B x catalogue chunk.
    """

    def __init__(
        self,
        table: Tensor | ShardedEmbedding,
        *,
        sparse: bool = False,
        unit_columns: int | None = None,
        score_budget: int = SCORE_BUDGET,
    ) -> None:
        self._table = table
        self._sparse = sparse
        self._unit_columns = unit_columns
        self.score_budget = score_budget

    @property
    def num_items(self) -> int:
        """Items that can be scored; ids are 1..num_items."""
        table = self._table
        return (table.num_embeddings if isinstance(table, ShardedEmbedding) else len(table)) - 1

    @property
    def item_vectors(self) -> Tensor:
        """(V, D) vectors of all items, for objectives that score all of them.

        Raises:
            InputError: in training, a table with row-sparse gradients, which would get a dense one. Always, a table
                whose rows lie spread over ranks.
        """
        if isinstance(self._table, ShardedEmbedding):
            raise InputError(
                "this reads all item vectors, but their rows are spread over ranks: read those it needs with "
                "Scorer.vectors or Scorer.gather, or set item_table.sharded: false"
            )
        if self._sparse and self._table.requires_grad and torch.is_grad_enabled():
            raise InputError(
                "this objective reads all item vectors, but the item table has row-sparse gradients: "
                "read the items it needs with Scorer.vectors or Scorer.gather, or set item_table.sparse: false"
            )
        return self._scaled(self._table)

    def vectors(self, item_ids: Tensor) -> Tensor:
        """Vectors (..., D) of items (...); differentiable."""
        if isinstance(self._table, ShardedEmbedding):
            return self._scaled(self._table(item_ids))
        padding = 0 if self._sparse else None
        rows = F.embedding(item_ids, self._table, padding_idx=padding, sparse=self._sparse)
        return self._scaled(rows.to(self._dtype))

    def gather(self, item_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (U, D) among which those of `item_ids` are, and their places (shape of `item_ids`) there.

        Of a dense table that is the table itself. Of a sparse one each distinct item is read once, so that its
        gradient has as many rows, whatever the number of scores.
        """
        if isinstance(self._table, Tensor) and not self._sparse and self._unit_columns is None:
            return self._table, item_ids
        distinct, places = torch.unique(item_ids, return_inverse=True)
        return self.vectors(distinct), places

    def score(self, states: Tensor, item_ids: Tensor) -> Tensor:
        """Scores (M, C) of items (M, C) for states (M, D); differentiable."""
        vectors, places = self.gather(item_ids)
        return (F.embedding(places, vectors) * states.unsqueeze(1)).sum(-1)

    @torch.no_grad()
    def target_ranks(self, states: Tensor, targets: Tensor, seen: SeenItems | None = None) -> TargetRanks:
        """Rank each target among the whole catalogue.

        **Tie rule.** Candidates with exactly the target's score are counted apart (`TargetRanks.tied`), and
        metrics take the mean over all orders of the tied. Constant scores therefore give what chance
        gives, and never look good. A score that is not a number counts as better than the target's, and a
        target whose score is not a number has every candidate above it.

        A matrix product rounds its last columns otherwise than the others, so scores that differ by rounding
        alone are compared again, by products in float64 rounded to the table's precision.

        Args:
            states: (B, D).
            targets: (B,) item ids.
            seen: Items that are no candidates for each user; a target stays one even if it is seen. None keeps all.

        Returns:
            Counts (B,); the target itself is not counted.
        """
        states = states.to(self._dtype)
        # Two passes: the targets' scores, then the counts. A catalogue of one chunk is scored once for both.
        once = list(self._chunks(states)) if self._chunk_size(len(states)) >= self.num_items else None
        target_scores = _pick_scores(once or self._chunks(states), targets).unsqueeze(1)
        better, tied = torch.zeros_like(targets), torch.zeros_like(targets)
        hidden = _pairs_to_hide(seen, targets)
        for first, scores in once or self._chunks(states):
            candidate = _visible(hidden, first, scores)
            rounding = self._rounding(states, first, scores.shape[1]).unsqueeze(1)
            gap = scores - target_scores
            near = (gap.abs() <= rounding) & (gap != 0) & candidate
            better += (~(scores <= target_scores) & ~near & candidate).sum(1)
            tied += ((scores == target_scores) & candidate).sum(1)
            self._recount(states, targets, first, near, better, tied)
        return TargetRanks(better, tied)

    @torch.no_grad()
    def candidate_ranks(self, states: Tensor, targets: Tensor, candidates: Tensor) -> TargetRanks:
        """Rank each target among given candidates, with the tie rule of `target_ranks`.

        Args:
            states: (B, D).
            targets: (B,) item ids.
            candidates: (B, C) item ids, none of them the row's target.

        Returns:
            Counts (B,).
        """
        scores = self.score(states, torch.cat([targets.unsqueeze(1), candidates], dim=1))
        target_scores, others = scores[:, :1], scores[:, 1:]
        return TargetRanks((~(others <= target_scores)).sum(1), (others == target_scores).sum(1))

    @torch.no_grad()
    def top_k(
        self, states: Tensor, k: int, user_ids: Tensor, *, exclude: SeenItems | None = None
    ) -> Recommendations:
        """The K best items of the whole catalogue for each user.

        Args:
            states: (B, D).
            k: Items a user, 1..num_items.
            user_ids: (B,) passed through to the result.
            exclude: Items that may not be recommended to each user.

        Returns:
            Best first; among equal scores the order is torch's. An item whose score is not a number is left out.

        Raises:
            InputError: `k` is out of range.
        """
        if not 1 <= k <= self.num_items:
            raise InputError(f"top_k={k} must be between 1 and num_items={self.num_items}")
        states = states.to(self._dtype)
        hidden = _pairs_to_hide(exclude)
        best_scores = states.new_full((len(states), 0), -torch.inf)
        best_ids = torch.zeros((len(states), 0), dtype=torch.int64, device=states.device)
        for first, scores in self._chunks(states):
            scores.masked_fill_(scores.isnan(), -torch.inf)  # topk would put them first
            scores.masked_fill_(~_visible(hidden, first, scores), -torch.inf)
            values, columns = scores.topk(min(k, scores.shape[1]), dim=1)
            best_scores, order = torch.cat([best_scores, values], 1).sort(dim=1, descending=True, stable=True)
            best_ids = torch.cat([best_ids, columns + first], 1).gather(1, order)
            best_scores, best_ids = best_scores[:, :k], best_ids[:, :k]
        return Recommendations(best_ids.masked_fill(best_scores == -torch.inf, 0), best_scores, user_ids)

    def _chunk_size(self, num_states: int) -> int:
        return max(1, self.score_budget // max(num_states, 1))

    def _chunks(self, states: Tensor) -> Iterator[tuple[int, Tensor]]:
        """First item id and scores (B, chunk) of one part of the catalogue after another.

        States have the table's precision, and so have the scores, also under autocast: what bfloat16 rounds
        to the same score would be tied.
        """
        size = self._chunk_size(len(states))
        for first in range(1, self.num_items + 1, size):
            with torch.autocast(states.device.type, enabled=False):
                scores = states @ self._part(first, size).T
            yield first, scores

    def _part(self, first: int, size: int) -> Tensor:
        """(size, D) vectors of the items from `first` on, fewer at the catalogue's end."""
        if isinstance(self._table, ShardedEmbedding):
            rows = self._table.host_copy.part(first, size)
        else:
            rows = self._table[first : first + size]
        return self._scaled(rows.to(self._dtype))

    @property
    def _dtype(self) -> torch.dtype:
        """Type of scores: the table's, float32 at least."""
        weight = self._table.weight if isinstance(self._table, ShardedEmbedding) else self._table
        return torch.promote_types(weight.dtype, torch.float32)

    def _scaled(self, vectors: Tensor) -> Tensor:
        columns = self._unit_columns
        if columns is None:
            return vectors
        return torch.cat([F.normalize(vectors[..., :columns], dim=-1), vectors[..., columns:]], dim=-1)

    def _rounding(self, states: Tensor, first: int, width: int) -> Tensor:
        """(B,) bound on what the order of summation can change in the scores of a chunk."""
        longest = self._part(first, width).norm(dim=1).max()
        bound: Tensor = 64 * torch.finfo(states.dtype).eps * states.norm(dim=1) * longest
        return bound

    def _recount(
        self, states: Tensor, targets: Tensor, first: int, near: Tensor, better: Tensor, tied: Tensor
    ) -> None:
        """Add to the counts (B,), in place, the candidates marked in `near` (B, chunk), one product at a time."""
        rows, columns = near.nonzero(as_tuple=True)
        for part in range(0, len(rows), RECOUNT_PAIRS):
            users, items = rows[part : part + RECOUNT_PAIRS], columns[part : part + RECOUNT_PAIRS] + first
            gap = self._precise(states[users], items) - self._precise(states[users], targets[users])
            better.index_add_(0, users, (gap > 0).to(better.dtype))
            tied.index_add_(0, users, (gap == 0).to(tied.dtype))

    def _precise(self, states: Tensor, item_ids: Tensor) -> Tensor:
        """(M,) scores of one item for each state (M, D), in float64 rounded to the states' precision."""
        table = self._table
        rows = table.host_copy.rows(item_ids) if isinstance(table, ShardedEmbedding) else table[item_ids]
        vectors = self._scaled(rows.double())
        scores: Tensor = (states.double() * vectors).sum(1)
        return scores.to(states.dtype)


def _pairs_to_hide(seen: SeenItems | None, targets: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
    """Rows and item ids that are no candidates: what each row has seen, and its target itself."""
    pairs = [] if seen is None else [(seen.rows, seen.item_ids)]
    return (
        pairs if targets is None else [*pairs, (torch.arange(len(targets), device=targets.device), targets)]
    )


def _visible(hidden: list[tuple[Tensor, Tensor]], first: int, scores: Tensor) -> Tensor:
    """(B, chunk) True where an item is a candidate."""
    candidate = torch.ones_like(scores, dtype=torch.bool)
    for rows, item_ids in hidden:
        here = (item_ids >= first) & (item_ids < first + scores.shape[1])
        candidate[rows[here], item_ids[here] - first] = False
    return candidate


def _pick_scores(chunks: Iterable[tuple[int, Tensor]], targets: Tensor) -> Tensor:
    """(B,) targets' scores, as the chunks hold them."""
    found: Tensor | None = None
    for first, scores in chunks:
        inside = (targets >= first) & (targets < first + scores.shape[1])
        own = torch.where(inside, targets - first, 0).unsqueeze(1)
        picked = scores.gather(1, own).squeeze(1)
        found = picked if found is None else torch.where(inside, picked, found)
    assert found is not None, "a catalogue has at least one item"
    return found
