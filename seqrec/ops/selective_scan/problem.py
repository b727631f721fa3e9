"""The arguments of a selective scan as one object, and what they must be. Letters as in `selective_scan`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops.problems import check_shapes, moved


class ScanProblem(NamedTuple):
    """What a backend computes; see `selective_scan` for each argument.

    Real numbers share one dtype. A backend does not check again.
    """

    u: Tensor
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
    return_last_state: bool = True  # where False, nobody reads the last state that a backend returns

    def to(self, target: torch.dtype | torch.device) -> ScanProblem:
        """The same with real numbers in another dtype, or all tensors on another device."""
        return ScanProblem(*moved(self, target))

    @property
    def wants_gradient(self) -> bool:
        """Whether any gradient will be asked for."""
        tensors = (x for x in self if isinstance(x, Tensor))
        return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


# y (B, L, D) and the last state (B, D, N).
Scan = Callable[[ScanProblem], tuple[Tensor, Tensor]]
# u, step sizes, A, B, C, initial state, start: what is left once `with_gate_and_padding` has done the rest.
Recurrence = Callable[
    [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "Tensor | None"], tuple[Tensor, Tensor]
]


def check_problem(problem: ScanProblem) -> None:
    """Raise InputError, with the argument's name, for a shape, a device or a kind of number that does not fit."""
    u, A = problem.u, problem.A
    if u.dim() != 3:
        raise InputError(f"u must be (B, L, D), got {tuple(u.shape)}")
    if A.dim() != 2 or A.shape[0] != u.shape[2]:
        raise InputError(f"A must be (D, N) with D = {u.shape[2]} from u, got {tuple(A.shape)}")
    batch, length, channels = u.shape
    states = A.shape[1]
    shapes = {
        "u": (batch, length, channels),
        "delta": (batch, length, channels),
        "A": (channels, states),
        "B": (batch, length, states),
        "C": (batch, length, states),
        "D": (channels,),
        "z": (batch, length, channels),
        "delta_bias": (channels,),
        "initial_state": (batch, channels, states),
        "valid": (batch, length),
        "start": (batch, length),
    }
    check_shapes(problem._asdict(), shapes, u.device)


def step_sizes(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool) -> Tensor:
    """`delta + delta_bias`, through softplus if asked; delta may have any leading axes."""
    step = delta if delta_bias is None else delta + delta_bias
    return F.softplus(step) if delta_softplus else step


def with_gate_and_padding(recurrence: Recurrence) -> Scan:
    """A whole backend from its recurrence: bias, softplus and `valid` before, skip and gate behind it, in torch."""

    def scan(problem: ScanProblem) -> tuple[Tensor, Tensor]:
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, valid, start, _ = problem
        padding = None if valid is None else ~valid.unsqueeze(-1)
        if padding is not None:
            # All of them, so that no gradient meets what stands in the padding, whatever that is.
            u, delta, B, C = (x.masked_fill(padding, 0) for x in (u, delta, B, C))
            z = None if z is None else z.masked_fill(padding, 0)
        step = step_sizes(delta, delta_bias, delta_softplus)
        if padding is not None:
            step = step.masked_fill(padding, 0)
        state = u.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state
        y, last = recurrence(u, step, A, B, C, state, start)
        if D is not None:
            y = torch.addcmul(y, u, D)
        return (y if z is None else y * F.silu(z)), last

    return scan
