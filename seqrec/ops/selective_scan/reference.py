"""The selective scan as the paper writes it: the oracle for every faster path."""

from __future__ import annotations

import torch
from torch import Tensor


def scan_reference(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor
) -> tuple[Tensor, Tensor]:
    """Run `h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t`, `y_t = C_t h_t`, one event after another.

    Args:
        u: (B, L, D) inputs.
        delta: (B, L, D) step sizes, positive.
        A: (D, N) negative.
        B: (B, L, N).
        C: (B, L, N).
        initial_state: (B, D, N).

    Returns:
        y (B, L, D) and the last state (B, D, N).
    """
    state, outputs = initial_state, []
    # unbind, not indexing: the backward of x[:, t] writes a zero tensor of full size at every step.
    for u_t, delta_t, B_t, C_t in zip(u.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        decay = torch.exp(delta_t.unsqueeze(-1) * A)
        state = decay * state + (delta_t * u_t).unsqueeze(-1) * B_t.unsqueeze(1)
        outputs.append((state @ C_t.unsqueeze(-1)).squeeze(-1))
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(u)), state
