"""Which windows go into which batch: shuffled, rows of like length together, divided between ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler

from seqrec.errors import InputError

Int64 = NDArray[np.int64]

# A shuffled run of this many batches is sorted by length before it is cut: long enough that a batch's rows are
# alike, short enough that batches stay random.
POOL_BATCHES = 16


class BatchSampler(DistributedSampler[Int64]):
    """Yields the window numbers of one batch at a time, for one rank.

    Every epoch is a permutation fixed by (seed, epoch). With `bucket`, runs of 16 shuffled batches are sorted
    by length and cut, and the batches shuffled again, so that padding is small. All ranks get the same number
    of batches; where the last global batch has fewer windows than ranks and `shuffle` is on, other windows fill
    it up. Without `shuffle` (evaluation) no window is repeated, and ranks may differ by one batch.

    It is a `DistributedSampler` only so that Lightning calls `set_epoch` and does not shard it a second time.

    Args:
        lengths: (W,) events of each window.
        batch_size: Windows a batch and rank.
        shuffle: New order each epoch; otherwise longest first, so that lack of memory shows at once.
        bucket: Whether rows of like length go together. Without `shuffle` they always do.
        seed: Seed of the order.
        rank: This process, 0..world_size - 1.
        world_size: Processes that share the windows.
    """

    def __init__(
        self,
        lengths: Int64,
        *,
        batch_size: int,
        shuffle: bool,
        bucket: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be at least 1")
        self.lengths = lengths
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.bucket = bucket
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.shuffle:
            return -(-len(self.lengths) // (self.batch_size * self.world_size))
        return sum(1 for _ in self._batches())

    def __iter__(self) -> Iterator[Int64]:
        return self._batches()

    def _batches(self) -> Iterator[Int64]:
        total = self.batch_size * self.world_size
        for batch in self._global_batches(total):
            if self.shuffle and len(batch) < self.world_size:
                others = np.setdiff1d(np.arange(len(self.lengths)), batch)
                batch = np.resize(np.concatenate([batch, others]), self.world_size)
            mine = batch[self.rank :: self.world_size]
            if len(mine):
                yield mine

    def _global_batches(self, total: int) -> list[Int64]:
        count = len(self.lengths)
        if not self.shuffle:
            order = np.argsort(-self.lengths, kind="stable")
            return np.split(order, np.arange(total, count, total)) if count else []
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(count)
        if self.bucket:
            pool = np.arange(count) // (total * POOL_BATCHES)
            order = order[np.lexsort((self.lengths[order], pool))]
        batches = np.split(order, np.arange(total, count, total)) if count else []
        return [batches[i] for i in rng.permutation(len(batches))] if self.bucket else batches
