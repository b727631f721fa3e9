"""The convolution by the compiled CPU library. Shapes: B batch, L events, D channels, W taps."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.ops.causal_conv1d.autograd import differentiable_convolution, new_outputs
from seqrec.ops.causal_conv1d.reference import ConvProblem
from seqrec.ops.compiled_library import call, contiguous, distance
from seqrec.ops.problems import empty_like

# Events that one thread takes at a time. It does not depend on the number of threads, and neither do the sums.
PIECE = 256


def _arguments(problem: ConvProblem) -> tuple[dict[str, int], dict[str, Tensor | None]]:
    """Return numbers and tensors for the library. Keep the tensors while it runs."""
    x, weight, bias, silu, initial_state, valid, start = problem
    batch, length, channels = x.shape
    # x is often part of a wider tensor, such as a projection; only its channels must be adjacent.
    x = x if x.stride(2) == 1 else x.contiguous()
    numbers = {"batch": batch, "length": length, "channels": channels, "taps": weight.shape[1], "silu": silu}
    numbers |= {"row_stride": x.stride(0), "event_stride": x.stride(1), "piece": PIECE}
    tensors = contiguous(weight=weight.t(), bias=bias, initial_state=initial_state, valid=valid, start=start)
    return numbers, {"x": x, **tensors}


def convolve(problem: ConvProblem, out: Tensor, last: Tensor | None = None) -> None:
    """Write the outputs, contiguous, and the last state."""
    numbers, tensors = _arguments(problem)
    call("conv_forward", numbers, {**tensors, "out": out, "last_state": last})


def _forward(problem: ConvProblem) -> tuple[Tensor, Tensor]:
    out, last = new_outputs(problem)
    convolve(problem, out, last)
    return out, last


def convolve_backward(
    problem: ConvProblem, dout: Tensor | None, dlast: Tensor | None, dx: Tensor | None = None
) -> list[Tensor]:
    """Return the gradients of x, weight, bias and initial state, empty if it is None.

    Args:
        problem: What was computed.
        dout: Gradient of the outputs.
        dlast: Gradient of the last state.
        dx: Where to write that of x: laid out as of `by_event`; None is a new tensor.
    """
    x, weight, bias, _, initial_state, *_ = problem
    numbers, tensors = _arguments(problem)
    tensors |= contiguous(dout=dout, dlast_state=dlast)
    batch, length, channels = x.shape
    slices = batch * max(1, -(-length // PIECE))
    new_dx, dinitial = empty_like(x, initial_state) if dx is None else (dx, x.new_empty(0))
    dweight, dbias = x.new_empty(slices, weight.shape[1], channels), x.new_empty(slices, channels)
    results = {"dx": new_dx, "dweight": dweight, "dbias": dbias}
    results |= {} if initial_state is None else {"dinitial_state": dinitial}
    call("conv_backward", numbers | {"dx_event": distance(new_dx)}, {**tensors, **results})
    of_bias = torch.empty(0) if bias is None else dbias.sum(0)
    return [new_dx, dweight.sum(0).t().contiguous(), of_bias, dinitial]


def _new_gradients(problem: ConvProblem) -> list[Tensor]:
    return empty_like(problem.x, problem.weight, problem.bias, problem.initial_state)


# Same as `causal_conv1d` in float32 on CPU, in one pass.
conv_compiled = differentiable_convolution(
    "causal_conv1d", _forward, convolve_backward, _new_gradients, device_types="cpu", label="compiled"
)
