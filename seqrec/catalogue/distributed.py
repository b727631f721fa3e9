"""Communication between the processes of a job that Lightning and DDP do not do themselves.

V rows of a table, D width, U rows with a gradient in one process.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from seqrec.ops.row_gradients import row_gradient, sum_rows

T = TypeVar("T")


def num_ranks() -> int:
    """Return the number of processes of the job; 1 outside of a job."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def leave_job() -> None:
    """Leave the job, if this process is in one, once no other process waits for it.

    If a gloo group still exists when Python exits, its threads sometimes abort the process (pytorch#190489), and
    finished work would count as failed. Lightning ends NCCL groups only.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def ranks_where(flag: bool, device: torch.device) -> list[int]:
    """Return the ranks of the processes that call with True; all must call, with a device of the backend's tensors."""
    if num_ranks() == 1:
        return [0] if flag else []
    flags = of_all_ranks(torch.tensor([flag], dtype=torch.uint8, device=device))
    return [rank for rank, flag in enumerate(flags.flatten().tolist()) if flag]


def of_all_ranks(values: Tensor) -> Tensor:
    """Return (ranks, ...) the values of all processes, which must have one shape; (1, ...) outside of a job."""
    if num_ranks() == 1:
        return values.unsqueeze(0)
    parts = [torch.empty_like(values) for _ in range(num_ranks())]
    dist.all_gather(parts, values.contiguous())
    return torch.stack(parts)


def gather_objects(value: T) -> list[T]:
    """Return the values of all processes, which are pickled; all must call."""
    if num_ranks() == 1:
        return [value]
    values: list[T] = [value] * num_ranks()
    dist.all_gather_object(values, value)
    return values


@torch.no_grad()
def equal_on_all_ranks(weight: Tensor) -> None:
    """Take rank 0's weights, as DDP does for the parameters that it knows; all processes must call."""
    if num_ranks() > 1:
        dist.broadcast(weight.detach(), 0)


def average_row_gradient(weight: nn.Parameter) -> None:
    """Replace a table's row-sparse gradient by its mean over processes; all must call, also those without one.

    DDP sends gradients of the table's size (V, D), or with NCCL refuses sparse ones. Here each process sends its rows,
    padded to the largest number of any process: `ranks * max U * (D + 2)` numbers arrive. All processes then add the
    same rows in the same order, so their tables stay bit-identical.
    """
    ranks = num_ranks()
    if ranks == 1:
        return
    row_ids, rows = _rows_of(weight)
    counts = of_all_ranks(torch.tensor([len(row_ids)], device=rows.device)).flatten()
    longest = int(counts.max())
    all_ids = of_all_ranks(_padded(row_ids, longest))
    all_rows = of_all_ranks(_padded(rows, longest))
    sent = torch.arange(longest, device=rows.device) < counts.unsqueeze(1)
    row_ids, rows = sum_rows(row_gradient(all_ids[sent], all_rows[sent] / ranks, weight.shape, each_once=False))
    weight.grad = row_gradient(row_ids, rows.to(weight.dtype), weight.shape)


def _rows_of(weight: nn.Parameter) -> tuple[Tensor, Tensor]:
    """Return ids (U,) and values (U, D) of a gradient's rows, each row once."""
    if weight.grad is None:
        nothing = torch.zeros(0, dtype=torch.int64, device=weight.device)
        return nothing, weight.new_zeros((0, *weight.shape[1:]))
    row_ids, rows = sum_rows(weight.grad)
    return row_ids, rows.to(weight.dtype)


def _padded(values: Tensor, length: int) -> Tensor:
    out = values.new_zeros((length, *values.shape[1:]))
    out[: len(values)] = values
    return out
