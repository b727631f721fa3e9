"""The selective scan for `torch.export`: `scan_reference` as one operator of any number of events."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.ops.export import scan_events
from seqrec.ops.selective_scan.problem import with_gate_and_padding


def _recurrence(
    u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Same as `scan_reference`."""

    def event(state: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        u_t, step_t, B_t, C_t, *start_t = now
        if start_t:
            state = state.masked_fill(start_t[0][:, None, None], 0)
        decay = torch.exp(step_t.unsqueeze(-1) * A)
        state = decay * state + (step_t * u_t).unsqueeze(-1) * B_t.unsqueeze(1)
        return state, (state @ C_t.unsqueeze(-1)).squeeze(-1)

    return scan_events(event, initial_state, (u, step, B, C) if start is None else (u, step, B, C, start))


scan_exported = with_gate_and_padding(_recurrence)
