"""The selective scan as the paper writes it: the oracle for every faster path."""

from __future__ import annotations

import torch
from torch import Tensor


def scan_reference(
    u: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor,
    start: Tensor | None = None,
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
