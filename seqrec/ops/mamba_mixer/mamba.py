"""Mamba's mixer. Letters as in `seqrec.ops.mamba_mixer`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seqrec.ops.causal_conv1d import CONV_BACKENDS, causal_conv1d
from seqrec.ops.causal_conv1d.compiled import convolve, convolve_backward
from seqrec.ops.causal_conv1d.reference import ConvProblem
from seqrec.ops.compiled_library import add_parts, in_parts
from seqrec.ops.linear import LINEAR_BACKENDS, linear
from seqrec.ops.mamba_mixer.fused import Buffers, compiled_mixer, gradient_of, mixer_backends, run_mixer
from seqrec.ops.products import PADDING, multiply
from seqrec.ops.selective_scan import SCAN_BACKENDS, selective_scan
from seqrec.ops.selective_scan.compiled import call_scan, groups_of, kept_shape


class MambaProblem(NamedTuple):
    """Input and weights of a mixer; a backend does not check them.

    Attributes:
        x: (B, L, M) input.
        in_weight: (2 E, M), the path and then the gate.
        conv_weight: (E, W).
        conv_bias: (E,).
        scan_weight: (R + 2 N, E), step sizes, B and C.
        delta_weight: (E, R).
        delta_bias: (E,), added to the step sizes before softplus.
        A: (E, N) negative.
        D: (E,) skip weights.
        out_weight: (M, E).
    """

    x: Tensor
    in_weight: Tensor
    conv_weight: Tensor
    conv_bias: Tensor
    scan_weight: Tensor
    delta_weight: Tensor
    delta_bias: Tensor
    A: Tensor
    D: Tensor
    out_weight: Tensor


def mamba_mixer(problem: MambaProblem, *, backend: str = "auto") -> Tensor:
    """Compute Mamba's mixer (Gu & Dao 2023, figure 3) over whole histories: its outputs (B, L, M).

    In-projection, causal convolution with SiLU, step sizes, B and C, selective scan, gate and out-projection. Causal:
    an output depends on inputs up to its event.

    Backends, in the order in which "auto" prefers them; all give the same values and gradients:

    - "cpp": compiled library, float32 on a CPU, without autocast. Each step reads its operands where the step before
      wrote them, parts of wider tensors among them.
    - "reference": `linear`, `causal_conv1d`, `selective_scan`, any device and dtype; the only one with second
      derivatives. "auto" takes it too if an environment variable chooses a backend of those ops.

    Args:
        problem: What to compute.
        backend: A name above, or "auto": the environment variable SEQREC_MAMBA_MIXER_BACKEND if set, else the first
            that can compute this.

    Raises:
        InputError: if the backend is unknown, missing or cannot compute this.
    """
    return run_mixer(problem, backend, MAMBA_BACKENDS, mamba_reference, (LINEAR_BACKENDS, CONV_BACKENDS, SCAN_BACKENDS))


def mamba_reference(p: MambaProblem) -> Tensor:
    """Compute `mamba_mixer` by the ops that it consists of."""
    rank, states = p.delta_weight.shape[1], p.A.shape[1]
    path, gate = linear(p.x, p.in_weight).chunk(2, dim=-1)
    u = causal_conv1d(path, p.conv_weight, p.conv_bias, silu=True)
    dt, B, C = torch.split(linear(u, p.scan_weight), [rank, states, states], dim=-1)
    delta = linear(dt, p.delta_weight)
    y = selective_scan(u, delta, p.A, B, C, p.D, z=gate, delta_bias=p.delta_bias, delta_softplus=True)
    assert isinstance(y, Tensor)
    return linear(y, p.out_weight)


def _allocate(p: MambaProblem, keep: bool) -> Buffers:
    """Allocate the output, the in-projection, u, the scan's projection, step sizes, the scan's output, kept states."""
    events, (channels, _) = p.x.shape[:2], p.A.shape
    width = p.scan_weight.shape[0]
    sizes = (2 * channels, channels, width + -width % PADDING, channels, channels)
    projected, u, scanned, delta, y = (p.x.new_empty(*events, size) for size in sizes)
    kept = p.x.new_empty(kept_shape(u, p.A) if keep else 0)
    return torch.empty_like(p.x), projected, u, scanned, delta, y, kept


def _parts(p: MambaProblem, scanned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return step sizes (B, L, R), B and C, or their gradients, as parts of the scan's projection."""
    rank, states = p.delta_weight.shape[1], p.A.shape[1]
    dt, B, C, _ = torch.split(scanned, [rank, states, states, scanned.shape[-1] - rank - 2 * states], dim=-1)
    return dt, B, C


