"""Selective scan of Mamba. Shapes: B batch, L events, D channels, N states a channel."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.ops.export import is_exporting, without_autocast
from seqrec.ops.selective_scan.backends import SCAN_BACKENDS
from seqrec.ops.selective_scan.export import scan_exported
from seqrec.ops.selective_scan.mamba_ssm_scan import MAX_STATES, TOO_MANY_STATES
from seqrec.ops.selective_scan.problem import ScanProblem, check_problem
from seqrec.ops.selective_scan.step import selective_scan_step

__all__ = ["SCAN_BACKENDS", "selective_scan", "selective_scan_step"]


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
    """Mamba's input-dependent linear recurrence (Gu & Dao 2023, equation 2, discretised as in section 2).

    With step = delta + delta_bias, through softplus if asked:
    `h_t = exp(step_t A) h_{t-1} + step_t B_t u_t`, `y_t = (C_t h_t + D u_t) * silu(z_t)`.
    Causal: y_t depends on events up to t, so right padding never reaches a valid position; the *last state*
    does include padding, unless `valid` says what is. The recurrence runs in float32 at least, also under
    autocast.

    Backends, from the one that "auto" likes best; all give the same values and gradients:

    - "cpp": compiled, float32 on CPU, vector instructions and threads.
    - "triton": kernels for GPUs, float32, any number of states, the same bits each time. Needs triton, which torch
      for CUDA on Linux brings. With TRITON_INTERPRET=1 it runs on CPU instead, for tests; never "auto" there.
    - "mamba_ssm": the CUDA kernels of that package, float32, up to 256 states a channel, no `start`, and not under
      `torch.use_deterministic_algorithms`. An extra that users install.
    - "chunked": plain torch, any device, float32 and float64.
    - "reference": sequential, for tests; the only one with second derivatives. Never "auto".

    float16 and bfloat16 count as float32, in which the recurrence runs. Where "auto" takes a slower backend
    because a better one is missing, the log says so once; `seqrec doctor` shows what is there. While `torch.export`
    traces, "auto" is plain torch whatever the variable says.

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
        return_last_state: Whether to return the state behind the last event too; its gradient counts.
        valid: (B, L) bool, True at events, False at padding, wherever that stands: the state passes through it
            unchanged, y is 0 there, and what the inputs hold there is of no effect. None is True everywhere.
        start: (B, L) bool, True where a new history begins, so that the state before it counts as zero (packed
            rows), at padding too. None is False everywhere.
        backend: A name above, or "auto": the environment variable SEQREC_SCAN_BACKEND if set, else the first
            that can compute this.

    Returns:
        y (B, L, D) in u's dtype; with `return_last_state` also h_L (B, D, N) in the recurrence's dtype.

    Raises:
        InputError: an unknown backend, one that is missing or cannot compute what is asked for, or a shape,
            device or kind of number that does not fit.
    """
    real = (u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state)
    problem = ScanProblem(*real, valid, start, return_last_state)
    check_problem(problem)
    dtype = torch.promote_types(u.dtype, torch.float32)
    given = tuple(name for name in ("initial_state", "valid", "start") if getattr(problem, name) is not None)
    if A.shape[1] > MAX_STATES:
        given = (*given, TOO_MANY_STATES)
    if backend == "auto" and is_exporting():
        scan = scan_exported
    else:
        scan = SCAN_BACKENDS[_chosen(backend, u.device.type, dtype, given)].function
    with without_autocast(u.device.type):
        y, last = scan(problem.to(dtype))
    y = y.to(u.dtype)
    return (y, last) if return_last_state else y


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _chosen(backend: str, device: str, dtype: torch.dtype, given: tuple[str, ...]) -> str:
    return SCAN_BACKENDS.choose(backend, device, dtype, given).name
