"""Which rank holds which rows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RowShards:
    """Contiguous shards of ceil(V / N) rows; the last ones have fewer, or none where there are not enough.

    The same rows as `torch.distributed.tensor.Shard(0)` gives each rank.

    Attributes:
        num_rows: V rows of the whole table.
        num_ranks: N ranks; with 1 the table is whole.
        rank: The rank whose shard is `local`.
    """

    num_rows: int
    num_ranks: int = 1
    rank: int = 0

    def first(self, rank: int) -> int:
        """First row of a rank's shard; V for the rank behind the last."""
        return min(rank * -(-self.num_rows // self.num_ranks), self.num_rows)

    @property
    def local(self) -> slice:
        """Rows of this rank's shard."""
        return slice(self.first(self.rank), self.first(self.rank + 1))

    @property
    def num_local(self) -> int:
        """Number of those rows."""
        return self.first(self.rank + 1) - self.first(self.rank)

    @property
    def bounds(self) -> list[int]:
        """First row of each rank's shard, and V."""
        return [self.first(rank) for rank in range(self.num_ranks + 1)]
