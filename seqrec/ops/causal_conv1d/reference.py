"""The causal convolution in plain torch, with its arguments as one object and checks of them.

One event after another it is the oracle for every faster path. Letters as in `causal_conv1d`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops.problems import check_shapes


class ConvProblem(NamedTuple):
    """Input of a backend; see `causal_conv1d` for each argument.

    Real numbers share one dtype. A backend does not check again.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    silu: bool = False
    initial_state: Tensor | None = None
    valid: Tensor | None = None
    start: Tensor | None = None


# Outputs (B, L, D) and the last state (B, W - 1, D).
Convolution = Callable[[ConvProblem], tuple[Tensor, Tensor]]
# x, weight, bias, silu, initial state, and the (B, L) number of starts up to each event: the arguments left after
# `with_state_and_padding` has used the others. An input counts for the events that have as many starts; the initial
# state has none.
Convolve = Callable[[Tensor, Tensor, "Tensor | None", bool, "Tensor | None", "Tensor | None"], Tensor]


def check_problem(problem: ConvProblem) -> None:
    """Raise InputError, with the argument's name, if a shape, device or dtype does not fit."""
    x, weight = problem.x, problem.weight
    if x.dim() != 3:
        raise InputError(f"x must be (B, L, D), got {tuple(x.shape)}")
    batch, length, channels = x.shape
    if weight.dim() != 2 or weight.shape[0] != channels or not weight.shape[1]:
        raise InputError(
            f"weight must be (D, W) with D = {channels} from x and at least one tap, got {tuple(weight.shape)}"
        )
    taps = weight.shape[1]
    shapes = {
        "x": (batch, length, channels),
        "weight": (channels, taps),
        "bias": (channels,),
        "initial_state": (batch, taps - 1, channels),
        "valid": (batch, length),
        "start": (batch, length),
    }
    check_shapes(problem._asdict(), shapes, x.device)


def with_state_and_padding(convolve: Convolve) -> Convolution:
    """Make a backend, in torch, from a convolution without padding and last state.

    Valid events are moved together, in order, convolved, and moved back.
    """

    def convolution(problem: ConvProblem) -> tuple[Tensor, Tensor]:
        x, weight, bias, silu, initial_state, valid, start = problem
        starts = None if start is None else start.cumsum(1)
        count = None
        if valid is not None:
            padding, count = ~valid, valid.sum(1, keepdim=True)
            order = padding.to(torch.uint8).argsort(dim=1, stable=True)
            x = _pick(x.masked_fill(padding.unsqueeze(-1), 0), order)
            starts = None if starts is None else starts.gather(1, order)
        out = convolve(x, weight, bias, silu, initial_state, starts)
        if valid is not None:
            place = (valid.cumsum(1) - 1).clamp_min(0)
            out = _pick(out, place).masked_fill(padding.unsqueeze(-1), 0)
        kept = weight.shape[1] - 1
        before = x.new_zeros(x.shape[0], kept, x.shape[2]) if initial_state is None else initial_state
        last = _newest(before, x, count)
        if start is not None and starts is not None:
            before = starts.new_zeros(x.shape[0], kept, 1)
            is_older = _newest(before, starts.unsqueeze(-1), count) != start.sum(1).view(-1, 1, 1)
            last = last.masked_fill(is_older, 0)
        return out, last

    return convolution


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """Select events (B, K, D) of x (B, L, D) by their (B, K) index."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[2]))


def _newest(before: Tensor, x: Tensor, count: Tensor | None) -> Tensor:
    """Return the last K of `before` (B, K, D) and the first `count` (B, 1) events of x (B, L, D); None is all."""
    kept, length = before.shape[1], x.shape[1]
    if count is None:
        rows = torch.cat([before, x[:, max(length - kept, 0) :]], 1)
        return rows[:, rows.shape[1] - kept :]
    return _pick(torch.cat([before, x], 1), count + torch.arange(kept, device=x.device))


def conv_reference(problem: ConvProblem) -> tuple[Tensor, Tensor]:
    """Compute `causal_conv1d` with a window of the last W - 1 inputs.

    Returns:
        Outputs (B, L, D) and the last window (B, W - 1, D).
    """
    x, weight, bias, silu, window, valid, start = problem
    if window is None:
        window = x.new_zeros(x.shape[0], weight.shape[1] - 1, x.shape[2])
    outputs = []
    for t, x_t in enumerate(x.unbind(1)):
        if start is not None:
            window = window.masked_fill(start[:, t, None, None], 0)
        if valid is not None:
            x_t = x_t.masked_fill(~valid[:, t, None], 0)
        seen = torch.cat([window, x_t.unsqueeze(1)], 1)
        out = (seen * weight.t()).sum(1)
        out = out if bias is None else out + bias
        out = F.silu(out) if silu else out
        if valid is None:
            window = seen[:, 1:]
        else:
            out = out.masked_fill(~valid[:, t, None], 0)
            window = torch.where(valid[:, t, None, None], seen[:, 1:], window)
        outputs.append(out)
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(x)), window


def convolve_shifted(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    initial_state: Tensor | None,
    starts: Tensor | None,
) -> Tensor:
    """Convolve (B, L, D) by (D, W); see `Convolve`. On CPU it is faster than `conv1d` on a transposed view."""
    length, taps = x.shape[1], weight.shape[1]
    rows = F.pad(x, (0, 0, taps - 1, 0)) if initial_state is None else torch.cat([initial_state, x], 1)
    starts_of_rows = None if starts is None else F.pad(starts, (taps - 1, 0))
    out = torch.zeros_like(weight[:, 0]) if bias is None else bias
    for shift, tap in enumerate(weight.unbind(1)):
        seen = rows[:, shift : shift + length]
        if starts is not None and starts_of_rows is not None and shift < taps - 1:
            # A product with 0 would let NaN through.
            is_older = starts_of_rows[:, shift : shift + length] != starts
            seen = seen.masked_fill(is_older.unsqueeze(-1), 0)
        out = torch.addcmul(out, seen, tap)
    return F.silu(out) if silu else out


def conv_exported(problem: ConvProblem) -> tuple[Tensor, Tensor]:
    """Compute `conv_reference` with a last state that exports for any number of events."""
    x, weight, bias, silu, initial_state, valid, start = problem
    if valid is not None:
        return with_state_and_padding(convolve_shifted)(problem)
    kept, length = weight.shape[1] - 1, x.shape[1]
    before = x.new_zeros(x.shape[0], kept, x.shape[2]) if initial_state is None else initial_state
    starts = None if start is None else start.cumsum(1)
    # Slice the whole: a cut to the newest events would depend on their number.
    last = torch.cat([before, x], 1)[:, length:]
    if starts is not None:
        is_older = F.pad(starts, (kept, 0))[:, length:] != starts[:, -1:]
        last = last.masked_fill(is_older.unsqueeze(-1), 0)
    return convolve_shifted(x, weight, bias, silu, before, starts), last
