"""The gated delta rule event by event, in plain torch: the oracle of every faster path, its export, and one step.

Its arguments are one object. Shapes: B batch, L events, H heads, K key width, V value width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops.export import scan_events, without_autocast
from seqrec.ops.problems import Recurrence, check_shapes, zero_at


class GatedDeltaProblem(NamedTuple):
    """Input of a backend; see `gated_delta_rule` for each argument.

    Real numbers share one dtype. A backend does not check again.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    beta: Tensor
    initial_state: Tensor | None = None
    valid: Tensor | None = None
    start: Tensor | None = None


# y (B, L, H, V) and the last state (B, H, V, K).
GatedDelta = Callable[[GatedDeltaProblem], tuple[Tensor, Tensor]]


def check_operands(given: Mapping[str, Any], lead: str) -> None:
    """Check the arguments of `gated_delta_rule`, or those of a single step.

    Args:
        given: Argument -> tensor; None passes.
        lead: Axes in front: "B, L" for histories, "B" for a step.

    Raises:
        InputError: if a shape, device or dtype does not fit; the message names the argument.
    """
    q, v = given["q"], given["v"]
    for name, tensor, axes in (("q", q, "H, K"), ("v", v, "H, V")):
        if tensor.dim() != lead.count(",") + 3:
            raise InputError(f"{name} must be ({lead}, {axes}), got {tuple(tensor.shape)}")
    *events, heads, key_width = q.shape
    value_width = v.shape[-1]
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("q", "k"), (*events, heads, key_width))
    shapes |= {"v": (*events, heads, value_width)} | dict.fromkeys(("log_decay", "beta"), (*events, heads))
    shapes |= dict.fromkeys(("initial_state", "state"), (q.shape[0], heads, value_width, key_width))
    shapes |= dict.fromkeys(("valid", "start"), tuple(events))
    check_shapes(given, shapes, q.device)


def with_padding(recurrence: Recurrence) -> GatedDelta:
    """Make a backend from its recurrence: at padding all inputs are 0, so the state passes through."""

    def compute(problem: GatedDeltaProblem) -> tuple[Tensor, Tensor]:
        *events, state, valid, start = problem
        q, k, v, log_decay, beta = events if valid is None else (zero_at(~valid, x) for x in events)
        if state is None:
            state = v.new_zeros(v.shape[0], *v.shape[2:], k.shape[3])
        return recurrence(q, k, v, log_decay, beta, state, start)

    return compute


def _advance(state: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return the state (B, H, V, K) after an event, and its output (B, H, V)."""
    q, k, v, log_decay, beta, *start = now
    if start:
        state = state.masked_fill(start[0][:, None, None, None], 0)
    state = torch.exp(log_decay)[..., None, None] * state
    # No matrix products: autocast would lower their backward.
    found = (state * k.unsqueeze(-2)).sum(-1)
    state = state + (beta.unsqueeze(-1) * (v - found)).unsqueeze(-1) * k.unsqueeze(-2)
    return state, (state * q.unsqueeze(-2)).sum(-1)


def gated_delta_reference(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, initial_state: Tensor, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run `S_t = a_t S_{t-1} (I - b_t k_t k_t^T) + b_t v_t k_t^T`, `y_t = S_t q_t`, one event after another.

    Args:
        q: (B, L, H, K).
        k: (B, L, H, K).
        v: (B, L, H, V).
        log_decay: (B, L, H), logarithm of a.
        beta: (B, L, H), b.
        initial_state: (B, H, V, K).
        start: (B, L) bool, True where S_{t-1} counts as zero; None is nowhere.

    Returns:
        y (B, L, H, V) and the last state (B, H, V, K).
    """
    state, outputs = initial_state, []
    # unbind, not indexing: the backward of x[:, t] writes a zero tensor of full size at every step.
    events = (x.unbind(1) for x in (q, k, v, log_decay, beta, start) if x is not None)
    for now in zip(*events, strict=True):
        state, y = _advance(state, now)
        outputs.append(y)
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(v)), state


def _gated_delta_for_export(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, initial_state: Tensor, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute `gated_delta_reference` as one operator for any number of events."""
    events = (q, k, v, log_decay, beta)
    return scan_events(_advance, initial_state, events if start is None else (*events, start))


gated_delta_exported = with_padding(_gated_delta_for_export)


def gated_delta_step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute `gated_delta_rule` for one event, as serving does after each action of a user.

    Its cost does not depend on the number of earlier events. Plain torch on any device; `state` is not written to.

    Args:
        q: (B, H, K) query.
        k: (B, H, K) key.
        v: (B, H, V) value.
        log_decay: (B, H).
        beta: (B, H).
        state: (B, H, V, K) after the events so far; zeros before the first.

    Returns:
        y (B, H, V) in q's dtype, and the state after this event (B, H, V, K), in float32 at least.

    Raises:
        InputError: if a shape, device or dtype does not fit.
    """
    events = {"q": q, "k": k, "v": v, "log_decay": log_decay, "beta": beta}
    check_operands({**events, "state": state}, "B")
    dtype = torch.promote_types(q.dtype, torch.float32)
    with without_autocast(q.device.type):
        state, y = _advance(state.to(dtype), tuple(x.to(dtype) for x in events.values()))
    return y.to(q.dtype), state
