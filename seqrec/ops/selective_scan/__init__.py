"""Selective scan of Mamba. Shapes: B batch, L events, D channels, N states per channel."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.ops.backends import Backend, Backends
from seqrec.ops.compiled_library import compiled_backend
from seqrec.ops.cuda_packages import package_backend
from seqrec.ops.problems import with_gate_and_padding
from seqrec.ops.selective_scan.chunked import scan_chunked
from seqrec.ops.selective_scan.compiled import scan_compiled
from seqrec.ops.selective_scan.cuda_package import MAX_STATES, TOO_MANY_STATES, missing, scan_mamba_ssm
from seqrec.ops.selective_scan.reference import (
    Scan,
    ScanProblem,
    check_operands,
    scan_exported,
    scan_reference,
    selective_scan_step,
)
from seqrec.ops.selective_scan.triton_launch import kernels, scan_triton
from seqrec.ops.triton_support import LOW_PRECISION, triton_backend

__all__ = ["SCAN_BACKENDS", "selective_scan", "selective_scan_step"]

# In the order in which "auto" prefers them.
SCAN_BACKENDS: Backends[Scan] = Backends(
    "selective scan",
    "SEQREC_SCAN_BACKEND",
    [
        compiled_backend(scan_compiled, narrow=(torch.bfloat16,)),
        triton_backend(scan_triton, kernels, narrow=LOW_PRECISION),
        package_backend("mamba_ssm", scan_mamba_ssm, missing, unsupported_args={"start", TOO_MANY_STATES}),
        Backend("chunked", with_gate_and_padding(scan_chunked)),
        Backend("reference", with_gate_and_padding(scan_reference)),
    ],
)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    *,
    valid: Tensor | None = None,
    start: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute Mamba's input-dependent linear recurrence (Gu & Dao 2023, equation 2, discretised as in section 2).

    With step = delta + delta_bias, through softplus if asked:
    `h_t = exp(step_t A) h_{t-1} + step_t B_t u_t`, `y_t = (C_t h_t + D u_t) * silu(z_t)`.
    Causal: y_t depends on events up to t, so right padding never reaches a valid position. The *last state*
    includes padding unless `valid` masks it. The recurrence runs in float32 at least, also under autocast.

    Backends, in the order in which "auto" prefers them; all give the same values and gradients:

    - "cpp": compiled, float32 on CPU, vector instructions and threads. Reads and writes bfloat16 without a cast.
    - "triton": kernels for GPUs, float32, any number of states, the same bits each time. Reads and writes 16-bit inputs
      without a cast. Needs triton, which torch for CUDA on Linux brings. With TRITON_INTERPRET=1 it runs on CPU, for
      tests; never "auto" there.
    - "mamba_ssm": the CUDA kernels of that package, float32, up to 256 states per channel, no `start`, and not under
      `torch.use_deterministic_algorithms`. An extra that users install.
    - "chunked": plain torch, any device, float32 and float64.
    - "reference": sequential, for tests; the only one with second derivatives. Never "auto".

    float16 and bfloat16 are computed in float32, with states in float32. If "auto" uses a slower backend because a
    better one is missing, a warning is logged once; `seqrec doctor` lists the backends. While `torch.export` traces,
    "auto" is plain torch, whatever the environment variable.

    Args:
        u: (B, L, D) inputs.
        delta: (B, L, D) step sizes before bias and softplus.
        A: (D, N), negative for a state that fades.
        B: (B, L, N) input weights.
        C: (B, L, N) output weights.
        D: (D,) skip weights or None.
        z: (B, L, D) gate or None.
        delta_bias: (D,) or None.
        delta_softplus: Whether step sizes go through softplus.
        initial_state: (B, D, N) state before the first event; None is zero.
        return_last_state: Whether to return the state after the last event too. It has a gradient.
        valid: (B, L) bool, True at events, False at padding, which may be anywhere. The state passes through padding
            unchanged, y is 0 there, and the contents of the inputs there have no effect. None is True everywhere.
        start: (B, L) bool, True where a new history begins (packed rows), also at padding: the state before it
            counts as zero. None is False everywhere.
        backend: A name above, or "auto": the environment variable SEQREC_SCAN_BACKEND if set, else the first
            that can compute this.

    Returns:
        y (B, L, D) in u's dtype; with `return_last_state` also h_L (B, D, N) in the recurrence's dtype.

    Raises:
        InputError: if the backend is unknown, missing or cannot compute this, or an argument's shape, device or dtype
            does not fit.

    Example:
        >>> import torch
        >>> from seqrec.ops import selective_scan
        >>> u, ones = torch.tensor([[[1.0], [0.0], [0.0]]]), torch.ones(1, 3, 1)
        >>> y = selective_scan(u, ones, -torch.log(torch.full((1, 1), 2.0)), ones, ones)
        >>> [round(float(value), 4) for value in y.flatten()]  # The state halves with each event.
        [1.0, 0.5, 0.25]
    """
    real = (u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state)
    problem = ScanProblem(*real, valid, start, return_last_state)
    check_operands(problem._asdict(), "B, L")
    unusual = [TOO_MANY_STATES] if A.shape[1] > MAX_STATES else []
    y, last = SCAN_BACKENDS.compute(problem, backend, exported=scan_exported, unusual=unusual)
    return (y, last) if return_last_state else y
