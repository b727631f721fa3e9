"""The arguments of a causal convolution as one object, and checks of them. Letters as in `causal_conv1d`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
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
