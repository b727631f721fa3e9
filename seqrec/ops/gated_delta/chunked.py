"""The gated delta rule by matrix products in plain torch, recomputed in backward.

Event i adds `u_i k_i^T` to the state, with `u_i = b_i (v_i - a_i S_{i-1} k_i)`. Within a chunk of S events with the
state h = S^T before it, the u of all events solve a triangular system (Yang, Kautz & Hatamizadeh 2024, section 3.3):
`(I + A) u = b v - g (b k) h`, with `A_ij = W_ij b_i (k_i . k_j)` for j < i, W_ij the product of the decays of events
j + 1 .. i, and g_i that of events 1 .. i. Then `y_i = g_i q_i h + sum_{j <= i} W_ij (q_i . k_j) u_j`. So the state after
a chunk is linear in the one before it: the triangular systems of many chunks are solved at once, and one product a
chunk passes the state on.

Forward keeps u and the state at each chunk's start, and backward recomputes the rest from them. As in `ssd.chunked`,
only a few chunks are computed at once, only products of decays occur, and non-finite inputs are replaced by 0.

B batch, L events, n chunks at once, S events of a chunk, H heads, K key width, V value width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqrec.ops.autograd import differentiable, refuse_second_derivative
from seqrec.ops.chunks import carried, finite_, in_history, is_spoilt, parts_of

CHUNK_EVENTS = 32
REFUSAL = "the chunked gated delta rule has no second derivative; use backend='reference' for it"


class _Part(NamedTuple):
    """A few chunks of equal length, with 0 for non-finite numbers."""

    k: Tensor  # (B, n, H, S, K)
    qb: Tensor  # (B, n, H, 2 S, K), q of all events, then beta * k
    v: Tensor  # (B, n, H, S, V)
    beta: Tensor  # (B, n, H, S, 1)
    decay: Tensor  # (B, n, H, S, 1)
    before: Tensor  # (B, n, H, S, 1), product of the decays of events 1 .. i
    within: Tensor  # (B, n, H, S, S), [j, i] product of the decays of events j + 1 .. i; 0 if i < j
    mixed: Tensor  # (B, n, H, S, S), [j, i] weight of u_j in event i's output
    solved: Tensor  # (B, n, H, S, S), transposed inverse of I + A

    @property
    def sent(self) -> Tensor:
        """(B, n, H, S, K) keys as they are in the state after the chunk."""
        return self.k * self.within[..., -1:]

    @property
    def through(self) -> Tensor:
        """(B, n, H, 1, 1) product of all decays of a chunk."""
        return self.before[..., -1:, :]


def _part(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, start: Tensor | None, events: slice, count: int
) -> _Part:
    q, k, v, beta = (_cut(value, events, count) for value in (q, k, v, beta.unsqueeze(-1)))
    decay = finite_(torch.exp(_cut(log_decay.unsqueeze(-1), events, count, clean=False)))
    if start is not None:
        decay = decay.masked_fill_(torch.unflatten(start[:, events], 1, (count, 1, -1)).unsqueeze(-1), 0)
    length = decay.shape[-2]
    later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu_(1)
    within = torch.where(later, decay.mT, 1).cumprod(-1).triu_()
    qb = torch.cat([q, beta * k], -2)
    scores = torch.unflatten(k @ qb.mT, -1, (2, length)) * within.unsqueeze(-2)
    mixed, coupled = scores.unbind(-2)
    unit = torch.eye(length, dtype=k.dtype, device=k.device)
    # The diagonal counts as 1.
    solved = torch.linalg.solve_triangular(coupled, unit.expand_as(coupled), upper=True, unitriangular=True)
    return _Part(k, qb, v, beta, decay, decay.cumprod(-2), within, mixed, solved)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, initial_state: Tensor, start: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return y (B, L, H, V), the last state (B, H, V, K), `_spoilt`, u (B, L, H, V), and h before each chunk."""
    y, u = (torch.empty_like(v, memory_format=torch.contiguous_format) for _ in range(2))
    state = finite_(initial_state.mT.clone(memory_format=torch.contiguous_format))
    states, width = [], v.shape[-1]
    for events, count in parts_of(v, CHUNK_EVENTS):
        part = _part(q, k, v, log_decay, beta, start, events, count)
        length = part.k.shape[-2]
        bk = part.qb[..., length:, :]
        # What is added if h is 0, and the part of h that it replaces.
        added, replaced = torch.split(
            part.solved.mT @ torch.cat([part.beta * part.v, part.before * bk], -1), [width, k.shape[-1]], -1
        )
        sent = part.sent.mT
        own, kept = sent @ added, _identity_times(part.through, sent) - sent @ replaced
        for chunk in range(count):
            states.append(state)
            state = own[:, chunk] + kept[:, chunk] @ state
        first = torch.stack(states[-count:], 1)
        added = added - replaced @ first
        out = part.mixed.mT @ added + part.before * (part.qb[..., :length, :] @ first)
        y[:, events], u[:, events] = _joined(out), _joined(added)
    spoilt = _spoilt(k, v, log_decay, beta, initial_state, start)
    lost = carried(spoilt, start)
    last = state.mT.masked_fill(lost[:, -1, :, None, None], torch.nan)
    y.masked_fill_((lost | is_spoilt(q)).unsqueeze(-1), torch.nan)
    return y, last, spoilt, u, torch.stack(states, 1)


