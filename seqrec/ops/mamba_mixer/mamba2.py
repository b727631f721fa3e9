"""Mamba-2's mixer. Letters as in `seqrec.ops.mamba_mixer`; P = E / H head width, F = 2 E + 2 N + H."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.ops.causal_conv1d import CONV_BACKENDS, causal_conv1d
from seqrec.ops.causal_conv1d.compiled import convolve, convolve_backward
from seqrec.ops.causal_conv1d.reference import ConvProblem
from seqrec.ops.compiled_library import add_parts, call, distance, in_parts
from seqrec.ops.linear import LINEAR_BACKENDS, linear
from seqrec.ops.mamba_mixer.fused import Buffers, compiled_mixer, gradient_of, mixer_backends, run_mixer
from seqrec.ops.products import PADDING, multiply
from seqrec.ops.ssd import SSD_BACKENDS, ssd_scan
from seqrec.ops.ssd.compiled import call_ssd, kept_states, parts_of

# Added to the mean square of the norm.
NORM_EPS = 1e-5
# Events of a norm that a thread takes at a time; the sums of its weight do not depend on the threads.
EVENTS = 256


class Mamba2Problem(NamedTuple):
    """Input and weights of a mixer; a backend does not check them.

    Attributes:
        x: (B, L, M) input.
        in_weight: (F, M): gate, path, B, C and step sizes.
        conv_weight: (E + 2 N, W), for path, B and C.
        conv_bias: (E + 2 N,).
        delta_bias: (H,), added to the step sizes before softplus.
        A: (H,) negative.
        D: (H,) skip weights.
        norm_weight: (E,).
        out_weight: (M, E).
    """

    x: Tensor
    in_weight: Tensor
    conv_weight: Tensor
    conv_bias: Tensor
    delta_bias: Tensor
    A: Tensor
    D: Tensor
    norm_weight: Tensor
    out_weight: Tensor


def mamba2_mixer(problem: Mamba2Problem, *, backend: str = "auto") -> Tensor:
    """Compute Mamba-2's mixer (Dao & Gu 2024, figure 6) over whole histories: its outputs (B, L, M).

    In-projection, causal convolution with SiLU, scan, gate, RMS norm and out-projection. Causal: an output depends on
    inputs up to its event.

    Backends, in the order in which "auto" prefers them; all give the same values and gradients:

    - "cpp": compiled library, float32 on a CPU, without autocast. Each step reads its operands where the step before
      wrote them, parts of wider tensors among them.
    - "reference": `linear`, `causal_conv1d`, `ssd_scan` and plain torch, any device and dtype; the only one with second
      derivatives. "auto" takes it too if an environment variable chooses a backend of those ops.

    Args:
        problem: What to compute.
        backend: A name above, or "auto": the environment variable SEQREC_MAMBA2_MIXER_BACKEND if set, else the first
            that can compute this.

    Raises:
        InputError: if the backend is unknown, missing or cannot compute this.
    """
    return run_mixer(
        problem, backend, MAMBA2_BACKENDS, mamba2_reference, (LINEAR_BACKENDS, CONV_BACKENDS, SSD_BACKENDS)
    )


def mamba2_reference(p: Mamba2Problem) -> Tensor:
    """Compute `mamba2_mixer` by the ops that it consists of."""
    inner, convolved, heads = len(p.norm_weight), len(p.conv_bias), len(p.A)
    gate, path, delta = torch.split(linear(p.x, p.in_weight), [inner, convolved, heads], dim=-1)
    path = causal_conv1d(path, p.conv_weight, p.conv_bias, silu=True)
    states = (convolved - inner) // 2
    x, B, C = torch.split(path, [inner, states, states], dim=-1)
    x, gate = (torch.unflatten(value, -1, (heads, -1)) for value in (x, gate))
    operands = (x, delta, p.A, B.unsqueeze(2), C.unsqueeze(2), p.D)
    y = ssd_scan(*operands, z=gate, delta_bias=p.delta_bias, delta_softplus=True)
    assert isinstance(y, Tensor)
    # Under autocast the scan's output may be narrower than the weight, for which the norm would warn.
    normed = F.rms_norm(y.flatten(2).to(p.norm_weight.dtype), (inner,), p.norm_weight, NORM_EPS)
    return linear(normed, p.out_weight)


def _allocate(p: Mamba2Problem, keep: bool) -> Buffers:
    """Allocate the output, the in-projection, the convolution, the scan's output, the norm's, and kept states."""
    events, inner, heads = p.x.shape[:2], len(p.norm_weight), len(p.A)
    width = p.in_weight.shape[0]
    projected, convolved, y, normed = (
        p.x.new_empty(*events, size) for size in (width + -width % PADDING, len(p.conv_bias), inner, inner)
    )
    x, B, _ = _operands(p, convolved)
    kept = kept_states(x, B) if keep else p.x.new_empty(0)
    return torch.empty_like(p.x), projected, convolved, torch.unflatten(y, -1, (heads, -1)), normed, kept


def _operands(p: Mamba2Problem, convolved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the scan's x, B and C, or their gradients, as parts of the convolution (B, L, E + 2 N)."""
    inner = len(p.norm_weight)
    states = (len(p.conv_bias) - inner) // 2
    x, B, C = torch.split(convolved, [inner, states, states], dim=-1)
    return torch.unflatten(x, -1, (len(p.A), -1)), B.unsqueeze(2), C.unsqueeze(2)


