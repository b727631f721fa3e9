"""The arguments of a state-space-dual scan as one object, and what they must be. Letters as in `ssd_scan`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops.problems import check_shapes, moved
from seqrec.ops.selective_scan.problem import step_sizes


class SsdProblem(NamedTuple):
    """What a backend computes; see `ssd_scan` for each argument.

    Real numbers share one dtype. A backend does not check again.
    """

    x: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    delta_bias: Tensor | None = None
    delta_softplus: bool = False
    initial_state: Tensor | None = None
    valid: Tensor | None = None
    start: Tensor | None = None

    def to(self, target: torch.dtype | torch.device) -> SsdProblem:
        """The same with real numbers in another dtype, or all tensors on another device."""
        return SsdProblem(*moved(self, target))


# y (B, L, H, P) and the last state (B, H, P, N).
Ssd = Callable[[SsdProblem], tuple[Tensor, Tensor]]
# x, step sizes, A, B, C, initial state, start: what is left once `with_gate_and_padding` has done the rest.
Recurrence = Callable[
    [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "Tensor | None"], tuple[Tensor, Tensor]
]


def check_problem(problem: SsdProblem) -> None:
    """Raise InputError, with the argument's name, for a shape, a device or a kind of number that does not fit."""
    x = problem.x
    if x.dim() != 4:
        raise InputError(f"x must be (B, L, H, P), got {tuple(x.shape)}")
    batch, length, heads, width = x.shape
    groups, states = check_groups(problem.B, heads, leading=2)
    shapes = {
        "x": (batch, length, heads, width),
        "delta": (batch, length, heads),
        "A": (heads,),
        "B": (batch, length, groups, states),
        "C": (batch, length, groups, states),
        "D": (heads,),
        "z": (batch, length, heads, width),
        "delta_bias": (heads,),
        "initial_state": (batch, heads, width, states),
        "valid": (batch, length),
        "start": (batch, length),
    }
    check_shapes(problem._asdict(), shapes, x.device)


def check_groups(B: Tensor, heads: int, leading: int) -> tuple[int, int]:
    """Groups G and states N of B, whose axes before these two are `leading`.

    Raises:
        InputError: another number of axes, or heads that do not divide into the groups.
    """
    if B.dim() != leading + 2:
        axes = "(B, L, G, N)" if leading == 2 else "(B, G, N)"
        raise InputError(f"B must be {axes}, got {tuple(B.shape)}")
    groups, states = B.shape[-2:]
    if not groups or heads % groups:
        raise InputError(f"B has {groups} groups, which must divide the {heads} heads of x")
    return groups, states


def with_gate_and_padding(recurrence: Recurrence) -> Ssd:
    """A whole backend from its recurrence: bias, softplus and `valid` before, skip and gate behind it, in torch."""

    def scan(problem: SsdProblem) -> tuple[Tensor, Tensor]:
        x, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, valid, start = problem
        padding = None if valid is None else ~valid.unsqueeze(-1)
        if padding is not None:
            # All of them, so that no gradient meets what stands in the padding, whatever that is.
            delta = delta.masked_fill(padding, 0)
            x, B, C = (value.masked_fill(padding.unsqueeze(-1), 0) for value in (x, B, C))
            z = None if z is None else z.masked_fill(padding.unsqueeze(-1), 0)
        step = step_sizes(delta, delta_bias, delta_softplus)
        if padding is not None:
            step = step.masked_fill(padding, 0)
        state = x.new_zeros(x.shape[0], *x.shape[2:], B.shape[-1]) if initial_state is None else initial_state
        y, last = recurrence(x, step, A, B, C, state, start)
        if D is not None:
            y = torch.addcmul(y, x, D.unsqueeze(-1))
        return (y if z is None else y * F.silu(z)), last

    return scan
