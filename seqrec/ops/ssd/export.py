"""The state-space-dual scan for `torch.export`: `ssd_reference` as one operator of any number of events."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.ops.export import scan_events
from seqrec.ops.ssd.problem import with_gate_and_padding


def _recurrence(
    x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Same as `ssd_reference`."""
    heads_a_group = x.shape[2] // B.shape[2]
    B, C = (weights.repeat_interleave(heads_a_group, 2) for weights in (B, C))

    def event(state: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        x_t, step_t, B_t, C_t, *start_t = now
        if start_t:
            state = state.masked_fill(start_t[0][:, None, None, None], 0)
        decay = torch.exp(step_t * A)[..., None, None]
        state = decay * state + (step_t.unsqueeze(-1) * x_t).unsqueeze(-1) * B_t.unsqueeze(2)
        return state, (state @ C_t.unsqueeze(-1)).squeeze(-1)

    return scan_events(event, initial_state, (x, step, B, C) if start is None else (x, step, B, C, start))


ssd_exported = with_gate_and_padding(_recurrence)
