"""The arguments of a state-space-dual scan as one object, and checks of them. Letters as in `ssd_scan`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops.problems import check_shapes


class SsdProblem(NamedTuple):
    """Input of a backend; see `ssd_scan` for each argument.

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


# y (B, L, H, P) and the last state (B, H, P, N).
Ssd = Callable[[SsdProblem], tuple[Tensor, Tensor]]


def check_operands(given: Mapping[str, Any], lead: str) -> None:
    """Check the arguments of a scan, or those of a single step.

    Args:
        given: Argument -> tensor; None passes.
        lead: Axes in front: "B, L" for a scan, "B" for a step.

    Raises:
        InputError: if a shape, device or dtype does not fit, or the groups do not divide the heads; the message names
            the argument.
    """
    x, B = given["x"], given["B"]
    for name, tensor, axes in (("x", x, "H, P"), ("B", B, "G, N")):
        if tensor.dim() != lead.count(",") + 3:
            raise InputError(f"{name} must be ({lead}, {axes}), got {tuple(tensor.shape)}")
    (*events, heads, width), (groups, states) = x.shape, B.shape[-2:]
    if not groups or heads % groups:
        raise InputError(f"B has {groups} groups, which must divide the {heads} heads of x")
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("x", "z"), (*events, heads, width))
    shapes |= dict.fromkeys(("B", "C"), (*events, groups, states))
    shapes |= dict.fromkeys(("A", "D", "delta_bias"), (heads,))
    shapes |= dict.fromkeys(("initial_state", "state"), (x.shape[0], heads, width, states))
    shapes |= {name: tuple(events) for name in ("valid", "start")} | {"delta": (*events, heads)}
    check_shapes(given, shapes, x.device)
