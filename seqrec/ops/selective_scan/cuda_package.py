"""The selective scan by the CUDA kernels of the package mamba-ssm, which users install themselves.

Of the package only `selective_scan_fn` is called, by keyword: its fused block (`mamba_inner_fn`) lets padding into the
state. The kernel takes (B, D, L), has no initial state and ignores the gradient of the last one. Both are made of N
further events in front and at the end, one for each state of a channel:

- in front, event n puts `initial_state[:, :, n]` into state n by a step too short for any state to fade: its size is a
  power of two, so input times step is exact, and below 2^-39, so `exp(step A)` rounds to 1;
- at the end, event n has step size 0 and C = unit vector n, so its y is state n.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from seqrec.ops.cuda_packages import isolated, kernel_fault, load_function, why_no_device
from seqrec.ops.problems import moved, wants_gradient, with_gate_and_padding
from seqrec.ops.selective_scan.chunked import scan_chunked
from seqrec.ops.selective_scan.reference import ScanProblem, scan_reference

MAX_STATES = 256
TOO_MANY_STATES = f"more than {MAX_STATES} states a channel"
# `exp(TINY_STEP * A)` is 1 in float32 for |A| below 2^14; Mamba's A starts at -N.
TINY_STEP = 2.0**-40

_load = functools.cache(lambda: load_function("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn"))


def scan_mamba_ssm(problem: ScanProblem) -> tuple[Tensor, Tensor]:
    """Compute `selective_scan` in float32 on CUDA, for at most 256 states per channel and no `start`.

    The package's backward sums dB and dC in no fixed order, so the last bits of gradients differ from run to run. The
    backend counts as missing under `torch.use_deterministic_algorithms`.
    """
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, valid, _, read_last = problem
    if not u.numel() or not A.numel():
        # The kernel cannot be launched for empty tensors.
        return with_gate_and_padding(scan_chunked)(problem)
    if valid is not None or initial_state is not None or (read_last and wants_gradient(problem)):
        return with_gate_and_padding(_recurrence)(problem)
    y, last = _call(u, delta, A, B, C, D=D, z=z, delta_bias=delta_bias, delta_softplus=delta_softplus)
    return y, last


def missing() -> str | None:
    """Return why the package cannot be used on this machine now, with the fix; None if it can."""
    return _load()[1] or why_no_device() or _check(torch.cuda.current_device())


def _recurrence(
    u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    # Same as `scan_reference` without starts.
    assert start is None
    batch, length, channels = u.shape
    states = A.shape[1]
    unit = torch.eye(states, dtype=u.dtype, device=u.device).expand(batch, states, states)
    nothing = torch.zeros_like(unit)
    silent = u.new_zeros(batch, states, channels)
    y, _ = _call(
        torch.cat([initial_state.transpose(1, 2) / TINY_STEP, u, silent], 1),
        torch.cat([torch.full_like(silent, TINY_STEP), step, silent], 1),
        A,
        torch.cat([unit, B, nothing], 1),
        torch.cat([nothing, C, unit], 1),
    )
    return y[:, states : states + length], y[:, states + length :].transpose(1, 2)


def _call(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, **further: Any) -> tuple[Tensor, Tensor]:
    # From events first to channels first and back.
    function, reason = _load()
    assert function is not None, reason
    z = further.pop("z", None)
    u, delta, B, C = (x.transpose(1, 2).contiguous() for x in (u, delta, B, C))
    y, last = function(
        u=u,
        delta=delta,
        A=A.contiguous(),
        B=B,
        C=C,
        z=None if z is None else z.transpose(1, 2).contiguous(),
        return_last_state=True,
        **further,
    )
    return y.transpose(1, 2), last


@functools.cache
@isolated()
def _check(device: int) -> str | None:
    generator = torch.Generator().manual_seed(0)
    u, step, z = (torch.rand(2, 5, 3, generator=generator) for _ in range(3))
    B, C = (torch.rand(2, 5, 4, generator=generator) for _ in range(2))
    A, state = -torch.rand(3, 4, generator=generator), torch.rand(2, 3, 4, generator=generator)
    problem = ScanProblem(u, step, A, B, C, z=z, initial_state=state)
    expected = with_gate_and_padding(scan_reference)(problem)
    there = torch.device("cuda", device)
    return kernel_fault(lambda: scan_mamba_ssm(moved(problem, there)), expected, rtol=1e-4, atol=1e-5)
