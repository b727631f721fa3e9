"""What ranks of a distributed job tell each other beside what Lightning and DDP do.

Shapes: V rows of a table, D width, U rows that one rank touched.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from seqrec.ops.row_gradients import row_gradient, sum_rows


def num_ranks() -> int:
    """Processes of the job; 1 outside of one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def leave_job() -> None:
    """End this process's part in a job, if it has one, when no rank waits for it any more.

    The threads of a gloo group that is still there when Python ends abort the process at times (pytorch#190489), so
    that work that is done would count as failed. Lightning ends groups of NCCL alone.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def ranks_where(flag: bool, device: torch.device) -> list[int]:
    """Ranks that call with True; all ranks must call.

    Args:
        flag: What this rank says.
        device: Where the backend's tensors live: the CPU with gloo, the rank's GPU with NCCL.
    """
    if num_ranks() == 1:
        return [0] if flag else []
    flags = _gathered(torch.tensor([flag], dtype=torch.uint8, device=device))
    return [rank for rank, flag in enumerate(flags.flatten().tolist()) if flag]


def of_all_ranks(values: Tensor) -> Tensor:
    """(ranks, ...) the same-shaped values of all ranks, which all must call; (1, ...) outside of a job."""
    return values.unsqueeze(0) if num_ranks() == 1 else _gathered(values)


@torch.no_grad()
def equal_on_all_ranks(weight: Tensor) -> None:
    """Take rank 0's weights, which DDP does for the parameters that it knows; all ranks must call."""
    if num_ranks() > 1:
        dist.broadcast(weight.detach(), 0)


def average_row_gradient(weight: nn.Parameter) -> None:
    """Replace a table's row-sparse gradient by its mean over ranks; all ranks must call, also those without one.

    DDP sends gradients of the table's size, or with NCCL refuses sparse ones. Here each rank sends the rows that it
    touched, padded to the number of the rank that touched most: `ranks * max U * (D + 2)` numbers arrive. All ranks
    then add the same rows in the same order, so that their tables stay equal to the bit.

    Args:
        weight: (V, D) whose `grad` is None or a sparse tensor of rows.
    """
    ranks = num_ranks()
    if ranks == 1:
        return
    row_ids, rows = _rows_of(weight)
    counts = _gathered(torch.tensor([len(row_ids)], device=rows.device)).flatten()
    longest = int(counts.max())
    all_ids = _gathered(_padded(row_ids, longest))
    all_rows = _gathered(_padded(rows, longest))
    sent = torch.arange(longest, device=rows.device) < counts.unsqueeze(1)
    row_ids, rows = sum_rows(
        row_gradient(all_ids[sent], all_rows[sent] / ranks, weight.shape, each_once=False)
    )
    weight.grad = row_gradient(row_ids, rows.to(weight.dtype), weight.shape)


def _rows_of(weight: nn.Parameter) -> tuple[Tensor, Tensor]:
    """Ids (U,) and values (U, D) of a gradient's rows, each row once."""
    if weight.grad is None:
        nothing = torch.zeros(0, dtype=torch.int64, device=weight.device)
        return nothing, weight.new_zeros((0, *weight.shape[1:]))
    row_ids, rows = sum_rows(weight.grad)
    return row_ids, rows.to(weight.dtype)


def _padded(values: Tensor, length: int) -> Tensor:
    out = values.new_zeros((length, *values.shape[1:]))
    out[: len(values)] = values
    return out


def _gathered(values: Tensor) -> Tensor:
    """(ranks, ...) the same-shaped values of all ranks."""
    parts = [torch.empty_like(values) for _ in range(num_ranks())]
    dist.all_gather(parts, values.contiguous())
    return torch.stack(parts)
