"""Scores of items for states and best items, in chunks over the catalogue.

Shapes: B users, M positions, C candidates, D width, V = num_items + 1, K top-k.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.catalogue.sharding import ShardedEmbedding
from seqrec.errors import InputError
from seqrec.ops.row_gradients import sums_at_lookup
from seqrec.types import Recommendations, SeenItems

# Scores held at a time when the whole catalogue is scored: 2^25 floats are 128 MiB.
SCORE_BUDGET = 1 << 25


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

    def part(self, first: int, size: int) -> Tensor:
        """(size, D) vectors of the items from `first` on, fewer at the catalogue's end, in the precision of scores."""
        if isinstance(self._table, ShardedEmbedding):
            rows = self._table.host_copy.part(first, size)
        else:
            rows = self._table[first : first + size]
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
        if self._sparse and isinstance(self._table, Tensor) and not sums_at_lookup(item_ids.device):
            vectors = self.vectors(item_ids)
        else:
            distinct, places = self.gather(item_ids)
            vectors = F.embedding(places, distinct)
        return (vectors * states.unsqueeze(1)).sum(-1)

    def score_chunk(self, states: Tensor, first: int, size: int) -> Tensor:
        """Scores (B, size) of the items `first`, .., `first + size - 1` for states (B, D).

        All that ranks and lists need of a scorer beside `score`: a subclass with another score than a dot product
        overrides both, and `rounding`. States have the precision of `cast`, and so have the scores, also under
        autocast: what bfloat16 rounds to the same score would be tied.
        """
        states = self.cast(states)
        with torch.autocast(states.device.type, enabled=False):
            return states @ self.part(first, size).T

    def cast(self, states: Tensor) -> Tensor:
        """States in the precision of scores: the table's, at least float32."""
        return states.to(self._dtype)

    @torch.no_grad()
    def rounding(self, states: Tensor) -> Tensor | None:
        """Bound on how far `score` and `score_chunk` lie from `precise_scores`.

        A sum of D products in any order errs by less than D units in the last place of `|state| |item|` (Higham
        2002, Accuracy and Stability of Numerical Algorithms, section 3.1), and by two more of each factor's where
        these are rounded first, as TF32 does.

        Args:
            states: (B, D).

        Returns:
            (B,), 0 where a state is not finite; None where equal scores are equal numbers, as with one product a
            score. A subclass with another score than a dot product overrides this, and `precise_scores` unless it
            says None.
        """
        width = self.part(1, 1).shape[1]
        if width == 1 and self._unit_columns is None:
            return None
        states = self.cast(states)
        relative = (width + 2) * torch.finfo(states.dtype).eps + _factor_rounding(states.dtype)
        if self._unit_columns is not None:
            relative *= 2  # a length is a sum of as many products
        bound: Tensor = torch.linalg.vector_norm(states.double(), dim=1) * self._longest * relative
        return bound.nan_to_num(nan=0.0, posinf=0.0).to(states.dtype)

    @torch.no_grad()
    def precise_scores(self, states: Tensor, item_ids: Tensor) -> Tensor:
        """(M,) scores of one item for each state (M, D): sums in float64 rounded to the precision of scores."""
        table = self._table
        rows = table.host_copy.rows(item_ids) if isinstance(table, ShardedEmbedding) else table[item_ids]
        scores: Tensor = (states.double() * self._scaled(rows.double())).sum(1)
        return scores.to(self._dtype)

    @cached_property
    def _longest(self) -> Tensor:
        """() float64, length of the longest finite item vector."""
        size = max(1, self.score_budget // self.part(1, 1).shape[1])
        lengths = [
            torch.linalg.vector_norm(self.part(first, size).detach(), dim=1)
            .nan_to_num(nan=0.0, posinf=0.0)
            .max()
            for first in range(1, self.num_items + 1, size)
        ]
        return torch.stack(lengths).max().double()

    @torch.no_grad()
    def top_k(
        self,
        states: Tensor,
        k: int,
        user_ids: Tensor,
        *,
        exclude: SeenItems | None = None,
        blocked: Tensor | None = None,
    ) -> Recommendations:
        """The K best items of the whole catalogue for each user.

        Args:
            states: (B, D).
            k: Items a user, 1..num_items.
            user_ids: (B,) passed through to the result.
            exclude: Items that may not be recommended to each user.
            blocked: (N,) int64, ascending: items that may not be recommended to anybody.

        Returns:
            Best first; among equal scores the order is torch's. An item whose score is not a number is left out.

        Raises:
            InputError: `k` is out of range.
        """
        check_top_k(k, self.num_items)
        states = self.cast(states)
        best_scores = states.new_full((len(states), 0), -torch.inf)
        best_ids = torch.zeros((len(states), 0), dtype=torch.int64, device=states.device)
        hidden = None if exclude is None else (exclude.rows, exclude.item_ids)
        for first, scores in self._chunks(states):
            if hidden is not None:
                _hide(scores, *hidden, first)
            if blocked is not None:
                here = (blocked >= first) & (blocked < first + scores.shape[1])
                scores.index_fill_(1, blocked[here] - first, -torch.inf)
            values, columns = _best(scores, min(k, scores.shape[1]))
            best_ids = torch.cat([best_ids, columns + first], 1)
            best_scores = torch.cat([best_scores, values], 1)
            if best_scores.shape[1] > values.shape[1]:
                best_scores, order = best_scores.sort(dim=1, descending=True, stable=True)
                best_scores, best_ids = best_scores[:, :k], best_ids.gather(1, order[:, :k])
        return Recommendations(best_ids.masked_fill(best_scores == -torch.inf, 0), best_scores, user_ids)

    def _chunk_size(self, num_states: int) -> int:
        return max(1, self.score_budget // max(num_states, 1))

    def _chunks(self, states: Tensor) -> Iterator[tuple[int, Tensor]]:
        """First item id and scores (B, chunk) of one part of the catalogue after another."""
        size = self._chunk_size(len(states))
        for first in range(1, self.num_items + 1, size):
            yield first, self.score_chunk(states, first, min(size, self.num_items + 1 - first))

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


def check_top_k(k: int, num_items: int) -> None:
    """Refuse a number of items a user that the catalogue does not have.

    Raises:
        InputError: `k` is not in 1..num_items.
    """
    if not 1 <= k <= num_items:
        raise InputError(f"top_k={k} must be between 1 and num_items={num_items}")


def _best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The K largest scores of each row (B, chunk) and their columns; what is not a number counts as -inf."""
    values, columns = scores.topk(k, dim=1)
    # topk puts these first, so that a row that has any shows it there.
    if values[:, 0].isnan().any():
        return scores.masked_fill_(scores.isnan(), -torch.inf).topk(k, dim=1)
    return values, columns


def _hide(scores: Tensor, rows: Tensor, item_ids: Tensor, first: int) -> None:
    """Set the scores (B, chunk) of (row, item) pairs to minus infinity, in place."""
    here = (item_ids >= first) & (item_ids < first + scores.shape[1])
    scores[rows[here], item_ids[here] - first] = -torch.inf


def _factor_rounding(dtype: torch.dtype) -> float:
    """Relative change of a product where a matrix product rounds its factors first, as it may if torch is told so."""
    if dtype != torch.float32:
        return 0.0
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:
        # Set by torch's newer switches, one a backend, which this question refuses: the coarsest holds for each.
        precision = "medium"
    # Half a unit of TF32's 10 bits or bfloat16's 7, of two factors, and as much again to be safe.
    return {"highest": 0.0, "high": 2.0**-9, "medium": 2.0**-6}[precision]
