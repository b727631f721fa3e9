"""The gated delta rule by matrix products in plain torch, recomputed in backward.

Event i adds `u_i k_i^T` to the state, with `u_i = b_i (v_i - a_i S_{i-1} k_i)`. Within a chunk of S events with the
state h = S^T before it, the u of all events solve a triangular system (Yang, Kautz & Hatamizadeh 2024, section 3.3):
`(I + A) u = b v - g (b k) h`, with `A_ij = W_ij b_i (k_i . k_j)` for j < i, W_ij the product of the decays of events
j + 1 .. i, and g_i that of events 1 .. i. Then `y_i = g_i q_i h + sum_{j <= i} W_ij (q_i . k_j) u_j`. The state after a
chunk is linear in the one before it. So the triangular systems of many chunks are solved at once, and two products
a chunk, through u, pass the state on. A single product would need a K x K matrix for each chunk, which costs more if
K >= S.

Forward keeps u and the state at each chunk's start, and backward recomputes the rest from them. As in `ssd.chunked`,
only a few chunks are computed at once, only products of decays occur, and non-finite inputs are replaced by 0.

B batch, L events, n chunks at once, M = n * B * H matrices of them, S events of a chunk, H heads, K key width, V value
width.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqrec.ops.autograd import differentiable
from seqrec.ops.chunks import (
    carried,
    decays_within,
    differentiate_once,
    finite_,
    in_history,
    is_spoilt,
    of_first_history,
    parts_of,
    save_for_chunks,
)

CHUNK_EVENTS = 32
REFUSAL = "the chunked gated delta rule has no second derivative; use backend='reference' for it"


class _Part(NamedTuple):
    """A few chunks of equal length, with 0 for non-finite numbers."""

    q: Tensor  # (M, S, K)
    k: Tensor  # (M, S, K)
    v: Tensor  # (M, S, V)
    beta: Tensor  # (M, S, 1)
    decay: Tensor  # (M, S, 1)
    before: Tensor  # (M, S, 1), product of the decays of events 1 .. i
    within: Tensor  # (M, S, S), [j, i] product of the decays of events j + 1 .. i; 0 if i < j
    mixed: Tensor  # (M, S, S), [j, i] weight of u_j in event i's output
    solved: Tensor  # (M, S, S), transposed inverse of I + A
    asked: Tensor  # (M, S, K), beta * k

    @property
    def sent(self) -> Tensor:
        """(M, S, K) keys, times the decays of all later events."""
        return self.k * self.within[..., -1:]

    @property
    def through(self) -> Tensor:
        """(M, 1, 1) product of all decays of a chunk."""
        return self.before[:, -1:]


def _part(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, start: Tensor | None, events: slice, count: int
) -> _Part:
    q, k, v, beta = (finite_(_cut(value, events, count)) for value in (q, k, v, beta.unsqueeze(-1)))
    decay = finite_(_cut(log_decay.unsqueeze(-1), events, count).exp_())
    if start is not None:
        decay.masked_fill_(_cut(start[..., None, None].expand(*log_decay.shape, 1), events, count), 0)
    within = decays_within(decay)
    asked = beta * k
    # The diagonal counts as 1.
    coupled = (k @ asked.mT).mul_(within)
    unit = torch.eye(decay.shape[1], dtype=k.dtype, device=k.device)
    solved = torch.linalg.solve_triangular(coupled, unit.expand_as(coupled), upper=True, unitriangular=True)
    return _Part(q, k, v, beta, decay, decay.cumprod(1), within, (k @ q.mT).mul_(within), solved, asked)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, initial_state: Tensor, start: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return y (B, L, H, V), the last state (B, H, V, K), `_spoilt`, u, and h before each chunk and after the last."""
    y, last, _, u, states = _new_outputs(q, k, v)
    states[0] = finite_(initial_state.mT.flatten(0, 1).clone())
    begin = 0
    for events, count in parts_of(v, CHUNK_EVENTS):
        part = _part(q, k, v, log_decay, beta, start, events, count)
        weights = part.solved.mT * part.beta.mT
        # The u of a chunk that begins with h = 0, and how it depends on h.
        alone, lacking, sent, through = _by_chunk(
            count, weights @ part.v, weights @ (part.k * -part.before), part.sent.mT, part.through
        )
        events_within = alone.shape[2]
        for chunk, at in enumerate(range(begin, begin + count)):
            added = torch.baddbmm(alone[chunk], lacking[chunk], states[at])
            u[at, :, :events_within] = added
            torch.baddbmm(through[chunk] * states[at], sent[chunk], added, out=states[at + 1])
        u[begin : begin + count, :, events_within:] = 0
        first = states[begin : begin + count].flatten(0, 1)
        added = u[begin : begin + count, :, :events_within].flatten(0, 1)
        _write(y, events, count, torch.baddbmm((part.q @ first).mul_(part.before), part.mixed.mT, added))
        begin += count
    spoilt = _spoilt(k, v, log_decay, beta, initial_state, start)
    lost = carried(spoilt, start)
    last.copy_(torch.unflatten(states[-1], 0, last.shape[:2]).mT)
    _spoil_(last, lost[:, -1, :, None, None])
    _spoil_(y, (lost | is_spoilt(q)).unsqueeze(-1))
    return y, last, spoilt, u, states


