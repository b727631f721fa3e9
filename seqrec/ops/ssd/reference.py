"""The state-space-dual scan as a recurrence, event by event: the oracle for every faster path."""

from __future__ import annotations

import torch
from torch import Tensor


def ssd_reference(
    x: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor,
    start: Tensor | None = None,
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
    heads_a_group = x.shape[2] // B.shape[2]
    B, C = (weights.repeat_interleave(heads_a_group, 2) for weights in (B, C))
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
