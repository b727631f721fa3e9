"""Dropout by torch, and by plain torch operations with the numbers of the compiled library."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.ops.dropout.problem import DropoutProblem
from seqrec.ops.random import kept, new_seed, threshold_of

# Elements that share a row of random numbers; `ROW` of `cpp/dropout.h`.
ROW = 4096


def dropout_torch(problem: DropoutProblem) -> Tensor:
    """Compute `dropout` by torch's own, with torch's random numbers."""
    return F.dropout(problem.x, problem.share)


def dropout_reference(problem: DropoutProblem) -> Tensor:
    """Compute `dropout`; `seed` decides the elements."""
    x, share, seed = problem
    seed, threshold = new_seed() if seed is None else seed, threshold_of(share)
    element = torch.arange(x.numel(), device=x.device)
    mask = kept(seed, torch.div(element, ROW, rounding_mode="floor"), element % ROW, threshold).view(x.shape)
    # Not a product with 0: dropped elements may be infinite.
    return torch.where(mask, x * (65536 / (65536 - threshold)), 0)
