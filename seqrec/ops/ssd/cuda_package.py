"""The state-space-dual scan by the Triton kernels of the package mamba-ssm, which users install themselves.

Of the package only `mamba_chunk_scan_combined` is called, by keyword. Bias, softplus, skip, gate and padding are
computed in torch around it: its own softplus loses the digits of small steps, and it has no padding.
"""

from __future__ import annotations

import functools
import os

import torch
from torch import Tensor

from seqrec.ops.cuda_packages import isolated, kernel_fault, load_function, why_no_device
from seqrec.ops.problems import moved, with_gate_and_padding
from seqrec.ops.ssd.reference import SsdProblem, ssd_reference

# Its kernels clamp a decay above 1 to 1, and only softplus ensures that no step is negative.
PLAIN_STEPS = "step sizes without softplus"
# The kernels subtract float32 sums of logarithms within a chunk: the shorter the chunk, the smaller the error.
CHUNK_EVENTS = 64

_load = functools.cache(lambda: load_function("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined"))


def ssd_mamba_ssm(
    x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute `ssd_reference` in float32 on CUDA without starts, if no state grows.

    The package's `seq_idx` cannot replace `start`: it multiplies earlier states by 0, which lets a NaN through.
    """
    assert start is None
    if not x.numel() or not B.numel():
        # The kernel cannot be launched for empty tensors.
        return ssd_reference(x, step, A, B, C, initial_state, None)
    function, reason = _load()
    assert function is not None, reason
    y, last = function(
        x=x.contiguous(),
        dt=step.contiguous(),
        A=A.contiguous(),
        B=B.contiguous(),
        C=C.contiguous(),
        chunk_size=CHUNK_EVENTS,
        initial_states=initial_state.contiguous(),
        return_final_states=True,
    )
    return y, last


def missing() -> str | None:
    """Return why the package cannot be used on this machine now, with the fix; None if it can."""
    if lacking := _load()[1] or why_no_device():
        return lacking
    if torch.get_float32_matmul_precision() == "highest" and os.environ.get("TRITON_F32_DEFAULT") != "ieee":
        return (
            "its products of float32 are TF32, less exact than torch's own are now; to allow that, call "
            "torch.set_float32_matmul_precision('high')"
        )
    return _check(torch.cuda.current_device())


@functools.cache
@isolated()
def _check(device: int) -> str | None:
    generator = torch.Generator().manual_seed(0)
    # More than one chunk: states must pass from one to the next.
    x, z = (torch.rand(2, CHUNK_EVENTS + 6, 4, 3, generator=generator) for _ in range(2))
    B, C = (torch.rand(2, CHUNK_EVENTS + 6, 2, 5, generator=generator) for _ in range(2))
    step, A = torch.rand(2, CHUNK_EVENTS + 6, 4, generator=generator), -torch.rand(4, generator=generator)
    state = torch.rand(2, 4, 3, 5, generator=generator)
    problem = SsdProblem(x, step, A, B, C, z=z, initial_state=state)
    scan, there = with_gate_and_padding(ssd_mamba_ssm), torch.device("cuda", device)
    expected = with_gate_and_padding(ssd_reference)(problem)
    # TF32 keeps 10 bits, an error of 0.05 % per product.
    return kernel_fault(lambda: scan(moved(problem, there)), expected, rtol=1e-2, atol=1e-2)