def _new_outputs(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (batch, length, heads, width), keys = v.shape, k.shape[-1]
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    chunks = -(-length // CHUNK_EVENTS)
    u = v.new_empty(chunks, batch * heads, CHUNK_EVENTS, width)
    states = v.new_empty(chunks + 1, batch * heads, keys, width)
    spoilt = v.new_empty(batch, length, heads, dtype=torch.bool)
    return y, v.new_empty(batch, heads, width, keys), spoilt, u, states


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
    *wholes, dinitial = _new_gradients(dy, dlast, q, k, v, log_decay, beta)
    dstate = finite_(dlast.mT.flatten(0, 1).clone())  # of h at a chunk's end
    with torch.autocast(v.device.type, enabled=False):
        begin = len(u)
        for events, count in reversed(list(parts_of(v, CHUNK_EVENTS))):
            begin -= count
            part = _part(q, k, v, log_decay, beta, start, events, count)
            dout = finite_(_cut(dy, events, count))
            # Gradients of the systems' right sides if that of h at the chunk's end is 0, and how they depend on it.
            alone, received = part.solved @ (part.mixed @ dout), part.solved @ part.sent
            # That of h at the chunk's start comes through outputs, through right sides, and through what is kept of h.
            own, pushed = (part.q * part.before).mT @ dout, (part.asked * -part.before).mT
            own, pushed, alone, received, through = _by_chunk(count, own, pushed, alone, received, part.through)
            dlasts, dside = torch.empty_like(states[begin : begin + count]), torch.empty_like(alone)
            for chunk in reversed(range(count)):
                dlasts[chunk] = dstate
                torch.baddbmm(alone[chunk], received[chunk], dstate, out=dside[chunk])
                dstate = torch.baddbmm(own[chunk], pushed[chunk], dside[chunk]).addcmul_(through[chunk], dstate)
            first, dside = states[begin : begin + count].flatten(0, 1), dside.flatten(0, 1)
            added = u[begin : begin + count, :, : dout.shape[1]].flatten(0, 1)
            pieces = _gradients(part, dout, dside, added, first, dlasts.flatten(0, 1))
            for whole, piece in zip(wholes, pieces, strict=True):
                _write(whole, events, count, piece)
    dinitial.copy_(torch.unflatten(dstate, 0, dlast.shape[:2]).mT)
    # Non-finite numbers reach the gradients of a whole history: back to its start, and from there of all its events.
    lost = spoilt | is_spoilt(q) | is_spoilt(dy)
    lost[:, -1] |= is_spoilt(dlast.flatten(2))
    lost = in_history(lost, start)
    for whole in wholes:
        _spoil_(whole, lost.view(*lost.shape, *[1] * (whole.dim() - 3)))
    at_first = of_first_history(lost[:, 0], start)
    _spoil_(dinitial, at_first[..., None, None])
    return [*wholes, dinitial]


def _new_gradients(dy: Tensor, dlast: Tensor, *inputs: Any) -> list[Tensor]:
    return [torch.empty_like(value, memory_format=torch.contiguous_format) for value in (*inputs[:5], dlast)]


def _gradients(
    part: _Part, dout: Tensor, dside: Tensor, u: Tensor, first: Tensor, dlast: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, the logarithms of the decays and beta of a part.

    Args:
        part: The part's inputs.
        dout: (M, S, V) gradient of outputs.
        dside: (M, S, V) gradient of the systems' right sides.
        u: (M, S, V).
        first: (M, K, V) states before each chunk.
        dlast: (M, K, V) gradients of the states at each chunk's end.
    """
    before, within = part.before, part.within
    dmixed = (u @ dout.mT).mul_(within)
    # Negative, as is that of `asked`. An event's u does not depend on itself.
    dcoupled = (u @ dside.mT).mul_(within).triu_(1)
    dq = torch.baddbmm((dout @ first.mT).mul_(before), dmixed.mT, part.k)
    dasked = torch.baddbmm((dside @ first.mT).mul_(before), dcoupled.mT, part.k)
    dk = (u @ dlast.mT).mul_(within[..., -1:])
    at_end = _dot(dk, part.k).sum(1, keepdim=True) + part.through * _dot(first, dlast).sum(1, keepdim=True)
    dk.baddbmm_(dmixed, part.q).baddbmm_(dcoupled, part.asked, alpha=-1)
    asking = _dot(dasked, part.k)
    # The decay of event t scales what the events from t on receive, less what these send to each other, and what
    # reaches the end. Those that t cannot reach, as of other histories, would only add rounding errors.
    passing = _dot(dq, part.q) - part.beta * asking - _dot(dk, part.k)
    reached = (within != 0).to(within.dtype)
    dlog = torch.baddbmm(reached[..., -1:] * at_end, reached, passing).masked_fill_(part.decay == 0, 0)
    dk.addcmul_(part.beta, dasked, value=-1)
    return dq, dk, part.beta * dside, dlog, _dot(dside, part.v) - asking


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Return sums (M, S, 1) of products."""
    return (one * other).sum(-1, keepdim=True)


def _by_chunk(count: int, *values: Tensor) -> list[Tensor]:
    """View (M, ..) as (n, M / n, ..)."""
    return [torch.unflatten(value, 0, (count, -1)) for value in values]


def _cut(value: Tensor, events: slice, count: int) -> Tensor:
    """Copy (B, L, H, X) to (M, S, X)."""
    chunks = torch.unflatten(value[:, events], 1, (count, -1)).permute(1, 0, 3, 2, 4)
    return chunks.clone(memory_format=torch.contiguous_format).flatten(0, 2)


def _write(whole: Tensor, events: slice, count: int, part: Tensor) -> None:
    """Write (M, S, X) to events of (B, L, H, X), or (M, S, 1) to those of (B, L, H)."""
    chunks = torch.unflatten(whole[:, events], 1, (count, -1))
    if whole.dim() == 3:
        chunks = chunks.unsqueeze(-1)
    chunks.copy_(torch.unflatten(part, 0, (count, len(whole), -1)).permute(1, 0, 3, 2, 4))


def _spoil_(value: Tensor, where: Tensor) -> None:
    """Write NaN where a mask of the same number of axes is True."""
    # A sum is faster than masked_fill_.
    value.add_(torch.zeros_like(where, dtype=value.dtype).masked_fill_(where, torch.nan))


def _spoilt(
    k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, initial_state: Tensor, start: Tensor | None
) -> Tensor:
    """Return (B, L, H) bool, True if an event adds a non-finite number to the state, or the initial state has one."""
    # A decay of 0 has a logarithm that is not finite.
    spoilt = is_spoilt(k) | is_spoilt(v) | is_spoilt((torch.exp(log_decay) * beta).unsqueeze(-1))
    spoilt[:, 0] |= of_first_history(is_spoilt(initial_state.flatten(2)), start)
    return spoilt


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
    new_gradients=_new_gradients,
    setup_context=save_for_chunks,
    differentiate=partial(differentiate_once, REFUSAL),
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
