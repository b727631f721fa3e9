"""The compiled CPU convolution, as an op that torch knows. Shapes: B batch, L events, D channels, W taps."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.ops.causal_conv1d.autograd import differentiable_convolution, new_outputs
from seqrec.ops.causal_conv1d.problem import ConvProblem
from seqrec.ops.compiled_library import call, contiguous
from seqrec.ops.problems import empty_like

# Events that one thread takes at a time. It does not depend on the number of threads, nor do the sums.
PIECE = 256


def _inputs(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    valid: Tensor | None,
    start: Tensor | None,
) -> tuple[dict[str, int], dict[str, Tensor | None]]:
    """Numbers and tensors that forward and backward share. Hold the tensors while the library runs."""
    batch, length, channels = x.shape
    # What a layer convolves is often part of a wider tensor; only channels must lie side by side.
    x = x if x.stride(2) == 1 else x.contiguous()
    numbers = {"batch": batch, "length": length, "channels": channels, "taps": weight.shape[1]}
    numbers |= {"row_stride": x.stride(0), "event_stride": x.stride(1), "piece": PIECE}
    tensors = contiguous(weight=weight.t(), bias=bias, initial_state=initial_state, valid=valid, start=start)
    return numbers, {"x": x, **tensors}


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    initial_state: Tensor | None,
    valid: Tensor | None,
    start: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Outputs and the last state."""
    numbers, tensors = _inputs(x, weight, bias, initial_state, valid, start)
    out, last = new_outputs(x, weight)
    call("conv_forward", {**numbers, "silu": silu}, {**tensors, "out": out, "last_state": last})
    return out, last


def _backward(
    dout: Tensor | None,
    dlast: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    initial_state: Tensor | None,
    valid: Tensor | None,
    start: Tensor | None,
) -> list[Tensor]:
    """Gradients of x, weight, bias and initial state; empty where the input was None."""
    numbers, tensors = _inputs(x, weight, bias, initial_state, valid, start)
    tensors |= contiguous(dout=dout, dlast_state=dlast)
    batch, length, channels = x.shape
    slices = batch * max(1, -(-length // PIECE))
    dx, dinitial = empty_like(x, initial_state)
    dweight, dbias = x.new_empty(slices, weight.shape[1], channels), x.new_empty(slices, channels)
    results = {"dx": dx, "dweight": dweight, "dbias": dbias}
    results |= {} if initial_state is None else {"dinitial_state": dinitial}
    call("conv_backward", {**numbers, "silu": silu}, {**tensors, **results})
    return [
        dx,
        dweight.sum(0).t().contiguous(),
        torch.empty(0) if bias is None else dbias.sum(0),
        dinitial,
    ]


_convolve = differentiable_convolution(
    "causal_conv1d", _forward, _backward, empty_like, device_types="cpu", what="compiled"
)


def conv_compiled(problem: ConvProblem) -> tuple[Tensor, Tensor]:
    """Same as `causal_conv1d` in float32 on CPU, with all of it in one pass.

    Returns:
        Outputs (B, L, D) and the last state (B, W - 1, D).
    """
    out, last = _convolve(*problem)
    return out, last
