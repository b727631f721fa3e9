"""Dropout with random numbers from a counter."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops.dropout.backends import DROPOUT_BACKENDS, DropoutProblem
from seqrec.ops.dropout.torch_dropout import dropout_torch

__all__ = ["DROPOUT_BACKENDS", "check_share", "dropout"]


def check_share(dropout: float, name: str = "dropout") -> None:
    """Raise InputError unless a share to drop is at least 0 and below 1."""
    if not 0 <= dropout < 1:
        raise InputError(f"{name}={dropout} must be at least 0 and below 1: the share that is set to 0 in training")


def dropout(x: Tensor, share: float, *, seed: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Set a share of the elements to 0, each by itself, and divide the others by 1 - share (Dropout: A Simple Way to
    Prevent Neural Networks from Overfitting, Srivastava et al. 2014).

    Random numbers are a hash of (seed, element), of 16 bits each (`seqrec.ops.random`): backward draws them again
    instead of keeping a mask, and the result does not depend on threads. torch draws one number after another on a
    CPU.

    Backends, in the order in which "auto" prefers them:

    - "cpp": compiled library, float32 on CPU.
    - "torch": `torch.nn.functional.dropout`, any device and dtype. It draws from torch's generator of the device and
      keeps a mask; a seed is refused.
    - "reference": plain torch, any device, the numbers of "cpp". Never "auto".

    Args:
        x: Real numbers of any shape.
        share: Share that is set to 0, at least 0 and below 1; rounded to a multiple of 1 / 65,536.
        seed: (1,) int64 on the CPU; None draws one from torch's generator of the CPU.
        backend: A name above, or "auto": the environment variable SEQREC_DROPOUT_BACKEND if set, else the first that
            can compute this.

    Returns:
        A tensor of x's shape and dtype.

    Raises:
        InputError: if the share is out of range, the seed is no int64 of shape (1,), or the backend is unknown, missing
            or cannot compute this.

    Example:
        >>> import torch
        >>> from seqrec.ops import dropout
        >>> sorted(set(dropout(torch.ones(1000), 0.5).tolist()))
        [0.0, 2.0]
    """
    check_share(share, "share")
    if seed is not None and (seed.shape != (1,) or seed.dtype != torch.int64 or seed.device.type != "cpu"):
        raise InputError(f"seed must be (1,) int64 on cpu, got {tuple(seed.shape)} {seed.dtype} on {seed.device}")
    if share == 0:
        return x
    given = () if seed is None else ("seed",)
    problem = DropoutProblem(x, share, seed)
    precise = x.device.type == "cpu"
    out: Tensor = DROPOUT_BACKENDS.run(problem, backend, exported=dropout_torch, given=given, precise=precise)
    return out.to(x.dtype)