def _inputs(p: MambaProblem, gate: Tensor, u: Tensor, scanned: Tensor, delta: Tensor) -> dict[str, Tensor | None]:
    _, B, C = _parts(p, scanned)
    operands = {"u": u, "delta": delta, "A": p.A, "B": B, "C": C}
    return {**operands, "D": p.D, "z": gate, "delta_bias": p.delta_bias}


def _forward(
    p: MambaProblem,
    out: Tensor,
    projected: Tensor,
    u: Tensor,
    scanned: Tensor,
    delta: Tensor,
    y: Tensor,
    kept: Tensor,
) -> None:
    path, gate = projected.chunk(2, dim=-1)
    multiply(p.x, p.in_weight.t(), projected)
    convolve(ConvProblem(path, p.conv_weight, p.conv_bias, silu=True), u)
    multiply(u, p.scan_weight.t(), scanned[..., : p.scan_weight.shape[0]])
    multiply(_parts(p, scanned)[0], p.delta_weight.t(), delta)
    results = {"y": y, "kept_states": kept if kept.numel() else None}
    call_scan("scan_forward", {**_inputs(p, gate, u, scanned, delta), **results}, softplus=True)
    multiply(y, p.out_weight.t(), out)


def _backward(
    dout: Tensor,
    p: MambaProblem,
    projected: Tensor,
    u: Tensor,
    scanned: Tensor,
    delta: Tensor,
    y: Tensor,
    kept: Tensor,
) -> list[Tensor]:
    path, gate = projected.chunk(2, dim=-1)
    dprojected, du, dscanned, ddelta, dy = map(torch.empty_like, (projected, u, scanned, delta, y))
    dpath, dgate = dprojected.chunk(2, dim=-1)
    multiply(dout, p.out_weight, dy)
    groups, batch = groups_of(u), len(u)
    ddt, dB, dC = _parts(p, dscanned)
    shared = in_parts((dB, dC), groups)
    dA, (dD, dbias) = u.new_empty(batch, *p.A.shape), u.new_empty(2, batch, len(p.A))
    results = {"du": du, "ddelta": ddelta, "dz": dgate, "dA": dA, "dD": dD, "ddelta_bias": dbias}
    results |= {"dB": shared[0], "dC": shared[1], "kept_states": kept, "dy": dy}
    call_scan("scan_backward", {**_inputs(p, gate, u, scanned, delta), **results}, groups=groups, softplus=True)
    add_parts((dB, dC), shared)
    multiply(ddelta, p.delta_weight, ddt)
    whole = dscanned[..., : p.scan_weight.shape[0]]
    multiply(whole, p.scan_weight, du, add=True)
    dconv = convolve_backward(ConvProblem(path, p.conv_weight, p.conv_bias, silu=True), du, None, dpath)[1:3]
    of_x = multiply(dprojected, p.in_weight, torch.empty_like(p.x))
    of_weights = [gradient_of(whole, u), gradient_of(_parts(p, scanned)[0], ddelta).t()]
    of_scan = [dbias.sum(0), dA.sum(0), dD.sum(0)]
    return [of_x, gradient_of(dprojected, p.x), *dconv, *of_weights, *of_scan, gradient_of(dout, y)]


# Same as `mamba_mixer` in float32 on a CPU.
mamba_compiled = compiled_mixer("mamba_mixer", MambaProblem, _allocate, 7, _forward, _backward, mamba_reference)

MAMBA_BACKENDS = mixer_backends("Mamba mixer", "SEQREC_MAMBA_MIXER_BACKEND", mamba_compiled, mamba_reference)
