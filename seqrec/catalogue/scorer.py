"""Score items for states and find the best ones, in chunks over the catalogue.

B users, M positions, C candidates, D width, V = num_items + 1, K top-k.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.catalogue.block_search import best_of_blocks, disallowed_items
from seqrec.catalogue.sharding import ShardedEmbedding
from seqrec.errors import InputError
from seqrec.ops import pair_scores
from seqrec.ops.best_items import BEST_ITEMS_BACKENDS, MOST_ITEMS, best_items
from seqrec.ops.row_gradients import look_up, sums_at_lookup
from seqrec.types import Recommendations, SeenItems

# Scores held at a time when the whole catalogue is scored: 2^25 floats are 128 MiB.
SCORE_BUDGET = 1 << 25
# Numbers of item vectors that a GPU reads from a row-sparse table without looking for repeated items: 2^25 are 128 MiB.
REPEATED_NUMBERS = 1 << 25
# Without the compiled library, candidates that are at most this share of the catalogue are scored alone, from a copy of
# their vectors. Of more, the whole catalogue is scored, which copies nothing.
GATHERED_SHARE = 1 / 4


class Scorer:
    """Dot products of states with item vectors.

    Args:
        table: (V, D); row 0 is padding and never a candidate. Or an embedding with rows sharded over processes.
        sparse: Whether the table's gradients are torch's sparse tensors over the rows that were read.
        unit_columns: Number of leading columns that are scaled to length 1 for cosine scores; None scales none.
        score_budget: Scores in memory at a time, users x items.
        rows: Returns the vectors (U, D) of distinct items (U,), or (V, D) of all for None, if they are not the rows of
            `table` alone; differentiable. For training: whole catalogues are scored by a table.
        trained: (V,) bool, True for the items that objectives may take as negatives; None is all.

    Attributes:
        trained: As given.

    Example:
        >>> import torch
        >>> scorer = Scorer(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]))
        >>> best = scorer.top_k(torch.tensor([[3.0, 1.0]]), k=2, user_ids=torch.tensor([7]))
        >>> best.item_ids.tolist(), best.scores.tolist()
        ([[1, 2]], [[3.0, 2.0]])
    """

    def __init__(
        self,
        table: Tensor | ShardedEmbedding,
        *,
        sparse: bool = False,
        unit_columns: int | None = None,
        score_budget: int = SCORE_BUDGET,
        rows: Callable[[Tensor | None], Tensor] | None = None,
        trained: Tensor | None = None,
    ) -> None:
        self.trained = trained
        self._table = table
        self._rows = rows
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
            InputError: if the table is sharded, or training would give a row-sparse table a dense gradient.
        """
        if isinstance(self._table, ShardedEmbedding):
            raise InputError(
                "this reads all item vectors, but their rows are sharded over processes: read those it needs with "
                "Scorer.vectors or Scorer.gather, or set item_table.sharded: false"
            )
        if self._sparse and self._table.requires_grad and torch.is_grad_enabled():
            raise InputError(
                "this objective reads all item vectors, but the item table has row-sparse gradients: "
                "read the items it needs with Scorer.vectors or Scorer.gather, or set item_table.sparse: false"
            )
        return self._all_rows if self._rows is not None else self._scaled(self._table)

    @cached_property
    def _all_rows(self) -> Tensor:
        assert self._rows is not None
        return self._scaled(self._rows(None))

    def vectors(self, item_ids: Tensor) -> Tensor:
        """Return vectors (..., D) of items (...); differentiable."""
        if self._rows is not None:
            if "_all_rows" in vars(self):
                return F.embedding(item_ids, self._all_rows)
            distinct, places = torch.unique(item_ids, return_inverse=True)
            return F.embedding(places, self._scaled(self._rows(distinct)))
        if isinstance(self._table, ShardedEmbedding):
            return self._scaled(self._table(item_ids))
        if self._sparse and torch.is_grad_enabled() and not sums_at_lookup(item_ids.device):
            return self._scaled(look_up(self._table, item_ids).to(self._dtype))
        padding = 0 if self._sparse else None
        rows = F.embedding(item_ids, self._table, padding_idx=padding, sparse=self._sparse)
        return self._scaled(rows.to(self._dtype))

    def part(self, first: int, size: int) -> Tensor:
        """Return (size, D) vectors of the items from `first`, fewer at the end, in the precision of scores."""
        if self._rows is not None:
            last = min(first + size, self.num_items + 1)
            rows = self._rows(torch.arange(first, last, device=self._weight.device))
        elif isinstance(self._table, ShardedEmbedding):
            rows = self._table.host_copy.part(first, size)
        else:
            rows = self._table[first : first + size]
        return self._scaled(rows.to(self._dtype))

    def gather(self, item_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors (U, D) that include those of `item_ids`, and the items' places (shape of `item_ids`) in them.

        For a dense table that is the table itself. From a sparse one each distinct item is read once, so its gradient
        has one row per item. A GPU reads a few items repeatedly, and scales a whole dense table, instead of letting
        Python wait for the number of distinct ones.
        """
        if "_all_rows" in vars(self):
            return self._all_rows, item_ids
        if isinstance(self._table, Tensor) and not self._sparse and self._unit_columns is None and self._rows is None:
            return self._table, item_ids
        if isinstance(self._table, Tensor) and self._rows is None and not sums_at_lookup(item_ids.device):
            if not self._sparse:
                return self._scaled_table, item_ids
            if item_ids.numel() * self._table.shape[1] <= REPEATED_NUMBERS:
                places = torch.arange(item_ids.numel(), device=item_ids.device).view(item_ids.shape)
                return self.vectors(item_ids.flatten()), places
        distinct, places = torch.unique(item_ids, return_inverse=True)
        return self.vectors(distinct), places

    @cached_property
    def _scaled_table(self) -> Tensor:
        assert isinstance(self._table, Tensor)
        return self._scaled(self._table.to(self._dtype))

    def score(self, states: Tensor, item_ids: Tensor) -> Tensor:
        """Return scores (M, C) of items (M, C) for states (M, D); differentiable."""
        is_table = isinstance(self._table, Tensor) and self._rows is None
        if self._sparse and is_table and not sums_at_lookup(item_ids.device):
            return (self.vectors(item_ids) * states.unsqueeze(1)).sum(-1)
        return pair_scores(states, *self.gather(item_ids))

    def score_chunk(self, states: Tensor, first: int, size: int) -> Tensor:
        """Return scores (B, size) of the items `first`, .., `first + size - 1` for states (B, D).

        A subclass with another score than a dot product overrides this, `score` and `rounding`. Scores have the
        precision of `cast`, also under autocast: bfloat16 would round different scores to ties.
        """
        states = self.cast(states)
        with torch.autocast(states.device.type, enabled=False):
            return states @ self.part(first, size).T

    def cast(self, states: Tensor) -> Tensor:
        """Return states in the precision of scores: the table's, at least float32."""
        return states.to(self._dtype)

    @torch.no_grad()
    def rounding(self, states: Tensor) -> Tensor | None:
        """Return a bound on the difference of `score` and `score_chunk` from `precise_scores`.

        The error of a sum of D products in any order is below D units in the last place of `|state| |item|` (Higham
        2002, Accuracy and Stability of Numerical Algorithms, section 3.1), and two more of each factor's if these are
        rounded first, as TF32 does. A subclass with another score overrides this, and `precise_scores` unless it
        returns None.

        Args:
            states: (B, D).

        Returns:
            (B,), 0 for states that are not finite; None if scores are exact, such as a single product.
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
        """Return (M,) scores of one item per state (M, D): sums in float64, rounded to the precision of scores."""
        table = self._table
        if self._rows is not None:
            rows = self._rows(item_ids)
        else:
            rows = table.host_copy.rows(item_ids) if isinstance(table, ShardedEmbedding) else table[item_ids]
        scores: Tensor = (states.double() * self._scaled(rows.double())).sum(1)
        return scores.to(self._dtype)

    @cached_property
    def _longest(self) -> Tensor:
        """() float64, length of the longest finite item vector."""
        size = max(1, self.score_budget // self.part(1, 1).shape[1])
        lengths = [
            torch.linalg.vector_norm(self.part(first, size).detach(), dim=1).nan_to_num(nan=0.0, posinf=0.0).max()
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
        allowed: Tensor | None = None,
    ) -> Recommendations:
        """Return the K best items of the whole catalogue, or of some candidates, for each user.

        Args:
            states: (B, D).
            k: Items per user, 1..num_items.
            user_ids: (B,) passed through to the result.
            exclude: Items that are not recommended, per user.
            blocked: (N,) int64, ascending: items that are not recommended to any user.
            allowed: (N,) int64, ascending: the only items that are recommended; None allows all. Their scores and order
                are those of a search of all items, bit by bit. Only if at most a quarter of the catalogue is allowed
                and the compiled library does not find the items, scores may differ in rounding.

        Returns:
            Best first. Of equal scores the smaller id comes first if the compiled library finds them
            (`seqrec.ops.best_items`: dot products with a table in memory in float32 on CPU), else the order is torch's.
            Items with a NaN score are left out. No search holds the scores of the catalogue: see `best_of_blocks` for
            what it holds without the compiled library.

        Raises:
            InputError: if `k` is out of range.
        """
        check_top_k(k, self.num_items)
        if allowed is not None and blocked is not None:
            allowed, blocked = allowed[~torch.isin(allowed, blocked)], None
        states, table = self.cast(states), self._table
        is_product = self._is_product and k <= MOST_ITEMS
        if is_product and isinstance(table, Tensor) and table.dtype == states.dtype and _never_writes_scores(states):
            scores, item_ids = best_items(states, table, k, excluded=exclude, blocked=blocked, allowed=allowed)
            return Recommendations(item_ids, scores, user_ids)
        if allowed is not None:
            if not len(allowed):
                empty = states.new_full((len(states), k), -torch.inf)
                return Recommendations(torch.zeros_like(empty, dtype=torch.int64), empty, user_ids)
            if type(self).score_chunk is Scorer.score_chunk and len(allowed) <= GATHERED_SHARE * self.num_items:
                return self._top_k_of(allowed, states, k, user_ids, exclude)
        disallowed = disallowed_items(self.num_items, blocked, allowed)
        item_ids, scores = best_of_blocks(
            self.score_chunk,
            self.num_items,
            states,
            k,
            budget=self.score_budget,
            exclude=exclude,
            disallowed=disallowed,
        )
        return Recommendations(item_ids, scores, user_ids)

    def _top_k_of(
        self, item_ids: Tensor, states: Tensor, k: int, user_ids: Tensor, exclude: SeenItems | None
    ) -> Recommendations:
        """Return `top_k` of some items (N,) by a scorer of their vectors alone, whose row n is item n - 1 of them."""
        rows = torch.cat([item_ids.new_zeros(1), item_ids])
        scorer = Scorer(self.vectors(rows), score_budget=self.score_budget)
        own = None if exclude is None else exclude.places_in(rows)
        best = scorer.top_k(states, min(k, len(item_ids)), user_ids, exclude=own)
        missing = k - best.item_ids.shape[1]
        scores = F.pad(best.scores, (0, missing), value=-torch.inf)
        return Recommendations(F.pad(rows[best.item_ids], (0, missing)), scores, user_ids)

    def cosines(self, num_columns: int) -> Scorer:
        """Return a scorer of cosines of item vectors: of their first columns, without biases.

        A table in this process is copied, with vectors of length 1, so that a search need not scale it again. Rows of a
        table that is sharded over processes are scaled as they are read.
        """
        if isinstance(self._table, ShardedEmbedding) or self._rows is not None:
            return Scorer(self._table, unit_columns=num_columns, score_budget=self.score_budget, rows=self._rows)
        with torch.no_grad():
            vectors = F.normalize(self._table[:, :num_columns].to(self._dtype), dim=1)
        return Scorer(vectors, score_budget=self.score_budget)

    @property
    def _is_product(self) -> bool:
        """Whether scores are products of states with the table's rows."""
        is_own = type(self).score_chunk is Scorer.score_chunk
        return is_own and self._unit_columns is None and self._rows is None

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self._weight.dtype, torch.float32)

    @property
    def _weight(self) -> Tensor:
        return self._table.weight if isinstance(self._table, ShardedEmbedding) else self._table

    def _scaled(self, vectors: Tensor) -> Tensor:
        columns = self._unit_columns
        if columns is None:
            return vectors
        return torch.cat([F.normalize(vectors[..., :columns], dim=-1), vectors[..., columns:]], dim=-1)


def check_top_k(k: int, num_items: int) -> None:
    """Raise an `InputError` if `k` is not in 1..num_items."""
    if not 1 <= k <= num_items:
        raise InputError(f"top_k={k} must be between 1 and num_items={num_items}")


def _never_writes_scores(states: Tensor) -> bool:
    return BEST_ITEMS_BACKENDS.choose("auto", states.device.type, states.dtype).name == "cpp"


def _factor_rounding(dtype: torch.dtype) -> float:
    """Return the relative change of a product if torch is set to round the factors of matrix products."""
    if dtype != torch.float32:
        return 0.0
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:
        # This getter refuses if torch's newer switches per backend are set: the coarsest precision holds for all.
        precision = "medium"
    # Half a unit of TF32's 10 bits or bfloat16's 7, of two factors, and as much again to be safe.
    return {"highest": 0.0, "high": 2.0**-9, "medium": 2.0**-6}[precision]
