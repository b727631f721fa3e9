"""Dropout with random numbers from a counter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops.autograd import differentiable
from seqrec.ops.backends import Backend, Backends
from seqrec.ops.block_sizes import block_sizes
from seqrec.ops.compiled_library import call, compiled_backend
from seqrec.ops.random import check_seed, kept, new_seed, threshold_of
from seqrec.ops.triton_support import DEVICES, launching_on, triton_backend

__all__ = ["DROPOUT_BACKENDS", "check_share", "dropout"]

# Elements that share a row of random numbers; `ROW` of `cpp/dropout.h`.
ROW = 4096


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
    - "triton": a kernel for float32, float16 and bfloat16 on CUDA, the numbers of "cpp". "auto" takes it if a seed is
      given: it saves the mask, but takes two launches, one of which draws the seed, where torch takes one.
    - "reference": plain torch, any device, the numbers of "cpp". Never "auto".

    Args:
        x: Real numbers of any shape.
        share: Share that is set to 0, at least 0 and below 1; rounded to a multiple of 1 / 65,536.
        seed: (1,) int64 on the CPU or on x's device; None draws one, for x on a GPU from torch's generator of the GPU.
            A seed on the GPU may change between replays of a CUDA graph.
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
    check_seed(seed, x.device)
    if share == 0:
        return x
    given = () if seed is None else ("seed",)
    problem = DropoutProblem(x, share, seed)
    precise = x.device.type == "cpu"
    out: Tensor = DROPOUT_BACKENDS.run(problem, backend, exported=dropout_torch, given=given, precise=precise)
    return out.to(x.dtype)


class DropoutProblem(NamedTuple):
    """Input of a backend; see `dropout` for each argument."""

    x: Tensor
    share: float
    seed: Tensor | None = None


def dropout_torch(problem: DropoutProblem) -> Tensor:
    """Compute `dropout` by torch's own, with torch's random numbers."""
    return F.dropout(problem.x, problem.share)


def dropout_reference(problem: DropoutProblem) -> Tensor:
    """Compute `dropout`; `seed` decides the elements."""
    x, share, seed = problem
    seed, threshold = new_seed(x.device) if seed is None else seed, threshold_of(share)
    element = torch.arange(x.numel(), device=x.device)
    mask = kept(seed, torch.div(element, ROW, rounding_mode="floor"), element % ROW, threshold).view(x.shape)
    # Not a product with 0: dropped elements may be infinite.
    return torch.where(mask, x * (65536 / (65536 - threshold)), 0)


def _apply(x: Tensor, seed: Tensor, threshold: int) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    call("dropout", {"count": x.numel(), "threshold": threshold}, {"seed": seed, "x": x, "y": y})
    return y


def _new(x: Tensor, seed: Tensor, threshold: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.threshold = inputs[2]


def _differentiate(ctx: Any, backward: Any, dy: Tensor) -> tuple[Tensor, None, None]:
    return backward(dy, *ctx.saved_tensors, ctx.threshold), None, None


def _differentiable(apply: Callable[..., Tensor], label: str, devices: str | Sequence[str]) -> Callable[..., Tensor]:
    schema = "(Tensor x, Tensor seed, int threshold) -> Tensor"
    return differentiable(
        f"dropout_{label}",
        apply,
        apply,
        schemas=(schema, schema),
        device_types=devices,
        new_outputs=_new,
        new_gradients=_new,
        setup_context=_setup_context,
        differentiate=_differentiate,
        refusal=f"the {label} dropout has no second derivative; use backend='reference' for it",
    )


_dropout = _differentiable(_apply, "compiled", "cpu")


def dropout_compiled(problem: DropoutProblem) -> Tensor:
    """Compute `dropout_reference` in float32 on CPU; nothing but the seed is kept for backward."""
    x, share, seed = problem
    if not x.numel():
        return x
    y: Tensor = _dropout(x, new_seed() if seed is None else seed, threshold_of(share))
    return y


def kernels() -> Any:
    """Import the Triton kernels."""
    from seqrec.ops import dropout_kernels

    return dropout_kernels


def _launch(x: Tensor, seed: Tensor, threshold: int) -> Tensor:
    x, seed = x.contiguous(), seed.to(x.device)
    y, block = torch.empty_like(x), block_sizes("dropout", x.device)["elements"]
    with launching_on(x):
        kernels().drop[(-(-x.numel() // block),)](
            x, seed, y, x.numel(), threshold, 65536 / (65536 - threshold), BLOCK=block
        )
    return y


_dropout_triton = _differentiable(_launch, "triton", DEVICES)


def dropout_triton(problem: DropoutProblem) -> Tensor:
    """Compute `dropout_reference` on a GPU; nothing but the seed is kept for backward."""
    x, share, seed = problem
    if not x.numel():
        return x
    return _dropout_triton(x, new_seed(x.device) if seed is None else seed, threshold_of(share))


DROPOUT_BACKENDS: Backends[Callable[[DropoutProblem], Tensor]] = Backends(
    "dropout",
    "SEQREC_DROPOUT_BACKEND",
    [
        compiled_backend(dropout_compiled),
        Backend(
            "torch",
            dropout_torch,
            supports=lambda device, dtype: dtype.is_floating_point,
            unsupported_args=frozenset({"seed"}),
        ),
        triton_backend(dropout_triton, kernels, dtypes=(torch.float32, torch.float16, torch.bfloat16)),
        Backend("reference", dropout_reference),
    ],
)
