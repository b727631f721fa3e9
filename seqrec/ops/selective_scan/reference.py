"""The selective scan event by event, in plain torch: the oracle of every faster path, its export, and one step.

Its arguments are one object. Shapes: B batch, L events, D channels, N states per channel.
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


def state_shape(problem: ScanProblem) -> tuple[int, ...]:
    """Return the shape of a state (B, D, N)."""
    return problem.u.shape[0], *problem.A.shape


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


def scan_reference(
    u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run `h_t = exp(step_t A) h_{t-1} + step_t B_t u_t`, `y_t = C_t h_t`, one event after another.

    Args:
        u: (B, L, D) inputs.
        step: (B, L, D) step sizes, 0 where the state passes through.
        A: (D, N) negative.
        B: (B, L, N).
        C: (B, L, N).
        initial_state: (B, D, N).
        start: (B, L) bool, True where h_{t-1} counts as zero; None is nowhere.

    Returns:
        y (B, L, D) and the last state (B, D, N).
    """
    state, outputs = initial_state, []
    # unbind, not indexing: the backward of x[:, t] writes a zero tensor of full size at every step.
    events = zip(u.unbind(1), step.unbind(1), B.unbind(1), C.unbind(1), strict=True)
    for t, (u_t, step_t, B_t, C_t) in enumerate(events):
        if start is not None:
            state = state.masked_fill(start[:, t, None, None], 0)
        decay = torch.exp(step_t.unsqueeze(-1) * A)
        state = decay * state + (step_t * u_t).unsqueeze(-1) * B_t.unsqueeze(1)
        outputs.append((state * C_t.unsqueeze(1)).sum(-1))
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(u)), state


def _scan_for_export(
    u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute `scan_reference` as one operator for any number of events."""

    def event(state: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        u_t, step_t, B_t, C_t, *start_t = now
        if start_t:
            state = state.masked_fill(start_t[0][:, None, None], 0)
        decay = torch.exp(step_t.unsqueeze(-1) * A)
        state = decay * state + (step_t * u_t).unsqueeze(-1) * B_t.unsqueeze(1)
        return state, (state @ C_t.unsqueeze(-1)).squeeze(-1)

    return scan_events(event, initial_state, (u, step, B, C) if start is None else (u, step, B, C, start))


scan_exported = with_gate_and_padding(_scan_for_export)


def selective_scan_step(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    check: bool = True,
) -> tuple[Tensor, Tensor]:
    """Compute `selective_scan` for one event, as serving does after each action of a user.

    Its cost does not depend on the number of earlier events. Plain torch on any device; `state` is not written to.

    Args:
        u: (B, D) input.
        delta: (B, D) step size before bias and softplus.
        A: (D, N).
        B: (B, N) input weights.
        C: (B, N) output weights.
        state: (B, D, N) after the events so far; zeros before the first.
        D: (D,) skip weights or None.
        z: (B, D) gate or None.
        delta_bias: (D,) or None.
        delta_softplus: Whether the step size goes through softplus.
        check: False is for layers that make the operands themselves; checks would take a tenth of a step.

    Returns:
        y (B, D) in u's dtype, and the state after this event (B, D, N), in float32 at least.

    Raises:
        InputError: if a shape, device or dtype does not fit.
    """
    if check:
        given = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "state": state}
        check_operands({**given, "D": D, "z": z, "delta_bias": delta_bias}, "B")
    dtype = torch.promote_types(u.dtype, torch.float32)
    with without_autocast(u.device.type):
        wide = u.to(dtype)
        bias = None if delta_bias is None else delta_bias.to(dtype)
        step = step_sizes(delta.to(dtype), bias, delta_softplus)
        decay = torch.exp(step.unsqueeze(-1) * A.to(dtype))
        inputs = (step * wide).unsqueeze(-1)
        state = torch.addcmul(decay * state.to(dtype), inputs, B.to(dtype).unsqueeze(1))
        y = (state @ C.to(dtype).unsqueeze(-1)).squeeze(-1)
        if D is not None:
            y = torch.addcmul(y, wide, D.to(dtype))
        if z is not None:
            y = y * F.silu(z.to(dtype))
    return y.to(u.dtype), state
