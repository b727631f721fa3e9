"""One further event of a mixer of Mamba or Mamba-2, from its input to its output.

Letters: B batch, M model width, E channels, N states per channel, W taps of the convolution, R rank of step sizes,
H heads of width P = E / H.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.ops.compiled_library import call, contiguous
from seqrec.ops.mamba_mixer import NORM_EPS
from seqrec.ops.selective_scan import selective_scan_step
from seqrec.ops.ssd import ssd_step
from seqrec.ops.steps import SlabRows, Step, Stepped, run_step, step_backends

__all__ = [
    "MAMBA2_STEP_BACKENDS", "MAMBA_STEP_BACKENDS", "Mamba2StepProblem", "MambaStepProblem", "mamba2_step",
    "mamba_step",
]  # fmt: skip


class MambaStepProblem(NamedTuple):
    """Input, weights and state of a mixer; a backend does not check them.

    Attributes:
        x: (B, M) input.
        in_weight: (2 E, M), the path and then the gate.
        conv_weight: (E, W).
        conv_bias: (E,).
        scan_weight: (R + 2 N, E), step sizes, B and C.
        delta_weight: (E, R).
        delta_bias: (E,).
        A_log: (E, N), log of -A.
        D: (E,) skip weights.
        out_weight: (M, E).
        inputs: (B, W - 1, E), the last inputs of the convolution, the newest last.
        state: (B, E, N) of the scan; of rows of a slab if `inputs` are, with the same numbers.
    """

    x: Tensor
    in_weight: Tensor
    conv_weight: Tensor
    conv_bias: Tensor
    scan_weight: Tensor
    delta_weight: Tensor
    delta_bias: Tensor
    A_log: Tensor
    D: Tensor
    out_weight: Tensor
    inputs: Tensor | SlabRows
    state: Tensor | SlabRows


class Mamba2StepProblem(NamedTuple):
    """Input, weights and state of a mixer of Mamba-2; a backend does not check them.

    Attributes:
        x: (B, M) input.
        in_weight: (2 E + 2 N + H, M): gate, path, B, C and step sizes.
        conv_weight: (E + 2 N, W), for path, B and C.
        conv_bias: (E + 2 N,).
        delta_bias: (H,).
        A_log: (H,), log of -A.
        D: (H,) skip weights.
        norm_weight: (E,).
        out_weight: (M, E).
        inputs: (B, W - 1, E + 2 N), as of `MambaStepProblem`.
        state: (B, H, P, N), as of `MambaStepProblem`.
    """

    x: Tensor
    in_weight: Tensor
    conv_weight: Tensor
    conv_bias: Tensor
    delta_bias: Tensor
    A_log: Tensor
    D: Tensor
    norm_weight: Tensor
    out_weight: Tensor
    inputs: Tensor | SlabRows
    state: Tensor | SlabRows


def mamba_step(problem: MambaStepProblem, *, backend: str = "auto") -> Stepped:
    """Compute one further event per row of a Mamba mixer (Gu & Dao 2023, figure 3): its output and its state.

    In-projection, causal convolution with SiLU, step sizes, B and C, one update of the scan, gate and out-projection.
    The operations of one event are so small that starting each would take longer than computing it.

    Backends, in the order in which "auto" prefers them:

    - "cpp": compiled library, float32 on a CPU, without gradients: all of it in one call.
    - "reference": plain torch, any device and dtype, with gradients.

    Args:
        problem: What to compute.
        backend: A name above, or "auto": the environment variable SEQREC_MAMBA_STEP_BACKEND if set, else the first that
            can compute this.

    Returns:
        The output (B, M), the last inputs (B, W - 1, E) and the state (B, E, N): new tensors, or the given rows of
        slabs, which are written.

    Raises:
        InputError: if the backend is unknown, missing or cannot compute this.
    """
    return run_step(problem, backend, MAMBA_STEP_BACKENDS, mamba_step_reference)


def mamba2_step(problem: Mamba2StepProblem, *, backend: str = "auto") -> Stepped:
    """Compute one further event per row of a mixer of Mamba-2 (Dao & Gu 2024, figure 6), as `mamba_step` does.

    Args:
        problem: What to compute.
        backend: As of `mamba_step`; the environment variable is SEQREC_MAMBA2_STEP_BACKEND.
    """
    return run_step(problem, backend, MAMBA2_STEP_BACKENDS, mamba2_step_reference)


def _with_slabs(reference: Step) -> Step:
    """Return the step for rows of slabs too, from that for tensors."""

    def step(p: Any) -> Stepped:
        if not isinstance(p.state, SlabRows):
            return reference(p)
        slabs = p.inputs, p.state
        inputs, state = (each.slab.index_select(0, each.before) for each in slabs)
        out, *after = reference(p._replace(inputs=inputs, state=state))
        for each, x in zip(slabs, after, strict=True):
            each.slab.index_copy_(0, each.after, x)
        return out, *slabs

    return step


def _convolve(path: Tensor, p: Any) -> tuple[Tensor, Tensor]:
    """Return the convolution (B, E) with SiLU, and the last inputs."""
    seen = torch.cat([p.inputs, path.unsqueeze(1).to(p.inputs.dtype)], 1)
    return F.silu((seen * p.conv_weight.t()).sum(1) + p.conv_bias).to(path.dtype), seen[:, 1:]


@_with_slabs
def mamba_step_reference(p: Any) -> Stepped:
    """Compute `mamba_step` in plain torch."""
    rank, num_states = p.delta_weight.shape[1], p.A_log.shape[1]
    path, gate = F.linear(p.x, p.in_weight).chunk(2, dim=-1)
    u, inputs = _convolve(path, p)
    dt, B, C = torch.split(F.linear(u, p.scan_weight), [rank, num_states, num_states], dim=-1)
    delta, A = F.linear(dt, p.delta_weight), -torch.exp(p.A_log.float())
    mixed, state = selective_scan_step(
        u, delta, A, B, C, p.state, p.D, gate, p.delta_bias, delta_softplus=True, check=False
    )
    return F.linear(mixed, p.out_weight), inputs, state


@_with_slabs
def mamba2_step_reference(p: Any) -> Stepped:
    """Compute `mamba2_step` in plain torch."""
    inner, convolved, heads = len(p.norm_weight), len(p.conv_bias), len(p.A_log)
    gate, path, delta = torch.split(F.linear(p.x, p.in_weight), [inner, convolved, heads], dim=-1)
    u, inputs = _convolve(path, p)
    x, B, C = torch.split(u, [inner, (convolved - inner) // 2, (convolved - inner) // 2], dim=-1)
    x, gate = (torch.unflatten(value, -1, (heads, -1)) for value in (x, gate))
    operands = (x, delta, -torch.exp(p.A_log.float()), B.unsqueeze(1), C.unsqueeze(1), p.state)
    mixed, state = ssd_step(*operands, p.D, gate, p.delta_bias, delta_softplus=True)
    # Under autocast the scan's output may be narrower than the weight, for which the norm would warn.
    normed = F.rms_norm(mixed.flatten(1).to(p.norm_weight.dtype), (inner,), p.norm_weight, NORM_EPS)
    return F.linear(normed, p.out_weight), inputs, state


def _compiled(function: str, p: Any, sizes: dict[str, int]) -> Stepped:
    out = torch.empty_like(p.x, memory_format=torch.contiguous_format)
    tensors = contiguous(**{name: x for name, x in p._asdict().items() if isinstance(x, Tensor)})
    strides: dict[str, int] = {}
    after: list[Tensor | SlabRows] = []
    for name, x in (("inputs", p.inputs), ("state", p.state)):
        if isinstance(x, SlabRows):
            tensors |= {name: x.slab, f"next_{name}": x.slab, "rows": x.before, "next_rows": x.after}
            strides[f"{name}_stride"] = x.slab.stride(0)
            after.append(x)
        else:
            new = torch.empty_like(x, memory_format=torch.contiguous_format)
            tensors[f"next_{name}"] = new
            strides[f"{name}_stride"] = new.stride(0)
            after.append(new)
    sizes = {"batch": p.x.shape[0], "width": p.x.shape[1], "taps": p.conv_weight.shape[1], **sizes}
    if p.x.shape[0]:
        call(function, {**sizes, **strides}, {**tensors, "out": out})
    return out, after[0], after[1]


def mamba_step_compiled(p: MambaStepProblem) -> Stepped:
    """Compute `mamba_step` in float32 on CPU by the compiled library, without gradients."""
    channels, states = p.A_log.shape
    return _compiled("mamba_step", p, {"channels": channels, "states": states, "rank": p.delta_weight.shape[1]})


def mamba2_step_compiled(p: Mamba2StepProblem) -> Stepped:
    """Compute `mamba2_step` in float32 on CPU by the compiled library, without gradients."""
    inner, heads = len(p.norm_weight), len(p.A_log)
    sizes = {"heads": heads, "head_width": inner // heads, "states": (len(p.conv_bias) - inner) // 2}
    return _compiled("mamba2_step", p, sizes)


MAMBA_STEP_BACKENDS = step_backends(
    "step of a Mamba mixer", "SEQREC_MAMBA_STEP_BACKEND", mamba_step_compiled, mamba_step_reference
)
MAMBA2_STEP_BACKENDS = step_backends(
    "step of a Mamba-2 mixer", "SEQREC_MAMBA2_STEP_BACKEND", mamba2_step_compiled, mamba2_step_reference
)
