"""A residual sum and the layer norm that follows it. N events of any leading shape, D width."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.ops.autograd import refuse_second_derivative
from seqrec.ops.backends import Backend, Backends
from seqrec.ops.compiled_library import call, compiled_backend
from seqrec.ops.dropout import DROPOUT_BACKENDS, check_share, dropout
from seqrec.ops.export import is_exporting
from seqrec.ops.problems import check_shapes, wants_gradient
from seqrec.ops.random import new_seed, threshold_of

__all__ = ["RESIDUAL_NORM_BACKENDS", "residual_norm"]

# The compiled library takes widths of whole vectors.
WIDTHS = 16
ODD_WIDTH = f"width that is no multiple of {WIDTHS}"
# Fewer numbers take longer in the compiled library, which starts in 60 us instead of 40.
LEAST_NUMBERS = 1 << 16
# Added to the variance, as by torch; `NORM_EPS` of `cpp/gated_norm.h`.
NORM_EPS = 1e-5
# Events that a thread takes at a time; the sums of the weight's gradient do not depend on the threads.
EVENTS = 256


class ResidualNormProblem(NamedTuple):
    """Input of a backend; see `residual_norm` for each argument."""

    branch: Tensor
    x: Tensor | None
    weight: Tensor
    bias: Tensor
    dropout: float = 0.0
    seed: Tensor | None = None


Normed = tuple[Tensor, Tensor]


def residual_norm(
    branch: Tensor,
    x: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    backend: str = "auto",
) -> Normed:
    """Return `out = x + dropout(branch)` and its layer norm (Layer Normalization, Ba et al. 2016).

    Backends, in the order in which "auto" prefers them; with a seed all give the same values and gradients:

    - "cpp": compiled library, float32 on a CPU, widths that are multiples of 16, without autocast and `torch.compile`.
      One pass over the numbers, and one in backward, which draws the dropped elements again. The same bits with any
      number of threads.
    - "reference": `seqrec.ops.dropout`, a sum and `torch.nn.functional.layer_norm`, any device and dtype; the only one
      with second derivatives. "auto" takes it too for few numbers, and if an environment variable chooses another
      dropout than "cpp".

    Args:
        branch: (..., D) output of a layer.
        x: (..., D) input of the branch's norm; None is zeros.
        weight: (D,).
        bias: (D,).
        dropout: Share of the branch that is set to 0; see `seqrec.ops.dropout`, which drops the same elements.
        seed: As of `seqrec.ops.dropout`.
        backend: A name above, or "auto": the environment variable SEQREC_RESIDUAL_NORM_BACKEND if set, else the first
            that can compute this.

    Returns:
        The sum and its norm, both (..., D).

    Raises:
        InputError: if a shape, device or the share does not fit, or the backend is unknown, missing or cannot compute
            this.

    Example:
        >>> import torch
        >>> from seqrec.ops import residual_norm
        >>> out, norm = residual_norm(torch.tensor([0.0, 4.0]), torch.tensor([1.0, 1.0]), torch.ones(2), torch.zeros(2))
        >>> out.tolist(), norm.round(decimals=3).tolist()
        ([1.0, 5.0], [-1.0, 1.0])
    """
    check_share(dropout)
    problem = ResidualNormProblem(branch, x, weight, bias, dropout, seed)
    shape, width = tuple(branch.shape), (branch.shape[-1],)
    check_shapes(problem._asdict(), {"x": shape, "weight": width, "bias": width}, branch.device)
    if backend == "auto" and (torch.compiler.is_compiling() or is_exporting() or branch.numel() < LEAST_NUMBERS):
        return residual_norm_reference(problem)
    wanted = os.environ.get(DROPOUT_BACKENDS.variable)
    unusual = {
        "autocast": torch.is_autocast_enabled(branch.device.type),
        "compilation": torch.compiler.is_compiling(),
        "chosen dropout": bool(dropout) and wanted not in (None, "", "auto", "cpp"),
        ODD_WIDTH: bool(width[0] % WIDTHS),
    }
    given = tuple(name for name, holds in unusual.items() if holds)
    normed: Normed = RESIDUAL_NORM_BACKENDS.run(
        problem, backend, exported=residual_norm_reference, given=given, precise=False
    )
    return normed


def residual_norm_reference(problem: ResidualNormProblem) -> Normed:
    """Compute `residual_norm` by torch and `seqrec.ops.dropout`."""
    branch, x, weight, bias, share, seed = problem
    dropped = dropout(branch, share, seed=seed)
    out = dropped if x is None else x + dropped
    return out, F.layer_norm(out, weight.shape, weight, bias, NORM_EPS)


def residual_norm_compiled(problem: ResidualNormProblem) -> Normed:
    """Compute `residual_norm` in float32 on CPU by the compiled library."""
    branch, x, weight, bias, share, seed = problem
    if not branch.numel():
        return residual_norm_reference(problem)
    threshold = threshold_of(share)
    seed = new_seed() if threshold and seed is None else seed
    if not wants_gradient(problem):
        return _forward(branch, x, weight, bias, seed, threshold)[:2]
    normed: Normed = _ResidualNorm.apply(branch, x, weight, bias, seed, threshold)  # type: ignore[no-untyped-call]
    return normed


def _forward(
    branch: Tensor, x: Tensor | None, weight: Tensor, bias: Tensor, seed: Tensor | None, threshold: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum, its norm, and the means and inverse deviations (2, N) of events."""
    width = branch.shape[-1]
    out, norm = (torch.empty_like(branch, memory_format=torch.contiguous_format) for _ in range(2))
    statistics = branch.new_empty(2, branch.numel() // width)
    inputs = {"x": x, "branch": branch, "weight": weight, "bias": bias}
    tensors = {name: None if each is None else each.contiguous() for name, each in inputs.items()}
    results = {"out": out, "norm": norm, "means": statistics[0], "roots": statistics[1]}
    call("residual_norm_forward", _sizes(branch, threshold), {**tensors, **results, "seed": seed})
    return out, norm, statistics


def _sizes(branch: Tensor, threshold: int) -> dict[str, int]:
    width = branch.shape[-1]
    return {"events": branch.numel() // width, "width": width, "threshold": threshold, "piece": EVENTS}


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, branch: Tensor, x: Tensor | None, weight: Tensor, bias: Tensor, seed: Tensor | None, threshold: int
    ) -> Normed:
        out, norm, statistics = _forward(branch, x, weight, bias, seed, threshold)
        ctx.save_for_backward(out, statistics, weight, seed)
        ctx.threshold, ctx.adds = threshold, x is not None
        ctx.set_materialize_grads(False)
        return out, norm

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dnorm: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("the compiled residual norm has no second derivative; use backend='reference' for it")
        out, statistics, weight, seed = ctx.saved_tensors
        sizes = _sizes(out, ctx.threshold)
        # Without dropout the two gradients are one.
        dx = torch.empty_like(out) if ctx.adds or not ctx.threshold else None
        dbranch = torch.empty_like(out) if ctx.threshold else None
        sums = out.new_empty(2, -(-sizes["events"] // EVENTS), sizes["width"])
        inputs = {"out": out, "means": statistics[0], "roots": statistics[1], "weight": weight.contiguous()}
        given = {
            "dout": None if dout is None else dout.contiguous(),
            "dnorm": torch.zeros_like(out) if dnorm is None else dnorm.contiguous(),
        }
        results = {"dx": dx, "dbranch": dbranch, "dweight": sums[0], "dbias": sums[1]}
        call("residual_norm_backward", sizes, {**inputs, **given, **results, "seed": seed})
        dweight, dbias = sums.sum(1)
        return dx if dbranch is None else dbranch, dx if ctx.adds else None, dweight, dbias, None, None


RESIDUAL_NORM_BACKENDS: Backends[Callable[[ResidualNormProblem], Normed]] = Backends(
    "residual norm",
    "SEQREC_RESIDUAL_NORM_BACKEND",
    [
        compiled_backend(residual_norm_compiled, frozenset({"autocast", "compilation", "chosen dropout", ODD_WIDTH})),
        Backend("reference", residual_norm_reference, supports=lambda device, dtype: dtype.is_floating_point),
    ],
)
