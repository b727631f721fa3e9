"""Rows on their way between ranks; all ranks must call each of these, in the same order.

V rows of the table, N ranks, D width, U rows that this rank asks for or sends, R rows that are asked of or sent to it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from seqrec.catalogue.sharding.layout import RowShards

# What a rank sends at a time where the whole table is asked for.
PIECE_BYTES = 1 << 26


class Route:
    """Who sends how many rows to whom, for one list of rows of this rank.

    Python waits for the device, once, to learn the numbers.

    Args:
        row_ids: (U,) ascending numbers of rows.
        shards: Who owns them.
    """

    def __init__(self, row_ids: Tensor, shards: RowShards) -> None:
        bounds = torch.tensor(shards.bounds, device=row_ids.device)
        sent = torch.searchsorted(row_ids, bounds).diff()
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)
        self._sent, self._received = torch.stack([sent, received]).tolist()

    def to_owners(self, values: Tensor) -> Tensor:
        """Send (U, ...) values of this rank's rows to their owners. Returns (R, ...), those of rank 0 first."""
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
    """The whole of what is spread, in parts of `PIECE_BYTES` that all ranks get one after the other.

    Args:
        local: (V_local, ...) this rank's rows.
        shards: Who has which.

    Yields:
        Number of the first row, and rows, on the CPU.
    """
    # Lightning takes models back to the CPU behind a run, where NCCL does not reach them.
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
    """(V, ...) the whole on rank 0, on the CPU; on the other ranks a tensor of that shape on the meta device."""
    shape = (shards.num_rows, *local.shape[1:])
    whole = torch.empty(shape, dtype=local.dtype, device="cpu" if shards.rank == 0 else "meta")
    for first, piece in pieces(local, shards):
        if shards.rank == 0:
            whole[first : first + len(piece)] = piece
    return whole
