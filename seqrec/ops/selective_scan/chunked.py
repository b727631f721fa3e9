"""Selective scan in plain torch that never allocates (B, L, D, N): one chunk after another, recomputed in backward.

Inside a chunk of S events the decays and inputs of all (B, D, N) are computed at once, then the recurrence runs
in place over S steps. Forward keeps the state at each chunk's start; backward recomputes a chunk's states
from it. Only products of decays (at most 1) occur, never quotients or logarithms of them, so nothing overflows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqrec.ops.autograd import refuse_second_derivative

CHUNK_EVENTS = 32


def _recur(decay: Tensor, state: Tensor, before: Tensor, start: Tensor | None) -> None:
    """Add in place over axis 0: state[t] += decay[t] * state[t - 1], with state[-1] = before, or 0 at a start."""
    for t, (decay_t, state_t) in enumerate(zip(decay.unbind(0), state.unbind(0), strict=True)):
        # A product with a decay of 0 would let NaN through.
        state_t.addcmul_(decay_t, before if start is None else before.masked_fill(start[t], 0))
        before = state_t


def _recur_back(decay: Tensor, grads: Tensor, start: Tensor | None) -> None:
    """Add in place from the end: grads[t] += decay[t + 1] * grads[t + 1], or 0 before a start."""
    decays, steps = decay.unbind(0), grads.unbind(0)
    for t in range(len(steps) - 2, -1, -1):
        later = steps[t + 1]
        steps[t].addcmul_(decays[t + 1], later if start is None else later.masked_fill(start[t + 1], 0))


class ChunkedScan(torch.autograd.Function):
    """`scan_reference` with a backward pass of its own; same arguments and results. A second derivative raises."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        step: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        initial_state: Tensor,
        start: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return y (B, L, D) and the last state (B, D, N)."""
        # Time first: one step of the recurrence is then one contiguous block.
        u_t, step_t, B_t, C_t = (x.transpose(0, 1) for x in (u, step, B, C))
        length, batch, channels = u_t.shape
        y = u.new_empty(length, batch, channels)
        size = min(CHUNK_EVENTS, max(length, 1))
        decay_buffer = u.new_empty(size, batch, channels, A.shape[1])
        state_buffer = torch.empty_like(decay_buffer)
        state, kept = initial_state, []
        for begin in range(0, length, size):
            part = slice(begin, min(begin + size, length))
            decay, states = (buffer[: part.stop - begin] for buffer in (decay_buffer, state_buffer))
            kept.append(state)
            torch.mul(step_t[part].unsqueeze(-1), A, out=decay).exp_()
            torch.mul((step_t[part] * u_t[part]).unsqueeze(-1), B_t[part].unsqueeze(2), out=states)
            _recur(decay, states, state, _starts(start, part))
            y[part] = (states @ C_t[part].unsqueeze(-1)).squeeze(-1)
            state = states[-1].clone()
        ctx.save_for_backward(u, step, A, B, C, start, *kept)
        return y.transpose(0, 1), state.clone() if state is initial_state else state

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of all six real inputs."""
        refuse_second_derivative("the chunked scan has no second derivative; use backend='reference' for it")
        # Autocast lowers matrix products, and may be on when backward is called.
        with torch.autocast(dy.device.type, enabled=False):
            return *_gradients(dy, dlast, *ctx.saved_tensors), None


def _gradients(
    dy: Tensor,
    dlast: Tensor,
    u: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    start: Tensor | None,
    *kept: Tensor,
) -> tuple[Tensor, ...]:
    """Return the gradients of u, step, A, B, C and the initial state, chunk by chunk from the end."""
    u_t, step_t, B_t, C_t, dy_t = (x.transpose(0, 1) for x in (u, step, B, C, dy))
    length, batch, channels = u_t.shape
    du, dstep = u.new_empty(length, batch, channels), u.new_empty(length, batch, channels)
    dB, dC = u.new_empty(length, batch, A.shape[1]), u.new_empty(length, batch, A.shape[1])
    dA = torch.zeros_like(A)
    size = min(CHUNK_EVENTS, max(length, 1))
    buffers = [u.new_empty(size, batch, channels, A.shape[1]) for _ in range(3)]
    carry = dlast.clone()  # gradient of the state at the chunk's end
    for begin, state in reversed(list(zip(range(0, length, size), kept, strict=True))):
        part = slice(begin, min(begin + size, length))
        decay, states, grads = (buffer[: part.stop - begin] for buffer in buffers)
        starts = _starts(start, part)
        steps, dy_part = step_t[part], dy_t[part].contiguous()
        step_u = steps * u_t[part]
        torch.mul(steps.unsqueeze(-1), A, out=decay).exp_()
        torch.mul(step_u.unsqueeze(-1), B_t[part].unsqueeze(2), out=states)
        _recur(decay, states, state, starts)
        # grads[t] = dL/dh_t: the part through y_t, plus decay[t + 1] * grads[t + 1].
        torch.mul(dy_part.unsqueeze(-1), C_t[part].unsqueeze(2), out=grads)
        grads[-1].add_(carry)
        _recur_back(decay, grads, starts)
        carry = grads[0] * decay[0]
        dC[part] = (dy_part.unsqueeze(2) @ states).squeeze(2)
        dB[part] = (step_u.unsqueeze(2) @ grads).squeeze(2)
        dstep_u = (grads @ B_t[part].unsqueeze(-1)).squeeze(-1)
        # decay becomes dL/d(step_t A) = grads[t] * decay[t] * h_{t-1}.
        decay[0].mul_(state)
        decay[1:].mul_(states[:-1])
        decay.mul_(grads)
        if starts is not None:
            carry.masked_fill_(starts[0], 0)
            decay.masked_fill_(starts, 0)
        dA += torch.einsum("sbdn,sbd->dn", decay, steps)
        dstep[part] = decay.mul_(A).sum(-1).addcmul_(dstep_u, u_t[part])
        du[part] = dstep_u * steps
    du, dstep, dB, dC = (x.transpose(0, 1) for x in (du, dstep, dB, dC))
    return du, dstep, dA, dB, dC, carry


def _starts(start: Tensor | None, part: slice) -> Tensor | None:
    # (B, L) to a shape that broadcasts with a chunk's states, (S, B, 1, 1).
    return None if start is None else start[:, part].t()[:, :, None, None]


def scan_chunked(
    u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute `scan_reference`; memory grows with L / 32 states instead of L."""
    y, last = ChunkedScan.apply(u, step, A, B, C, initial_state, start)  # type: ignore[no-untyped-call]
    return y, last
