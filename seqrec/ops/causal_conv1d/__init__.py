"""Causal depthwise convolution over events. Shapes: B batch, L events, D channels, W taps."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from seqrec.ops.causal_conv1d.backends import CONV_BACKENDS
from seqrec.ops.causal_conv1d.cuda_package import OTHER_TAPS, TAPS
from seqrec.ops.causal_conv1d.export import conv_exported
from seqrec.ops.causal_conv1d.problem import Convolution, ConvProblem, check_problem
from seqrec.ops.export import is_exporting, without_autocast

__all__ = ["CONV_BACKENDS", "causal_conv1d"]


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    silu: bool = False,
    initial_state: Tensor | None = None,
    return_last_state: Literal[False] = False,
    valid: Tensor | None = None,
    start: Tensor | None = None,
    backend: str = "auto",
) -> Tensor: ...


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    silu: bool = False,
    initial_state: Tensor | None = None,
    return_last_state: Literal[True],
    valid: Tensor | None = None,
    start: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    silu: bool = False,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    valid: Tensor | None = None,
    start: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve each channel with its own taps over the last W events.

    `out_t = bias + sum_w weight_w x_{t - W + 1 + w}`, through SiLU if asked, with the initial state before the first
    event. Causal: out_t depends on events up to t. Sums run in float32 at least, also under autocast.

    Backends, from the one that "auto" likes best; all give the same values and gradients:

    - "cpp": compiled, float32 on CPU, vector instructions and threads.
    - "triton": kernels for GPUs, float32, any number of taps, the same bits each time. Needs triton, which torch for
      CUDA on Linux brings. With TRITON_INTERPRET=1 it runs on CPU instead, for tests; never "auto" there.
    - "causal_conv1d": the CUDA kernels of that package, float32, 2 to 4 taps, and not under
      `torch.use_deterministic_algorithms`. An extra that users install.
    - "shifted": plain torch, any device, float32 and float64.
    - "reference": one event after another, for tests. Never "auto".

    "shifted" and "reference" have second derivatives. float16 and bfloat16 count as float32, in which the sums
    run. Where "auto" takes a slower backend because a better one is missing, the log says so once. While
    `torch.export` traces, "auto" is plain torch whatever the variable says.

    Args:
        x: (B, L, D) inputs.
        weight: (D, W); the last tap multiplies the newest event.
        bias: (D,) or None.
        silu: Whether outputs go through SiLU.
        initial_state: (B, W - 1, D) inputs before the first event, oldest first; None is zeros.
        return_last_state: Whether to return the last W - 1 inputs too, to go on from; their gradient counts.
        valid: (B, L) bool, True at events, False at padding, wherever that stands: it is as if it were not there.
            Windows reach over it, outputs are 0 there, and what the inputs hold there is of no effect. None is True
            everywhere.
        start: (B, L) bool, True where a new history begins, so that all inputs before count as zeros (packed rows),
            at padding too. None is False everywhere.
        backend: A name above, or "auto": the environment variable SEQREC_CONV_BACKEND if set, else the first
            that can compute this.

    Returns:
        (B, L, D) in x's dtype; with `return_last_state` also the last state (B, W - 1, D), likewise.

    Raises:
        InputError: an unknown backend, one that is missing or cannot compute what is asked for, or a shape,
            device or kind of number that does not fit.
    """
    problem = ConvProblem(x, weight, bias, silu, initial_state, valid, start)
    check_problem(problem)
    dtype = torch.promote_types(x.dtype, torch.float32)
    given = tuple(name for name in ("initial_state", "valid", "start") if getattr(problem, name) is not None)
    if weight.shape[1] not in TAPS:
        given = (*given, OTHER_TAPS)
    if backend == "auto" and is_exporting():
        convolve: Convolution = conv_exported
    else:
        convolve = CONV_BACKENDS[_chosen(backend, x.device.type, dtype, given)].function
    with without_autocast(x.device.type):
        out, last = convolve(problem.to(dtype))
    out = out.to(x.dtype)
    return (out, last.to(x.dtype)) if return_last_state else out


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _chosen(backend: str, device: str, dtype: torch.dtype, given: tuple[str, ...]) -> str:
    return CONV_BACKENDS.choose(backend, device, dtype, given).name
