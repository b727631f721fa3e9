"""Shards of a table's rows, their exchange between processes, and a copy of the whole per host.

V rows of the table, N processes, D width, U rows that this process asks for or sends, R rows that it is asked for or
receives. All processes must call each function here, in the same order.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from seqrec.catalogue.distributed import gather_objects, ranks_where
from seqrec.errors import InputError

# Bytes that a process sends at a time when it sends its whole shard.
PIECE_BYTES = 1 << 26


@dataclass(frozen=True)
class RowShards:
    """Contiguous shards of ceil(V / N) rows, as `torch.distributed.tensor.Shard(0)`; the last ones may have fewer.

    With one process the table is whole. `rank` is that of the process with the shard `local`.
    """

    num_rows: int
    num_ranks: int = 1
    rank: int = 0

    def first(self, rank: int) -> int:
        """Return the first row of a rank's shard; V after the last rank."""
        return min(rank * -(-self.num_rows // self.num_ranks), self.num_rows)

    @property
    def local(self) -> slice:
        """Rows of this process's shard."""
        return slice(self.first(self.rank), self.first(self.rank + 1))

    @property
    def num_local(self) -> int:
        """Number of those rows."""
        return self.first(self.rank + 1) - self.first(self.rank)

    @property
    def bounds(self) -> list[int]:
        """First row of each shard, and V."""
        return [self.first(rank) for rank in range(self.num_ranks + 1)]


class Route:
    """Numbers of rows that each process sends to each other one, for ascending rows (U,) that this process asks for.

    Python waits for the device once, to read the numbers.
    """

    def __init__(self, row_ids: Tensor, shards: RowShards) -> None:
        bounds = torch.tensor(shards.bounds, device=row_ids.device)
        sent = torch.searchsorted(row_ids, bounds).diff()
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)
        self._sent, self._received = torch.stack([sent, received]).tolist()

    def to_owners(self, values: Tensor) -> Tensor:
        """Send (U, ...) values of this process's rows to their owners. Returns (R, ...), those of rank 0 first."""
        return _exchanged(values, self._sent, self._received)

    def from_owners(self, values: Tensor) -> Tensor:
        """Send (R, ...) values, in the order of `to_owners`, back. Returns (U, ...)."""
        return _exchanged(values, self._received, self._sent)


def _exchanged(values: Tensor, sent: list[int], received: list[int]) -> Tensor:
    out = values.new_empty((sum(received), *values.shape[1:]))
    dist.all_to_all_single(out, values.contiguous(), received, sent)
    return out


@torch.no_grad()
def pieces(local: Tensor, shards: RowShards) -> Iterator[tuple[int, Tensor]]:
    """Yield the whole table to all processes in parts of `PIECE_BYTES`: first row number, and rows on the CPU."""
    # Lightning moves models to the CPU after a run, and NCCL cannot send from there.
    device = torch.device("cuda" if "nccl" in dist.get_backend() else "cpu")
    size = max(1, PIECE_BYTES // max(local[:0].new_empty((1, *local.shape[1:])).nbytes, 1))
    for owner, (begin, end) in enumerate(zip(shards.bounds, shards.bounds[1:], strict=False)):
        for first in range(begin, end, size):
            number = min(size, end - first)
            if owner == shards.rank:
                piece = local[first - begin : first - begin + number].to(device, copy=True).contiguous()
            else:
                piece = local.new_empty((number, *local.shape[1:]), device=device)
            dist.broadcast(piece, owner)
            yield first, piece.cpu()


def gathered(local: Tensor, shards: RowShards) -> Tensor:
    """Return (V, ...) the whole on rank 0, on the CPU; elsewhere a tensor of that shape on the meta device."""
    shape = (shards.num_rows, *local.shape[1:])
    whole = torch.empty(shape, dtype=local.dtype, device="cpu" if shards.rank == 0 else "meta")
    for first, piece in pieces(local, shards):
        if shards.rank == 0:
            whole[first : first + len(piece)] = piece
    return whole


class HostCopy:
    """A table's rows in a memory-mapped file that the processes of a host share; all must make it together.

    Each process gives its own rows (V_local, D), and the first of each host writes all, a piece at a time. The file is
    unlinked once all have mapped it, so the system frees it after the last process, however that ends. It is in the
    folder for temporary files, which `TMPDIR` sets; if that folder is in memory, so is the table.

    Raises:
        InputError: if a host's folder has too little space, or its processes do not share it.
    """

    def __init__(self, local: Tensor, shards: RowShards) -> None:
        self._device = local.device
        self._last_part: tuple[int, Tensor] | None = None
        hosts = gather_objects((socket.gethostname(), uuid.uuid4().hex))
        first_of_host = [host for host, _ in hosts].index(hosts[shards.rank][0])
        self._writes = first_of_host == shards.rank
        path = Path(tempfile.gettempdir()) / f"seqrec-{hosts[first_of_host][1]}.rows"
        self._rows = self._mapped(path, local, shards)
        for first, piece in pieces(local, shards):
            if self._writes:
                self._rows[first : first + len(piece)] = piece
        ranks_where(False, self._device)  # a barrier: all is written before it is read

    def rows(self, row_ids: Tensor) -> Tensor:
        """Return rows (..., D) of numbers (...), on the device of the numbers."""
        found: Tensor = self._rows[row_ids.cpu()]
        return found.to(row_ids.device)

    def part(self, first: int, size: int) -> Tensor:
        """Return (size, D) rows from `first`, fewer at the end, on the shard's device; the last result is cached."""
        if self._last_part is None or self._last_part[0] != first or len(self._last_part[1]) < size:
            self._last_part = first, self._rows[first : first + size].to(self._device)
        return self._last_part[1][:size]

    def _mapped(self, path: Path, local: Tensor, shards: RowShards) -> Tensor:
        shape = (shards.num_rows, *local.shape[1:])
        needed = shape[0] * local[:0].new_empty((1, *local.shape[1:])).nbytes
        full = self._writes and shutil.disk_usage(path.parent).free < needed
        rows: Tensor | None = None
        try:
            if self._writes and not full:
                rows = _map(path, shape, local.dtype)
            if short := ranks_where(full, self._device):
                raise InputError(
                    f"{path.parent} on the host of rank {short[0]} has too little room for the item table, "
                    f"{needed / 2**30:.1f} GiB, which evaluation reads: set TMPDIR to a folder with more"
                )
            if not self._writes and path.exists():
                rows = _map(path, shape, local.dtype)
            if missing := ranks_where(rows is None, self._device):
                raise InputError(
                    f"rank {missing[0]} does not see {path.parent} of the first rank of its host: "
                    "set TMPDIR to a folder that the ranks of a host share"
                )
        finally:
            if self._writes:
                path.unlink(missing_ok=True)
        assert rows is not None
        return rows


def _map(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    numbers = torch.Size(shape).numel()
    return torch.from_file(str(path), shared=True, size=numbers, dtype=dtype, device="cpu").view(shape)
