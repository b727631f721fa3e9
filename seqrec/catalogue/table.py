"""Tables of learned vectors. V = num_items + 1, D width, U distinct items among those asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.catalogue.distributed import average_row_gradient, equal_on_all_ranks
from seqrec.catalogue.sharding import ShardedEmbedding
from seqrec.errors import InputError
from seqrec.ops.row_gradients import sums_at_lookup

# From here on a table's gradients are row-sparse unless settings say otherwise. Below, a fused dense step over all
# rows costs less than finding the rows that a batch touched.
SPARSE_FROM_ROWS = 500_000


@dataclass(frozen=True)
class ItemTable:
    """How items are stored, and how states are compared with them.

    Attributes:
        sparse: Whether a training step reads, sends and writes only the rows of its batch. None: from
            `SPARSE_FROM_ROWS` rows on, unless the objective reads the whole table. The choice is printed.
        dtype: Storage of the vectors; they are computed with in float32. Row-sparse updates of bfloat16 round
            stochastically, so that updates smaller than its steps are not lost.
        separate_output: Whether candidates are scored by a table of their own instead of the one that embeds the
            history (tied, as in SASRec).
        bias: Whether each item has a learned number that is added to its score, kept as a further column of the table.
        temperature: None scores by dot products; otherwise by cosines divided by this temperature, as in Towards
            Universal Sequence Representation Learning (Hou et al. 2022) and many others.
        std: Standard deviation of vectors at initialisation.
        sharded: Whether each rank of a distributed job holds a part of the rows, for tables that outgrow a device;
            `ShardedEmbedding` says what that costs. Such tables are sparse. A single process holds the whole.

    Raises:
        InputError: a temperature or deviation that is not positive, or a sharded table that is not to be sparse.
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
        """Whether a table has row-sparse gradients.

        Args:
            num_rows: Rows of the table.
            reads_all: Whether each training step reads the whole table.

        Raises:
            InputError: `sparse` or `sharded` is asked for, but steps read the whole table.
        """
        if (self.sparse or self.sharded) and reads_all:
            asked = "sharded" if self.sharded else "sparse"
            raise InputError(
                f"item_table.{asked}=True, but this objective scores the whole catalogue at each step, so that all "
                f"rows have gradients: take a sampled objective (SampledSoftmax, GBCE, BCE), or {asked}: false"
            )
        if self.sparse is None and not self.sharded:
            return num_rows >= SPARSE_FROM_ROWS and not reads_all
        return bool(self.sparse or self.sharded)


class ItemEmbedding(nn.Module):
    """One vector an item; row 0 is padding, zero, and never trained.

    With `sparse`, gradients are torch's sparse tensors over the rows that were read, which optimisers of
    `seqrec.training.optim` and `torch.optim.SparseAdam` take; nothing of the table's size is made in a step.

    Args:
        num_items: Items 1..num_items.
        d_model: Width D.
        std: Standard deviation at initialisation.
        sparse: Whether gradients are row-sparse.
        dtype: Storage of the table.
        bias: Whether the table has a further column of zeros, the items' biases, that `forward` leaves out.
        sharded: Whether ranks may each hold a part of a sparse table, which has no rows until `make_rows`.

    Raises:
        InputError: no items, or a sharded table that is not sparse.
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
        if num_items < 1:
            raise InputError(f"num_items={num_items} must be at least 1")
        self.num_items = num_items
        if sharded and not sparse:
            raise InputError("sharded=True needs sparse=True")
        self.d_model = d_model
        self.table: nn.Embedding
        if sharded:
            self.table = ShardedEmbedding(
                num_items + 1, d_model + bias, std=std, zeros_from=d_model, dtype=dtype
            )
            return
        self.table = nn.Embedding(num_items + 1, d_model + bias, padding_idx=0, sparse=sparse, dtype=dtype)
        nn.init.normal_(self.table.weight, std=std)
        with torch.no_grad():
            self.table.weight[0].zero_()
            self.table.weight[:, d_model:].zero_()

    @property
    def weight(self) -> Tensor:
        """(V, D) the table, or the rank's rows of a spread one; with biases a further column."""
        return self.table.weight

    @property
    def spread(self) -> ShardedEmbedding | None:
        """The table if other ranks hold rows of it; None where this process has all."""
        return self.table if isinstance(self.table, ShardedEmbedding) and self.table.is_spread else None

    @property
    def source(self) -> Tensor | ShardedEmbedding:
        """What a scorer reads.

        Raises:
            InputError: a sharded table without rows yet.
        """
        self._check_rows()
        return self.table.weight if self.spread is None else self.spread

    @property
    def sparse(self) -> bool:
        """Whether gradients are row-sparse."""
        return self.table.sparse

    @property
    def summary(self) -> str:
        """Size, storage and kind of gradients in words."""
        rows, width = self.num_items + 1, self.weight.shape[1]
        kind = (
            "row-sparse gradients"
            if self.sparse
            else f"dense gradients (row-sparse is the default from {SPARSE_FROM_ROWS:,} rows on)"
        )
        where = ""
        if self.spread is not None:
            mine = self.spread.shards.local
            where = f", rows {mine.start:,} to {mine.stop - 1:,} on rank {self.spread.shards.rank}"
        return f"{rows:,} rows x {width}, {str(self.weight.dtype).removeprefix('torch.')}, {kind}{where}"

    def make_rows(self, num_ranks: int, rank: int, device: torch.device) -> None:
        """Make this rank's rows of a sharded table; see `ShardedEmbedding.make_rows`. Others have theirs."""
        if isinstance(self.table, ShardedEmbedding):
            self.table.make_rows(num_ranks, rank, device)

    def start_equal(self) -> None:
        """Take rank 0's rows of a sparse table that all ranks hold, as DDP does for dense ones; all ranks must call."""
        if self.sparse and self.spread is None:
            equal_on_all_ranks(self.weight)

    def share_gradient(self) -> None:
        """Average row-sparse gradients over ranks, as DDP does for dense ones; all ranks must call."""
        if self.spread is not None:
            self.spread.share_gradient()
        elif self.sparse:
            average_row_gradient(cast(nn.Parameter, self.weight))

    def forward(self, item_ids: Tensor) -> Tensor:
        """Vectors (..., D) of item ids (...), in float32 where the table has less.

        On CPU a sparse table is read once for each distinct item, and its gradient has one row for each. Of a spread
        table ranks send each other rows, so that all must call.

        Raises:
            InputError: a sharded table without rows yet.
        """
        self._check_rows()
        if self.spread is not None:
            vectors: Tensor = self.spread(item_ids)[..., : self.d_model]
            return vectors
        if self.sparse and torch.is_grad_enabled() and sums_at_lookup(item_ids.device):
            distinct, places = torch.unique(item_ids, return_inverse=True)
            out = F.embedding(places, self.table(distinct))
        else:
            # The padding's row is zero and its gradient dropped in either lookup.
            out = self.table(item_ids)
        return out[..., : self.d_model].to(torch.promote_types(out.dtype, torch.float32))

    def _check_rows(self) -> None:
        if isinstance(self.table, ShardedEmbedding):
            self.table.check_rows()
