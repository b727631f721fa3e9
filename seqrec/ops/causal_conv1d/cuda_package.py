"""The causal convolution by the CUDA kernels of the package causal-conv1d, which users install themselves.

Of the package only `causal_conv1d_fn` is called, by keyword, and only in the layout with channels side by side, because
only that takes the numbers of histories (`seq_idx`). Its own states are not used, because most versions refuse them
together with `seq_idx`: an initial state is W - 1 events in front, and the last state is read from the inputs.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.ops.causal_conv1d.reference import (
    Convolution,
    ConvProblem,
    conv_reference,
    convolve_shifted,
    with_state_and_padding,
)
from seqrec.ops.cuda_packages import isolated, kernel_fault, load_function, why_no_device

TAPS = (2, 3, 4)
OTHER_TAPS = "weight of other than 2 to 4 taps"
# The kernel takes channels, and strides between events, in multiples of this.
GROUP = 8
# Its forward reads `seq_idx` up to a chunk of events past the end.
READ_PAST_END = 256

_load = functools.cache(lambda: load_function("causal_conv1d", "causal_conv1d_fn"))


def conv_package(problem: ConvProblem) -> tuple[Tensor, Tensor]:
    """Compute `causal_conv1d` in float32 on CUDA, for 2 to 4 taps.

    The package's backward sums dweight and dbias in no fixed order, so their last bits differ from run to run. The
    backend counts as missing under `torch.use_deterministic_algorithms`.
    """
    # The kernel cannot be launched for empty tensors.
    return with_state_and_padding(_convolve if problem.x.numel() else convolve_shifted)(problem)


def missing() -> str | None:
    """Return why the package cannot be used on this machine now, with the fix; None if it can."""
    return _load()[1] or why_no_device() or _check(torch.device("cuda", torch.cuda.current_device()))


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    initial_state: Tensor | None,
    starts: Tensor | None,
) -> Tensor:
    function, reason = _load()
    assert function is not None, reason
    channels, front = x.shape[2], 0
    if initial_state is not None:
        x, front = torch.cat([initial_state, x], 1), initial_state.shape[1]
        starts = None if starts is None else F.pad(starts, (front, 0))
    if extra := -channels % GROUP:
        x, weight = F.pad(x, (0, extra)), F.pad(weight, (0, 0, 0, extra))
        bias = None if bias is None else F.pad(bias, (0, extra))
    out: Tensor = function(
        x=_channels_first(x),
        weight=weight.contiguous(),
        bias=None if bias is None else bias.contiguous(),
        seq_idx=None if starts is None else _readable_past_end(starts.to(torch.int32)),
        activation="silu" if silu else None,
    )
    if out.requires_grad:
        # The kernel refuses a gradient that is part of a wider tensor.
        out.register_hook(lambda dout: _channels_first(dout.transpose(1, 2)))  # type: ignore[no-untyped-call]
    return out.transpose(1, 2)[:, front:, :channels]


def _channels_first(x: Tensor) -> Tensor:
    """Return x (B, L, D) as (B, D, L) with adjacent channels, and strides of rows and events that the kernel takes."""
    rows, events, neighbours = x.stride()
    fits = neighbours == 1 and events > 0 and all(n % GROUP == 0 for n in (rows, events, x.storage_offset()))
    return (x if fits else x.clone(memory_format=torch.contiguous_format)).transpose(1, 2)


def _readable_past_end(numbers: Tensor) -> Tensor:
    """Return numbers (B, L) contiguous, followed by more memory."""
    return F.pad(numbers.flatten(), (0, READ_PAST_END))[: numbers.numel()].view(numbers.shape)


@functools.cache
@isolated()
def _check(device: torch.device) -> str | None:
    expected = _outcome(conv_reference, torch.device("cpu"))
    return kernel_fault(lambda: _outcome(conv_package, device), expected, rtol=1e-3, atol=1e-4)


def _outcome(convolution: Convolution, device: torch.device) -> list[Tensor]:
    """Return outputs, last state and gradients of a small problem with all optional arguments."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 9, 5), (5, 4), (5,), (2, 3, 5))
    x, weight, bias, state = (torch.rand(shape, generator=generator).to(device).requires_grad_() for shape in shapes)
    flags = torch.rand(2, 2, 9, generator=generator).to(device)
    problem = ConvProblem(x, weight, bias, True, state, flags[0] < 0.8, flags[1] < 0.2)
    out, last = convolution(problem)
    gradients = torch.autograd.grad(out.square().sum() + last.square().sum(), (x, weight, bias, state))
    return [out.detach(), last.detach(), *gradients]
