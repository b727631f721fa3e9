"""The arguments of attention as one object, and checks of them. Letters as in `attention`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops.dropout import check_share
from seqrec.ops.problems import check_shapes


class AttentionProblem(NamedTuple):
    """Input of a backend; see `attention` for each argument. A backend does not check again."""

    query: Tensor
    key: Tensor
    value: Tensor
    causal: bool = True
    dropout: float = 0.0
    window: int | None = None
    lengths: Tensor | None = None
    seed: Tensor | None = None


Attention = Callable[[AttentionProblem], Tensor]


def check_problem(problem: AttentionProblem) -> None:
    """Check the arguments.

    Raises:
        InputError: if a shape, device, dtype or number does not fit; the message names the argument.
    """
    query = problem.query
    if query.dim() != 4 or not query.shape[1] or not query.shape[3]:
        raise InputError(f"query must be (B, H, L, P) with H and P of at least 1, got {tuple(query.shape)}")
    shape = tuple(query.shape)
    check_shapes(problem._asdict(), dict.fromkeys(("query", "key", "value"), shape), query.device)
    check_share(problem.dropout)
    if problem.window is not None and (problem.window < 1 or not problem.causal):
        raise InputError(f"window={problem.window} must be at least 1, and needs causal=True")
    for name, size, device in (("lengths", query.shape[0], query.device), ("seed", 1, torch.device("cpu"))):
        given = getattr(problem, name)
        if given is not None and (
            given.shape != (size,) or given.dtype != torch.int64 or given.device.type != device.type
        ):
            raise InputError(
                f"{name} must be ({size},) int64 on {device}, got {tuple(given.shape)} {given.dtype} on {given.device}"
            )
