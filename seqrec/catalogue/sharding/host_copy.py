"""The whole of a spread table, once a host, for work whose amount differs from rank to rank."""

from __future__ import annotations

import shutil
import socket
import tempfile
import uuid
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from seqrec.catalogue.distributed import ranks_where
from seqrec.catalogue.sharding.exchange import pieces
from seqrec.catalogue.sharding.layout import RowShards
from seqrec.errors import InputError


class HostCopy:
    """A table's rows in a memory-mapped file that the ranks of a host share; all ranks must make it together.

    The first rank of each host writes what the others send, a piece at a time. The file has no name any more once
    all have mapped it, so the system frees it when the last rank lets go, however that ends. It lies in the folder
    for temporary files, which `TMPDIR` chooses; in one that is kept in memory the table takes memory.

    Args:
        local: (V_local, D) this rank's rows.
        shards: Who has which.

    Raises:
        InputError: a host's folder has too little room, or its ranks do not share it.
    """

    def __init__(self, local: Tensor, shards: RowShards) -> None:
        self._device = local.device
        self._last_part: tuple[int, Tensor] | None = None
        hosts: list[tuple[str, str]] = [("", "")] * shards.num_ranks
        dist.all_gather_object(hosts, (socket.gethostname(), uuid.uuid4().hex))
        first_of_host = [host for host, _ in hosts].index(hosts[shards.rank][0])
        self._writes = first_of_host == shards.rank
        path = Path(tempfile.gettempdir()) / f"seqrec-{hosts[first_of_host][1]}.rows"
        self._rows = self._mapped(path, local, shards)
        for first, piece in pieces(local, shards):
            if self._writes:
                self._rows[first : first + len(piece)] = piece
        ranks_where(False, self._device)  # nobody reads before all is written

    def rows(self, row_ids: Tensor) -> Tensor:
        """Rows (..., D) of numbers (...), on the device of the numbers."""
        found: Tensor = self._rows[row_ids.cpu()]
        return found.to(row_ids.device)

    def part(self, first: int, size: int) -> Tensor:
        """(size, D) rows from `first` on, fewer at the end, on the device of the shard; the last one is kept."""
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
