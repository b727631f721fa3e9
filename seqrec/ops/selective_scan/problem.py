"""The arguments of a selective scan as one object, and checks of them. Letters as in `selective_scan`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops.problems import check_shapes


class ScanProblem(NamedTuple):
    """Input of a backend; see `selective_scan` for each argument.

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
    return_last_state: bool = True  # False if the last state that a backend returns is not used


# y (B, L, D) and the last state (B, D, N).
Scan = Callable[[ScanProblem], tuple[Tensor, Tensor]]


def check_operands(given: Mapping[str, Any], lead: str) -> None:
    """Check the arguments of a scan, or those of a single step.

    Args:
        given: Argument -> tensor; None passes.
        lead: Axes in front: "B, L" for a scan, "B" for a step.

    Raises:
        InputError: if a shape, device or dtype does not fit; the message names the argument.
    """
    u, A = given["u"], given["A"]
    if u.dim() != lead.count(",") + 2:
        raise InputError(f"u must be ({lead}, D), got {tuple(u.shape)}")
    (*events, channels) = u.shape
    if A.dim() != 2 or A.shape[0] != channels:
        raise InputError(f"A must be (D, N) with D = {channels} from u, got {tuple(A.shape)}")
    batch, states = u.shape[0], A.shape[1]
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("u", "delta", "z"), (*events, channels))
    shapes |= {"A": (channels, states)} | dict.fromkeys(("D", "delta_bias"), (channels,))
    shapes |= dict.fromkeys(("B", "C"), (*events, states))
    shapes |= dict.fromkeys(("initial_state", "state"), (batch, channels, states))
    shapes |= {name: tuple(events) for name in ("valid", "start")}
    check_shapes(given, shapes, u.device)
