"""The state-space-dual scan event by event, in plain torch: the oracle of every faster path, its export, and one step.

Its arguments are one object. Shapes: B batch, L events, H heads, P head width, G groups, N states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops.export import scan_events, without_autocast
from seqrec.ops.problems import check_shapes, step_sizes, with_gate_and_padding


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


def state_shape(problem: SsdProblem) -> tuple[int, ...]:
    """Return the shape of a state (B, H, P, N)."""
    (batch, _, heads, width), states = problem.x.shape, problem.B.shape[3]
    return batch, heads, width, states


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


def ssd_reference(
    x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run `h_t = exp(step_t A) h_{t-1} + step_t x_t B_t^T`, `y_t = h_t C_t`, one event after another.

    Args:
        x: (B, L, H, P) inputs.
        step: (B, L, H) step sizes, 0 where the state passes through.
        A: (H,) negative.
        B: (B, L, G, N).
        C: (B, L, G, N).
        initial_state: (B, H, P, N).
        start: (B, L) bool, True where h_{t-1} counts as zero; None is nowhere.

    Returns:
        y (B, L, H, P) and the last state (B, H, P, N).
    """
    state, outputs = initial_state, []
    heads_per_group = x.shape[2] // B.shape[2]
    B, C = (weights.repeat_interleave(heads_per_group, 2) for weights in (B, C))
    # unbind, not indexing: the backward of x[:, t] writes a zero tensor of full size at every step.
    events = zip(x.unbind(1), step.unbind(1), B.unbind(1), C.unbind(1), strict=True)
    for t, (x_t, step_t, B_t, C_t) in enumerate(events):
        if start is not None:
            state = state.masked_fill(start[:, t, None, None, None], 0)
        decay = torch.exp(step_t * A)[..., None, None]
        state = decay * state + (step_t.unsqueeze(-1) * x_t).unsqueeze(-1) * B_t.unsqueeze(2)
        # No matrix product: autocast would lower its backward.
        outputs.append((state * C_t.unsqueeze(2)).sum(-1))
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(x)), state


def _ssd_for_export(
    x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute `ssd_reference` as one operator for any number of events."""
    heads_per_group = x.shape[2] // B.shape[2]
    B, C = (weights.repeat_interleave(heads_per_group, 2) for weights in (B, C))

    def event(state: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        x_t, step_t, B_t, C_t, *start_t = now
        if start_t:
            state = state.masked_fill(start_t[0][:, None, None, None], 0)
        decay = torch.exp(step_t * A)[..., None, None]
        state = decay * state + (step_t.unsqueeze(-1) * x_t).unsqueeze(-1) * B_t.unsqueeze(2)
        return state, (state @ C_t.unsqueeze(-1)).squeeze(-1)

    return scan_events(event, initial_state, (x, step, B, C) if start is None else (x, step, B, C, start))


ssd_exported = with_gate_and_padding(_ssd_for_export)


def ssd_step(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute `ssd_scan` for one event, as serving does after each action of a user.

    Its cost does not depend on the number of earlier events. Plain torch on any device; `state` is not written to.

    Args:
        x: (B, H, P) input.
        delta: (B, H) step size before bias and softplus.
        A: (H,).
        B: (B, G, N) input weights.
        C: (B, G, N) output weights.
        state: (B, H, P, N) after the events so far; zeros before the first.
        D: (H,) skip weights or None.
        z: (B, H, P) gate or None.
        delta_bias: (H,) or None.
        delta_softplus: Whether the step size goes through softplus.

    Returns:
        y (B, H, P) in x's dtype, and the state after this event (B, H, P, N), in float32 at least.

    Raises:
        InputError: if a shape, device or dtype does not fit.
    """
    given = {"x": x, "delta": delta, "A": A, "B": B, "C": C, "state": state}
    check_operands({**given, "D": D, "z": z, "delta_bias": delta_bias}, "B")
    heads_per_group = x.shape[1] // B.shape[1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    with without_autocast(x.device.type):
        wide = x.to(dtype)
        bias = None if delta_bias is None else delta_bias.to(dtype)
        step = step_sizes(delta.to(dtype), bias, delta_softplus)
        B, C = (weights.to(dtype).repeat_interleave(heads_per_group, 1) for weights in (B, C))
        decay = torch.exp(step * A.to(dtype))[..., None, None]
        state = decay * state.to(dtype) + (step.unsqueeze(-1) * wide).unsqueeze(-1) * B.unsqueeze(2)
        y = (state @ C.unsqueeze(-1)).squeeze(-1)
        if D is not None:
            y = torch.addcmul(y, wide, D.to(dtype).unsqueeze(-1))
        if z is not None:
            y = y * F.silu(z.to(dtype))
    return y.to(x.dtype), state
