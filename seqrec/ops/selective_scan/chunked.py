"""Selective scan in plain torch that never holds (B, L, D, N): sequential over chunks, recomputed in backward.

Inside a chunk of S events the decays and inputs of all (B, D, N) are built at once, then the recurrence runs
in place over S steps. Forward keeps the state at each chunk's start; backward rebuilds a chunk's states
from it. Only products of decays (at most 1) occur, never quotients or logarithms of them, so nothing overflows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_EVENTS = 32


def _recur(decay: Tensor, state: Tensor, start: Tensor) -> None:
    """In place over axis 0: state[t] += decay[t] * state[t - 1], with state[-1] = start."""
    previous = start
    for decay_t, state_t in zip(decay.unbind(0), state.unbind(0), strict=True):
        state_t.addcmul_(decay_t, previous)
        previous = state_t


def _recur_back(decay: Tensor, grads: Tensor) -> None:
    """In place from the end: grads[t] += decay[t + 1] * grads[t + 1]."""
    decays, steps = decay.unbind(0), grads.unbind(0)
    for t in range(len(steps) - 2, -1, -1):
        steps[t].addcmul_(decays[t + 1], steps[t + 1])


class ChunkedScan(torch.autograd.Function):
    """Autograd form of `scan_reference`; same arguments and results. A second derivative raises."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return y (B, L, D) and the last state (B, D, N)."""
        # Time first, so that one step of the recurrence is one contiguous block.
        u_t, delta_t, B_t, C_t = (x.transpose(0, 1) for x in (u, delta, B, C))
        length, batch, channels = u_t.shape
        y = u.new_empty(length, batch, channels)
        size = min(CHUNK_EVENTS, max(length, 1))
        decay_buffer = u.new_empty(size, batch, channels, A.shape[1])
        state_buffer = torch.empty_like(decay_buffer)
        state, starts = initial_state, []
        for begin in range(0, length, size):
            part = slice(begin, min(begin + size, length))
            steps = part.stop - begin
            decay, states = decay_buffer[:steps], state_buffer[:steps]
            starts.append(state)
            torch.mul(delta_t[part].unsqueeze(-1), A, out=decay).exp_()
            torch.mul((delta_t[part] * u_t[part]).unsqueeze(-1), B_t[part].unsqueeze(2), out=states)
            _recur(decay, states, state)
            y[part] = (states @ C_t[part].unsqueeze(-1)).squeeze(-1)
            state = states[-1].clone()
        ctx.save_for_backward(u, delta, A, B, C, *starts)
        return y.transpose(0, 1), state.clone() if state is initial_state else state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor, ...]:
        """Gradients of all six inputs, chunk by chunk from the end."""
        u, delta, A, B, C, *starts = ctx.saved_tensors
        u_t, delta_t, B_t, C_t, dy_t = (x.transpose(0, 1) for x in (u, delta, B, C, dy))
        length, batch, channels = u_t.shape
        du, ddelta = u.new_empty(length, batch, channels), u.new_empty(length, batch, channels)
        dB, dC = u.new_empty(length, batch, A.shape[1]), u.new_empty(length, batch, A.shape[1])
        dA = torch.zeros_like(A)
        size = min(CHUNK_EVENTS, max(length, 1))
        buffers = [u.new_empty(size, batch, channels, A.shape[1]) for _ in range(3)]
        carry = dlast.clone()  # gradient that reaches the state at the chunk's end
        for begin, start in reversed(list(zip(range(0, length, size), starts, strict=True))):
            part = slice(begin, min(begin + size, length))
            decay, states, grads = (buffer[: part.stop - begin] for buffer in buffers)
            step, dy_part = delta_t[part], dy_t[part].contiguous()
            step_u = step * u_t[part]
            torch.mul(step.unsqueeze(-1), A, out=decay).exp_()
            torch.mul(step_u.unsqueeze(-1), B_t[part].unsqueeze(2), out=states)
            _recur(decay, states, start)
            # grads[t] = dL/dh_t: what y_t sends back, plus decay[t + 1] * grads[t + 1].
            torch.mul(dy_part.unsqueeze(-1), C_t[part].unsqueeze(2), out=grads)
            grads[-1].add_(carry)
            _recur_back(decay, grads)
            carry = grads[0] * decay[0]
            dC[part] = (dy_part.unsqueeze(2) @ states).squeeze(2)
            dB[part] = (step_u.unsqueeze(2) @ grads).squeeze(2)
            dstep_u = (grads @ B_t[part].unsqueeze(-1)).squeeze(-1)
            # decay becomes dL/d(delta_t A) = grads[t] * decay[t] * h_{t-1}.
            decay[0].mul_(start)
            decay[1:].mul_(states[:-1])
            decay.mul_(grads)
            dA += torch.einsum("sbdn,sbd->dn", decay, step)
            ddelta[part] = decay.mul_(A).sum(-1).addcmul_(dstep_u, u_t[part])
            du[part] = dstep_u * step
        return du.transpose(0, 1), ddelta.transpose(0, 1), dA, dB.transpose(0, 1), dC.transpose(0, 1), carry


def scan_chunked(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor
) -> tuple[Tensor, Tensor]:
    """Same as `scan_reference`; memory grows with L / 32 states instead of L."""
    y, last = ChunkedScan.apply(u, delta, A, B, C, initial_state)  # type: ignore[no-untyped-call]
    return y, last