def _projections(p: Mamba2Problem, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return gate, input of the convolution and step sizes, or their gradients, as parts of the in-projection."""
    inner, convolved, heads = len(p.norm_weight), len(p.conv_bias), len(p.A)
    gate, path, delta, _ = torch.split(
        projected, [inner, convolved, heads, projected.shape[-1] - inner - convolved - heads], dim=-1
    )
    return gate, path, delta


def _inputs(p: Mamba2Problem, delta: Tensor, convolved: Tensor) -> dict[str, Tensor]:
    x, B, C = _operands(p, convolved)
    return {"x": x, "delta": delta, "A": p.A, "B": B, "C": C, "D": p.D, "delta_bias": p.delta_bias}


def _norm_sizes(gate: Tensor) -> dict[str, int]:
    return {"events": gate.shape[:2].numel(), "width": gate.shape[2], "z_event": distance(gate), "piece": EVENTS}


def _forward(
    p: Mamba2Problem, out: Tensor, projected: Tensor, convolved: Tensor, y: Tensor, normed: Tensor, kept: Tensor
) -> None:
    gate, path, delta = _projections(p, projected)
    multiply(p.x, p.in_weight.t(), projected[..., : p.in_weight.shape[0]])
    convolve(ConvProblem(path, p.conv_weight, p.conv_bias, silu=True), convolved)
    results = {"y": y, "kept_states": kept if kept.numel() else None}
    call_ssd("ssd_forward", {**_inputs(p, delta, convolved), **results}, softplus=True)
    tensors = {"y": y, "z": gate, "weight": p.norm_weight, "out": normed}
    call("gated_norm_forward", _norm_sizes(gate), tensors)
    multiply(normed, p.out_weight.t(), out)


def _backward(
    dout: Tensor, p: Mamba2Problem, projected: Tensor, convolved: Tensor, y: Tensor, normed: Tensor, kept: Tensor
) -> list[Tensor]:
    gate, path, delta = _projections(p, projected)
    dprojected, dconvolved, dnormed = map(torch.empty_like, (projected, convolved, normed))
    dgate, dpath, ddelta = _projections(p, dprojected)
    multiply(dout, p.out_weight, dnormed)
    sizes = _norm_sizes(gate) | {"dz_event": distance(dgate)}
    dnorm = p.x.new_empty(-(-sizes["events"] // EVENTS), sizes["width"])
    tensors = {"y": y, "z": gate, "weight": p.norm_weight, "dout": dnormed, "dy": dnormed, "dz": dgate}
    call("gated_norm_backward", sizes, {**tensors, "dweight": dnorm})
    parts = parts_of(y, 1)
    dx, dB, dC = _operands(p, dconvolved)
    # A part of the heads has sums of its own.
    shared = in_parts((dB, dC), parts)
    dA, dD = p.x.new_empty(2, len(p.x), len(p.A))
    results = {"dx": dx, "ddelta": ddelta, "dA": dA, "dD": dD, "dB": shared[0], "dC": shared[1]}
    inputs = _inputs(p, delta, convolved) | {"kept_states": kept, "dy": dnormed}
    call_ssd("ssd_backward", {**inputs, **results}, parts=parts, softplus=True)
    add_parts((dB, dC), shared)
    dconv = convolve_backward(ConvProblem(path, p.conv_weight, p.conv_bias, silu=True), dconvolved, None, dpath)[1:3]
    whole = dprojected[..., : p.in_weight.shape[0]]
    of_x = multiply(whole, p.in_weight, torch.empty_like(p.x))
    of_scan = [ddelta.sum((0, 1)), dA.sum(0), dD.sum(0), dnorm.sum(0)]
    return [of_x, gradient_of(whole, p.x), *dconv, *of_scan, gradient_of(dout, normed)]


# Same as `mamba2_mixer` in float32 on a CPU.
mamba2_compiled = compiled_mixer("mamba2_mixer", Mamba2Problem, _allocate, 6, _forward, _backward, mamba2_reference)

MAMBA2_BACKENDS = mixer_backends("Mamba-2 mixer", "SEQREC_MAMBA2_MIXER_BACKEND", mamba2_compiled, mamba2_reference)
