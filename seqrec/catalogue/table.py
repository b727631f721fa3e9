"""Tables of learned vectors. V = num_items + 1, D width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.catalogue.distributed import average_row_gradient, equal_on_all_ranks
from seqrec.catalogue.sharding import ShardedEmbedding
from seqrec.errors import InputError, check_at_least
from seqrec.ops.row_gradients import sums_at_lookup

# Tables with at least so many rows have row-sparse gradients by default. For smaller ones a fused dense step over all
# rows costs less than finding the rows of a batch.
SPARSE_FROM_ROWS = 500_000


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

    Raises:
        InputError: if temperature or deviation is not positive, or a sharded table is not sparse.

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

    def __post_init__(self) -> None:
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

    Raises:
        InputError: if there are no items, or a sharded table is not sparse.
    """

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
    ) -> None:
        super().__init__()
        check_at_least(1, num_items=num_items)
        self.num_items = num_items
        if sharded and not sparse:
            raise InputError("sharded=True needs sparse=True")
        self.d_model = d_model
        self.table: nn.Embedding
        if sharded:
            self.table = ShardedEmbedding(num_items + 1, d_model + bias, std=std, zeros_from=d_model, dtype=dtype)
            return
        self.table = nn.Embedding(num_items + 1, d_model + bias, padding_idx=0, sparse=sparse, dtype=dtype)
        nn.init.normal_(self.table.weight, std=std)
        with torch.no_grad():
            self.table.weight[0].zero_()
            self.table.weight[:, d_model:].zero_()

    @property
    def weight(self) -> Tensor:
        """(V, D) the table, or this process's shard; with biases another column."""
        return self.table.weight

    @property
    def spread(self) -> ShardedEmbedding | None:
        """The table if other processes hold rows of it; None if this process has all."""
        return self.table if isinstance(self.table, ShardedEmbedding) and self.table.is_spread else None

    @property
    def source(self) -> Tensor | ShardedEmbedding:
        """The table for a scorer; an `InputError` if a sharded one has no rows yet."""
        self._check_rows()
        return self.table.weight if self.spread is None else self.spread

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
        return f"{rows:,} rows x {width}, {str(self.weight.dtype).removeprefix('torch.')}, {kind}{shard}"

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

    def forward(self, item_ids: Tensor) -> Tensor:
        """Return vectors (..., D) of item ids (...), at least in float32.

        On CPU a sparse table is read once per distinct item, and its gradient has one row for each. For a sharded
        table, which must have rows, processes exchange rows, so all must call.
        """
        self._check_rows()
        if self.spread is not None:
            vectors: Tensor = self.spread(item_ids)[..., : self.d_model]
            return vectors
        if self.sparse and torch.is_grad_enabled() and sums_at_lookup(item_ids.device):
            distinct, places = torch.unique(item_ids, return_inverse=True)
            out = F.embedding(places, self.table(distinct))
        else:
            # Both lookups keep the padding's row at zero and drop its gradient.
            out = self.table(item_ids)
        return out[..., : self.d_model].to(torch.promote_types(out.dtype, torch.float32))

    def _check_rows(self) -> None:
        if isinstance(self.table, ShardedEmbedding):
            self.table.check_rows()