def _new_outputs(
    q: Tensor, k: Tensor, v: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (batch, length, heads, width), keys = v.shape, k.shape[-1]
    y, u = (torch.empty_like(v, memory_format=torch.contiguous_format) for _ in range(2))
    last, chunks = v.new_empty(batch, heads, keys, width).mT, -(-length // CHUNK_EVENTS)
    kept = v.new_empty(batch, chunks, heads, keys, width)
    return y, last, v.new_empty(batch, length, heads, dtype=torch.bool), u, kept


def _backward(
    dy: Tensor,
    dlast: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    start: Tensor | None,
    spoilt: Tensor,
    u: Tensor,
    states: Tensor,
) -> list[Tensor]:
    """Return gradients of all six real inputs, from the last chunks to the first."""
    wholes = [torch.empty_like(value, memory_format=torch.contiguous_format) for value in (q, k, v, log_decay, beta)]
    dstate = finite_(dlast.mT.clone(memory_format=torch.contiguous_format))  # of h at a chunk's end
    width = v.shape[-1]
    with torch.autocast(v.device.type, enabled=False):
        end = states.shape[1]
        for events, count in reversed(list(parts_of(v, CHUNK_EVENTS))):
            part = _part(q, k, v, log_decay, beta, start, events, count)
            dout, length = _cut(dy, events, count), part.k.shape[-2]
            # Gradients of the systems' right sides, if that of h is 0, and what they receive from it.
            sided, received = torch.split(
                part.solved @ torch.cat([part.mixed @ dout, part.sent], -1), [width, k.shape[-1]], -1
            )
            pushed = (part.qb * part.before.repeat(1, 1, 1, 2, 1)).mT
            own = pushed[..., :length] @ dout - pushed[..., length:] @ sided
            kept = _identity_times(part.through, pushed) - pushed[..., length:] @ received
            dstates = []
            for chunk in reversed(range(count)):
                dstates.append(dstate)
                dstate = own[:, chunk] + kept[:, chunk] @ dstate
            dlasts, first = torch.stack(dstates[::-1], 1), states[:, end - count : end]
            dside = sided + received @ dlasts
            pieces = _gradients(part, dout, dside, _cut(u, events, count), first, dlasts)
            end -= count
            for whole, piece in zip(wholes, pieces, strict=True):
                whole[:, events] = _joined(piece).view_as(whole[:, events])
    # Non-finite numbers reach the gradients of a whole history: back to its start, and from there of all its events.
    lost = spoilt | is_spoilt(q) | is_spoilt(dy)
    lost[:, -1] |= is_spoilt(dlast.flatten(2))
    lost = in_history(lost, start)
    for whole in wholes:
        whole.masked_fill_(lost.unsqueeze(-1) if whole.dim() == 4 else lost, torch.nan)
    at_first = lost[:, 0] if start is None else lost[:, 0] & ~start[:, :1]
    return [*wholes, dstate.mT.masked_fill(at_first[..., None, None], torch.nan)]


def _gradients(
    part: _Part, dout: Tensor, dside: Tensor, u: Tensor, first: Tensor, dlast: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, the logarithms of the decays and beta of a part.

    Args:
        part: The part's inputs.
        dout: (B, n, H, S, V) gradient of outputs.
        dside: (B, n, H, S, V) gradient of the systems' right sides.
        u: (B, n, H, S, V).
        first: (B, n, H, K, V) states before each chunk.
        dlast: (B, n, H, K, V) gradients of the states at each chunk's end.
    """
    length = u.shape[-2]
    both = torch.cat([dout, dside.neg()], -2)
    dscores = torch.unflatten(u @ both.mT, -1, (2, length)) * part.within.unsqueeze(-2)
    # An event's u does not depend on itself.
    dscores[..., 1, :].triu_(1)
    dscores = dscores.flatten(-2)
    dqb = dscores.mT @ part.k + part.before.repeat(1, 1, 1, 2, 1) * (both @ first.mT)
    dk = dscores @ part.qb + part.within[..., -1:] * (u @ dlast.mT)
    # The decay of event t scales the terms that an event before t sends to t or later: all that events from t on
    # receive, less what they send on, and what reaches the end.
    through = (dqb * part.qb).sum(-1, keepdim=True).unflatten(-2, (2, length)).sum(-3) - (dk * part.k).sum(-1, keepdim=True)
    last = part.through * first + part.sent.mT @ u
    dlog = through.flip(-2).cumsum(-2).flip(-2) + (last * dlast).sum((-2, -1), keepdim=True)
    dq, dbk = dqb.unflatten(-2, (2, length)).unbind(-3)
    dbeta = (dside * part.v).sum(-1, keepdim=True) + (dbk * part.k).sum(-1, keepdim=True)
    return dq, dk + part.beta * dbk, part.beta * dside, dlog.masked_fill_(part.decay == 0, 0), dbeta


def _identity_times(number: Tensor, like: Tensor) -> Tensor:
    """Return (B, n, H, K, K), the number (B, n, H, 1, 1) on its diagonal; `like` is (B, n, H, K, ..)."""
    return number * torch.eye(like.shape[-2], dtype=like.dtype, device=like.device)


def _cut(value: Tensor, events: slice, count: int, *, clean: bool = True) -> Tensor:
    """Copy (B, L, H, X) to (B, n, H, S, X), with 0 for non-finite numbers unless told otherwise."""
    chunks = torch.unflatten(value[:, events], 1, (count, -1)).movedim(3, 2)
    copy = chunks.clone(memory_format=torch.contiguous_format)
    return finite_(copy) if clean else copy


def _joined(part: Tensor) -> Tensor:
    """Reshape (B, n, H, S, X) to (B, n * S, H, X)."""
    return part.movedim(3, 2).flatten(1, 2)


def _spoilt(
    k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, initial_state: Tensor, start: Tensor | None
) -> Tensor:
    """Return (B, L, H) bool, True if an event adds a non-finite number to the state, or the initial state has one."""
    # A decay of 0 has a logarithm that is not finite.
    spoilt = is_spoilt(k) | is_spoilt(v) | is_spoilt((torch.exp(log_decay) * beta).unsqueeze(-1))
    at_first = is_spoilt(initial_state.flatten(2))
    spoilt[:, 0] |= at_first if start is None else at_first & ~start[:, :1]
    return spoilt


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *real, _, start = inputs
    ctx.save_for_backward(*real, start, *output[2:])


def _differentiate(
    ctx: Any, backward: Callable[..., list[Tensor]], dy: Tensor, dlast: Tensor, *kept: Any
) -> tuple[Tensor | None, ...]:
    refuse_second_derivative(REFUSAL)
    return (*backward(dy, dlast, *ctx.saved_tensors), None)


_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor log_decay, Tensor beta"
# An op, because torch.compile would unroll the loop over chunks anew for each length.
_rule = differentiable(
    "gated_delta_chunked",
    _forward,
    _backward,
    schemas=(
        f"({_INPUTS}, Tensor initial_state, Tensor? start) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        f"(Tensor dy, Tensor dlast, {_INPUTS}, Tensor? start, Tensor spoilt, Tensor u, Tensor states) -> Tensor[]",
    ),
    device_types=None,
    new_outputs=_new_outputs,
    new_gradients=lambda dy, dlast, q, k, v, log_decay, beta, *others: [
        torch.empty_like(value, memory_format=torch.contiguous_format) for value in (q, k, v, log_decay, beta)
    ]
    + [dlast.mT.contiguous().mT],
    setup_context=_setup_context,
    differentiate=_differentiate,
    refusal=REFUSAL,
)


def gated_delta_chunked(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, initial_state: Tensor, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute `gated_delta_reference`; memory grows with L / 32 states instead of L."""
    if not (v.numel() and k.numel()):
        return torch.zeros_like(v), initial_state
    y, last, *_ = _rule(q, k, v, log_decay, beta, initial_state, start)
    return y, last
