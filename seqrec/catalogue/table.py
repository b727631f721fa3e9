"""Tables of learned vectors. V = num_items + 1, D width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.catalogue.content import ItemContent
from seqrec.catalogue.distributed import average_row_gradient, equal_on_all_ranks
from seqrec.catalogue.scorer import Scorer
from seqrec.catalogue.sharding import ShardedEmbedding
from seqrec.data.schema import ITEMS
from seqrec.errors import InputError, check_at_least
from seqrec.ops.event_input import TableRows
from seqrec.ops.row_gradients import look_up, sums_at_lookup

# Tables with at least so many rows have row-sparse gradients by default. For smaller ones a fused dense step over all
# rows costs less than finding the rows of a batch.
SPARSE_FROM_ROWS = 500_000
# Default of `ItemTable.id_dropout`. Without any, items of which only the content is known are scored too high, because
# only the items' own vectors learn how popular they are.
ID_DROPOUT = 0.1
# Numbers of item vectors that are composed at a time, outside of training.
COMPOSED_NUMBERS = 1 << 22


@dataclass(frozen=True)
class ItemTable:
    """Settings of the item table: how items are stored and compared with states.

    Attributes:
        sparse: Whether a training step reads, sends and writes only the rows of its batch. None means yes for
            `SPARSE_FROM_ROWS` rows or more, unless the objective reads the whole table. The choice is printed.
        dtype: Storage type of the vectors; computation is in float32. Row-sparse updates of bfloat16 round
            stochastically, so small updates are not lost.
        separate_output: Whether a second table scores the candidates, instead of the one that embeds the history
            (tied, as in SASRec).
        bias: Whether each item has a learned number that is added to its score, stored as another column.
        temperature: None scores by dot products; otherwise by cosines divided by this temperature, as in Towards
            Universal Sequence Representation Learning (Hou et al. 2022) and many others.
        std: Standard deviation of vectors at initialisation.
        sharded: Whether each process of a job holds a part of the rows, for tables that do not fit on one device;
            `ShardedEmbedding` describes the cost. Such tables are sparse. A single process holds all rows.
        content: Columns of `Schema.items` that determine a part of each item's vector, as `ItemContent` describes. It
            is part of the history's vectors and of the candidates'. An item without training events then has no
            learned vector of its own, only its content.
        ids: Whether each item also has a learned vector of its own, which is added. False leaves only the content.
        id_dropout: Share of the items whose own vectors a training step leaves out, drawn anew at each lookup, so that
            the content learns to stand alone (DropoutNet, Volkovs et al. 2017); 0 leaves none out. None is
            `ID_DROPOUT` with content and ids.

    Raises:
        InputError: if temperature or deviation is not positive, a sharded table is not sparse, or `ids` and
            `id_dropout` do not suit each other or the content.

    Example:
        >>> from seqrec import ItemTable, SASRec
        >>> model = SASRec(num_items=20, d_model=8, item_table=ItemTable(bias=True))
        >>> model.items.weight.shape
        torch.Size([21, 9])
    """

    sparse: bool | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    separate_output: bool = False
    bias: bool = False
    temperature: float | None = None
    std: float = 0.02
    sharded: bool = False
    content: tuple[str, ...] = ()
    ids: bool = True
    id_dropout: float | None = None

    def __post_init__(self) -> None:
        # Configs and JSON pass lists; a tuple keeps the settings hashable.
        names = [self.content] if isinstance(self.content, str) else self.content
        object.__setattr__(self, "content", tuple(names))
        self._check_content()
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"dtype={self.dtype!r} must be float32 or bfloat16")
        for name, value in {"temperature": self.temperature, "std": self.std}.items():
            if value is not None and not value > 0:
                raise InputError(f"{name}={value} must be above 0")
        if self.sharded and self.sparse is False:
            raise InputError(
                "item_table.sharded=True needs row-sparse gradients, which item_table.sparse=False turns off: leave "
                "sparse out, or set sharded: false"
            )

    def _check_content(self) -> None:
        if self.id_dropout is not None and not 0 <= self.id_dropout < 1:
            raise InputError(
                f"id_dropout={self.id_dropout} must be at least 0 and below 1; for content alone: ids: false"
            )
        if not self.content and not self.ids:
            raise InputError("item_table.ids=False leaves items without vectors: name columns in item_table.content")
        if self.id_dropout and not (self.content and self.ids):
            raise InputError(
                f"item_table.id_dropout={self.id_dropout} needs item_table.content, which stands in, and ids: true"
            )
        if self.sharded and not self.ids:
            raise InputError("item_table.ids=False leaves no table whose rows could be spread: leave sharded out")

    @property
    def dropped_ids(self) -> float:
        """`id_dropout`, or its default."""
        if self.id_dropout is None:
            return ID_DROPOUT if self.content and self.ids else 0.0
        return self.id_dropout

    def is_sparse(self, num_rows: int, *, reads_all: bool = False) -> bool:
        """Return whether a table of so many rows has row-sparse gradients.

        Raises:
            InputError: if `sparse` or `sharded` is set, but each training step reads the whole table.
        """
        if (self.sparse or self.sharded) and reads_all:
            asked = "sharded" if self.sharded else "sparse"
            raise InputError(
                f"item_table.{asked}=True, but this objective scores the whole catalogue at each step, so that all "
                f"rows have gradients: use a sampled objective (SampledSoftmax, GBCE, BCE), or {asked}: false"
            )
        if self.sparse is None and not self.sharded:
            return num_rows >= SPARSE_FROM_ROWS and not reads_all
        return bool(self.sparse or self.sharded)


class ItemEmbedding(nn.Module):
    """One vector per item; row 0 is padding, zero, and never trained.

    With `sparse`, gradients are torch's sparse tensors over the rows that were read, for the optimizers of
    `seqrec.training.optim` and `torch.optim.SparseAdam`; a step allocates nothing of the table's size. With `bias` the
    table has another column of zeros, the items' biases, that `forward` leaves out. If it is `sharded`, it has no rows
    until `make_rows`. See `ItemTable` for the other arguments.

    With `content`, the sizes of columns of items by name, vectors are the sum of the items' own and of their content.
    Items that are not `trained` have no vector of their own. With the group "users" they are users, of whom there may
    be too many to keep all vectors between lookups.

    Attributes:
        content: The part of vectors that columns of items determine; None without.
        own_columns: Leading columns of the table that are vectors of the items' own, D or 0; biases follow.
        trained: (V,) bool with content, True for items with training events; for all until `use_trained_items`.

    Raises:
        InputError: if there are no items, or a sharded table is not sparse.
    """

    content: ItemContent | None
    trained: Tensor

    def __init__(
        self,
        num_items: int,
        d_model: int,
        *,
        std: float = 0.02,
        sparse: bool = False,
        dtype: torch.dtype = torch.float32,
        bias: bool = False,
        sharded: bool = False,
        content: Mapping[str, Mapping[str, Any]] | None = None,
        ids: bool = True,
        id_dropout: float = 0.0,
        group: str = ITEMS,
    ) -> None:
        super().__init__()
        check_at_least(1, num_items=num_items)
        self.num_items = num_items
        self.id_dropout = id_dropout
        self.own_columns = d_model if ids else 0
        self._whole: tuple[Any, Tensor] | None = None
        self.content = ItemContent(content, d_model, std=std, group=group) if content else None
        if self.content is not None:
            self.register_buffer("trained", torch.ones(num_items + 1, dtype=torch.bool))
        if sharded and not sparse:
            raise InputError("sharded=True needs sparse=True")
        self.d_model = d_model
        self.table: nn.Embedding
        if sharded:
            self.table = ShardedEmbedding(num_items + 1, d_model + bias, std=std, zeros_from=d_model, dtype=dtype)
            return
        width = self.own_columns + bias
        self.table = nn.Embedding(num_items + 1, width, padding_idx=0, sparse=sparse and width > 0, dtype=dtype)
        # Without vectors of items and biases nothing is learned here.
        self.table.weight.requires_grad_(width > 0)
        nn.init.normal_(self.table.weight, std=std)
        with torch.no_grad():
            self.table.weight[0].zero_()
            self.table.weight[:, self.own_columns :].zero_()

    @property
    def weight(self) -> Tensor:
        """(V, D) the table, or this process's shard; with biases another column."""
        return self.table.weight

    @property
    def spread(self) -> ShardedEmbedding | None:
        """The table if other processes hold rows of it; None if this process has all."""
        return self.table if isinstance(self.table, ShardedEmbedding) and self.table.is_spread else None

    def scorer(self, *, unit_columns: int | None = None) -> Scorer:
        """Return a scorer of the current weights; with content and outside of training, of what `whole` returns.

        Raises:
            InputError: if a sharded table has no rows yet.
        """
        self._check_rows()
        if self.content is not None and self._keeps_whole:
            return Scorer(self.whole(), unit_columns=unit_columns)
        table = self.table.weight if self.spread is None else self.spread
        if self.content is None:
            return Scorer(table, sparse=self.sparse, unit_columns=unit_columns)
        return Scorer(table, sparse=self.sparse, unit_columns=unit_columns, rows=self.rows, trained=self.trained)

    @property
    def sparse(self) -> bool:
        """Whether gradients are row-sparse."""
        return self.table.sparse

    @property
    def summary(self) -> str:
        """Description of size, storage and kind of gradients."""
        rows, width = self.num_items + 1, self.weight.shape[1]
        kind = (
            "row-sparse gradients"
            if self.sparse
            else f"dense gradients (row-sparse is the default from {SPARSE_FROM_ROWS:,} rows on)"
        )
        shard = ""
        if self.spread is not None:
            mine = self.spread.shards.local
            shard = f", rows {mine.start:,} to {mine.stop - 1:,} on rank {self.spread.shards.rank}"
        content = "" if self.content is None else f", content: {self.content.summary}"
        return f"{rows:,} rows x {width}, {str(self.weight.dtype).removeprefix('torch.')}, {kind}{shard}{content}"

    def make_rows(self, num_ranks: int, rank: int, device: torch.device) -> None:
        """Make this process's rows of a sharded table; other tables have theirs already."""
        if isinstance(self.table, ShardedEmbedding):
            self.table.make_rows(num_ranks, rank, device)

    def start_equal(self) -> None:
        """Take rank 0's rows of a sparse table that is not sharded, as DDP does for dense ones; all must call."""
        if self.sparse and self.spread is None:
            equal_on_all_ranks(self.weight)

    def share_gradient(self) -> None:
        """Average row-sparse gradients over processes, as DDP does for dense ones; all must call."""
        if self.spread is not None:
            self.spread.share_gradient()
        elif self.sparse:
            average_row_gradient(cast(nn.Parameter, self.weight))

    def use_trained_items(self, trained: Tensor) -> None:
        """Leave out the own vectors of items that do not occur in training, given (V,) True for those that do."""
        if self.content is not None:
            self.trained.copy_(trained)

    def forward(self, item_ids: Tensor) -> Tensor:
        """Return vectors (..., D) of item ids (...), at least in float32.

        On CPU a sparse table is read once per distinct item, and its gradient has one row for each. For a sharded
        table, which must have rows, processes exchange rows, so all must call.
        """
        self._check_rows()
        if self.spread is not None and self.content is None:
            vectors: Tensor = self.spread(item_ids)[..., : self.d_model]
            return vectors
        if self.content is not None and self._keeps_whole:
            out = F.embedding(item_ids, self.whole())
        elif self.content is not None or (self.sparse and torch.is_grad_enabled() and sums_at_lookup(item_ids.device)):
            distinct, places = torch.unique(item_ids, return_inverse=True)
            out = F.embedding(places, self.table(distinct) if self.content is None else self.rows(distinct))
        elif self.sparse and torch.is_grad_enabled() and self.spread is None:
            out = look_up(self.table.weight, item_ids)
        else:
            # All lookups keep the padding's row at zero, without a gradient.
            out = self.table(item_ids)
        return out[..., : self.d_model].to(torch.promote_types(out.dtype, torch.float32))

    def parts(self, item_ids: Tensor, *, scale: float = 1.0, least: int = 0) -> tuple[list[TableRows], list[Tensor]]:
        """Return `scale` times the vectors of `forward`, without gradients: rows of a table, or vectors (..., D).

        The table refuses ids below `least` and above the last item, if they are on a CPU.
        """
        weight = None
        if self.content is None:
            table = self.table
            if not isinstance(table, ShardedEmbedding) or not table.is_spread:
                weight = table.weight
        elif self._keeps_whole:
            weight = self.whole()
        if weight is None or weight.dtype != torch.float32:
            return [], [self(item_ids) * scale]
        if weight.size(1) > self.d_model:
            weight = weight[:, : self.d_model]
        return [TableRows(weight, item_ids, scale=scale, least=least)], []

    def rows(self, item_ids: Tensor | None) -> Tensor:
        """Return the rows (N, D), with biases another column, of distinct items (N,) of a table with content.

        They are at least in float32, and differentiable. None returns the rows of all items.
        """
        assert self.content is not None
        if not self._keeps_whole:
            # Fused optimizers change weights without a new version.
            self._whole = None
        own = self.table(item_ids) if item_ids is not None else self.table.weight
        if item_ids is None:
            item_ids = torch.arange(self.num_items + 1, device=own.device)
        content = self.content(item_ids)
        own = own.to(torch.promote_types(own.dtype, torch.float32)) * self.trained[item_ids].unsqueeze(1)
        vectors, biases = own.split([self.own_columns, own.shape[1] - self.own_columns], 1)
        if self.own_columns:
            if self.id_dropout and self.training:
                kept = torch.rand(len(item_ids), 1, device=own.device) >= self.id_dropout
                vectors = vectors * kept
            content = content + vectors
        return torch.cat([content, biases.to(content.dtype)], 1)

    def whole(self) -> Tensor:
        """Return the rows (V, D) of all items of a table with content, with biases another column, in its type.

        They are computed once, without gradients, until a weight changes or rows are read for training.
        """
        state = [*self.parameters(), *self.buffers()]
        key = [(each.data_ptr(), each._version) for each in state]
        if self._whole is None or self._whole[0] != key:
            device = self.table.weight.device.type
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
                weight = self.table.weight
                found = weight.new_empty(len(weight), self.d_model + weight.shape[1] - self.own_columns)
                step = max(1, COMPOSED_NUMBERS // self.d_model)
                for first in range(0, len(found), step):
                    item_ids = torch.arange(first, min(first + step, len(found)), device=weight.device)
                    found[item_ids] = self.rows(item_ids).to(found.dtype)
            self._whole = key, found
        return self._whole[1]

    @property
    def _keeps_whole(self) -> bool:
        # A process composes the rows of a sharded table in parts, because it may not have room for all.
        of_items = self.content is not None and self.content.group == ITEMS
        return of_items and self.spread is None and not (self.training and torch.is_grad_enabled())

    def _check_rows(self) -> None:
        if isinstance(self.table, ShardedEmbedding):
            self.table.check_rows()
