"""The convolution by the compiled CPU library. Shapes: B batch, L events, D channels, W taps."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.ops.causal_conv1d.autograd import differentiable_convolution, new_outputs
from seqrec.ops.causal_conv1d.reference import ConvProblem
from seqrec.ops.compiled_library import call, contiguous, distance
from seqrec.ops.problems import are_narrow, empty_like

# Events that one thread takes at a time. It does not depend on the number of threads, and neither do the sums.
PIECE = 256


def _arguments(problem: ConvProblem) -> tuple[dict[str, int], dict[str, Tensor | None]]:
    """Return numbers and tensors for the library. Keep the tensors while it runs."""
    x, weight, bias, silu, initial_state, valid, start = problem
    dtype = _type_of(problem)
    x, (initial_state,) = x.to(dtype), _converted(dtype, initial_state)
    weight, bias = weight.float(), *_converted(torch.float32, bias)
    batch, length, channels = x.shape
    # x is often part of a wider tensor, such as a projection; only its channels must be adjacent.
    x = x if x.stride(2) == 1 else x.contiguous()
    numbers = {"batch": batch, "length": length, "channels": channels, "taps": weight.shape[1], "silu": silu}
    numbers |= {
        "row_stride": x.stride(0),
        "event_stride": x.stride(1),
        "piece": PIECE,
        "narrow": dtype == torch.bfloat16,
    }
    tensors = contiguous(weight=weight.t(), bias=bias, initial_state=initial_state, valid=valid, start=start)
    return numbers, {"x": x, **tensors}


def convolve(problem: ConvProblem, out: Tensor, last: Tensor | None = None) -> None:
    """Write the outputs, contiguous, and the last state."""
    numbers, tensors = _arguments(problem)
    call("conv_forward", numbers, {**tensors, "out": out, "last_state": last})


def _forward(problem: ConvProblem) -> tuple[Tensor, Tensor]:
    x = problem.x
    out, last = new_outputs(problem, _type_of(problem))
    convolve(problem, out, last)
    return out.to(x.dtype), last.to(x.dtype)


def _converted(dtype: torch.dtype, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.to(dtype) for x in tensors]


def _type_of(problem: ConvProblem) -> torch.dtype:
    """Return the type in which the library takes x, the outputs and the states."""
    return torch.bfloat16 if are_narrow(problem.x, problem.initial_state) else torch.float32


def convolve_backward(
    problem: ConvProblem, dout: Tensor | None, dlast: Tensor | None, dx: Tensor | None = None
) -> list[Tensor]:
    """Return the gradients of x, weight, bias and initial state, empty if it is None.

    Args:
        problem: What was computed.
        dout: Gradient of the outputs.
        dlast: Gradient of the last state.
        dx: Where to write that of x, in the library's type and laid out as of `by_event`; None is a new tensor.
    """
    x, weight, bias, _, initial_state, *_ = problem
    (numbers, tensors), dtype = _arguments(problem), _type_of(problem)
    dout, dlast = _converted(dtype, dout, dlast)
    tensors |= contiguous(dout=dout, dlast_state=dlast)
    batch, length, channels = x.shape
    slices = batch * max(1, -(-length // PIECE))
    assert dx is None or dx.dtype == dtype
    new_dx = x.new_empty(x.shape, dtype=dtype) if dx is None else dx
    dinitial = x.new_empty(0 if initial_state is None else initial_state.shape, dtype=dtype)
    dweight, dbias = (
        x.new_empty(slices, *sizes, dtype=torch.float32) for sizes in ((weight.shape[1], channels), (channels,))
    )
    results = {"dx": new_dx, "dweight": dweight, "dbias": dbias}
    results |= {} if initial_state is None else {"dinitial_state": dinitial}
    call("conv_backward", numbers | {"dx_event": distance(new_dx)}, {**tensors, **results})
    of_bias = torch.empty(0) if bias is None else dbias.sum(0).to(bias.dtype)
    of_state = dinitial if initial_state is None else dinitial.to(initial_state.dtype)
    return [new_dx.to(x.dtype), dweight.sum(0).t().contiguous().to(weight.dtype), of_bias, of_state]


def _new_gradients(problem: ConvProblem) -> list[Tensor]:
    return empty_like(problem.x, problem.weight, problem.bias, problem.initial_state)


# Same as `causal_conv1d` in float32 on CPU, of inputs in float32 or bfloat16, in one pass.
conv_compiled = differentiable_convolution(
    "causal_conv1d", _forward, convolve_backward, _new_gradients, device_types="cpu", label="compiled"
)
