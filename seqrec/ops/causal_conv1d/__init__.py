"""Causal depthwise convolution over events. Shapes: B batch, L events, D channels, W taps."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from seqrec.ops.backends import Backend, Backends
from seqrec.ops.causal_conv1d.compiled import conv_compiled
from seqrec.ops.causal_conv1d.cuda_package import OTHER_TAPS, TAPS, conv_package, missing
from seqrec.ops.causal_conv1d.reference import (
    Convolution,
    ConvProblem,
    check_problem,
    conv_exported,
    conv_reference,
    convolve_shifted,
    with_state_and_padding,
)
from seqrec.ops.causal_conv1d.triton_launch import conv_triton, kernels
from seqrec.ops.compiled_library import compiled_backend
from seqrec.ops.cuda_packages import package_backend
from seqrec.ops.triton_support import LOW_PRECISION, triton_backend

__all__ = ["CONV_BACKENDS", "causal_conv1d"]

# In the order in which "auto" prefers them.
CONV_BACKENDS: Backends[Convolution] = Backends(
    "causal convolution",
    "SEQREC_CONV_BACKEND",
    [
        compiled_backend(conv_compiled, narrow=(torch.bfloat16,)),
        triton_backend(conv_triton, kernels, narrow=LOW_PRECISION),
        package_backend("causal_conv1d", conv_package, missing, unsupported_args={OTHER_TAPS}),
        Backend("shifted", with_state_and_padding(convolve_shifted)),
        Backend("reference", conv_reference),
    ],
)


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

    Backends, in the order in which "auto" prefers them; all give the same values and gradients:

    - "cpp": compiled, float32 on CPU, vector instructions and threads. Reads and writes bfloat16 without a cast.
    - "triton": kernels for GPUs, float32, any number of taps, the same bits each time. Reads and writes 16-bit inputs
      without a cast. Needs triton, which torch for CUDA on Linux brings. With TRITON_INTERPRET=1 it runs on CPU, for
      tests; never "auto" there.
    - "causal_conv1d": the CUDA kernels of that package, float32, 2 to 4 taps, and not under
      `torch.use_deterministic_algorithms`. An extra that users install.
    - "shifted": plain torch, any device, float32 and float64.
    - "reference": one event after another, for tests. Never "auto".

    "shifted" and "reference" have second derivatives. float16 and bfloat16 are computed in float32. If "auto" uses a
    slower backend because a better one is missing, a warning is logged once. While `torch.export` traces, "auto" is
    plain torch, whatever the environment variable.

    Args:
        x: (B, L, D) inputs.
        weight: (D, W); the last tap multiplies the newest event.
        bias: (D,) or None.
        silu: Whether outputs go through SiLU.
        initial_state: (B, W - 1, D) inputs before the first event, oldest first; None is zeros.
        return_last_state: Whether to return the last W - 1 inputs too, to continue from. They have a gradient.
        valid: (B, L) bool, True at events, False at padding, which may be anywhere. Windows skip padding, outputs are
            0 there, and the contents of x there have no effect. None is True everywhere.
        start: (B, L) bool, True where a new history begins (packed rows), also at padding: all earlier inputs count
            as zeros. None is False everywhere.
        backend: A name above, or "auto": the environment variable SEQREC_CONV_BACKEND if set, else the first
            that can compute this.

    Returns:
        (B, L, D) in x's dtype; with `return_last_state` also the last state (B, W - 1, D) in x's dtype.

    Raises:
        InputError: if the backend is unknown, missing or cannot compute this, or an argument's shape, device or dtype
            does not fit.

    Example:
        >>> import torch
        >>> from seqrec.ops import causal_conv1d
        >>> x = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1)
        >>> causal_conv1d(x, torch.tensor([[10.0, 1.0]])).flatten().tolist()
        [1.0, 12.0, 23.0]
    """
    problem = ConvProblem(x, weight, bias, silu, initial_state, valid, start)
    check_problem(problem)
    unusual = [] if weight.shape[1] in TAPS else [OTHER_TAPS]
    out, last = CONV_BACKENDS.compute(problem, backend, exported=conv_exported, unusual=unusual)
    return (out, last.to(x.dtype)) if return_last_state else out
