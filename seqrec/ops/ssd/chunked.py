"""State-space-dual scan by matrix products in plain torch, recomputed in backward.

Within a chunk of S events the recurrence is a product with a triangular matrix,
`y_i = sum_{j <= i} (C_i . B_j) W_ij step_j x_j`, with W_ij the product of the decays of events j + 1 .. i
(Dao & Gu 2024, section 6); states pass from chunk to chunk one after another. Forward keeps the state at each chunk's
start, and backward recomputes the rest from it. Only a few chunks are computed at once, because the (S, S) matrices of
all chunks would take too much memory. Only products of decays (at most 1) occur, never quotients or differences of
their logarithms: nothing overflows, and a start is a decay of exactly 0.

A matrix product would spread a NaN over its whole chunk, as 0 * NaN is NaN: to earlier events, and to other histories
of a packed row. So non-finite inputs are replaced by 0, and the results that depend on them by NaN afterwards.

B batch, L events, k chunks at once, S events of a chunk, H = G * r heads in G groups, P head width, N states.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
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

CHUNK_EVENTS = 64
REFUSAL = "the chunked scan has no second derivative; use backend='reference' for it"


class _Part(NamedTuple):
    """A few chunks of equal length, with 0 for non-finite numbers."""

    step: Tensor  # (B, k, G, r, S, 1)
    B: Tensor  # (B, k, G, 1, S, N)
    C: Tensor  # (B, k, G, 1, S, N)
    driven: Tensor  # (B, k, G, r, S, P), step * x
    before: Tensor  # (B, k, G, r, S, 1), product of the decays of events 1 .. i
    within: Tensor  # (B, k, G, r, S, S), [j, i] product of the decays of events j + 1 .. i; 0 if i < j
    mixed: Tensor  # (B, k, G, r, S, S), [j, i] weight of event j in event i's output

    @property
    def after(self) -> Tensor:
        """(B, k, G, r, S, 1) product of the decays of events j + 1 .. S."""
        return self.within[..., -1:]

    @property
    def through(self) -> Tensor:
        """(B, k, G, r, 1, 1) product of all decays of a chunk."""
        return self.before[..., -1:, :]


def _forward(
    x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor, start: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y (B, L, H, P), the last state (B, H, P, N), `_spoilt`, and the state before each chunk."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    state = torch.unflatten(finite_(initial_state.clone()), 1, (B.shape[2], -1))
    states = []
    for events, count in parts_of(x, CHUNK_EVENTS):
        part = _part(x, step, A, B, C, start, events, count)
        added, through = (part.driven * part.after).mT @ part.B, part.through
        for chunk in range(count):
            states.append(state)
            state = torch.addcmul(added[:, chunk], through[:, chunk], state)
        carried_in = part.C @ torch.stack(states[-count:], 1).mT
        out = (part.mixed.mT @ part.driven).addcmul_(part.before, carried_in)
        y[:, events] = _joined(out)
    spoilt = _spoilt(x, step, B, initial_state, start)
    lost = carried(spoilt, start)
    last = state.flatten(1, 2).masked_fill(lost[:, -1, :, None, None], torch.nan)
    y.masked_fill_((lost | _of_heads(is_spoilt(C), x)).unsqueeze(-1), torch.nan)
    return y, last, spoilt, torch.stack(states, 1)


def _new_outputs(x: Tensor, step: Tensor, A: Tensor, B: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (batch, length, heads, width), (groups, num_states) = x.shape, B.shape[2:]
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    last, chunks = x.new_empty(batch, heads, width, num_states), -(-length // CHUNK_EVENTS)
    kept = x.new_empty(batch, chunks, groups, heads // groups, width, num_states)
    return y, last, x.new_empty(batch, length, heads, dtype=torch.bool), kept


def _backward(
    dy: Tensor,
    dlast: Tensor,
    x: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    start: Tensor | None,
    spoilt: Tensor,
    states: Tensor,
) -> list[Tensor]:
    """Return gradients of all six real inputs, from the last chunks to the first."""
    wholes = [torch.empty_like(value) for value in (x, step, B, C)]
    dA = torch.zeros_like(A)
    dstate = torch.unflatten(finite_(dlast.clone()), 1, (B.shape[2], -1))  # of the state at a chunk's end
    with torch.autocast(x.device.type, enabled=False):
        end = states.shape[1]
        for events, count in reversed(list(parts_of(x, CHUNK_EVENTS))):
            part = _part(x, step, A, B, C, start, events, count)
            dout = _finite_part(dy, events, count, B.shape[2])
            received, through = (dout * part.before).mT @ part.C, part.through
            dstates = []
            for chunk in reversed(range(count)):
                dstates.append(dstate)
                dstate = torch.addcmul(received[:, chunk], through[:, chunk], dstate)
            ddriven, dlog, dB, dC = _gradients(part, dout, states[:, end - count : end], torch.stack(dstates[::-1], 1))
            end -= count
            dA += (dlog * part.step).sum((0, 1, 4)).flatten()
            x_part = _cut(x, events, count, B.shape[2])
            dstep = (ddriven * x_part).sum(-1, keepdim=True) + dlog * A.view(B.shape[2], -1, 1, 1)
            for whole, piece in zip(wholes, (ddriven * part.step, dstep, dB, dC), strict=True):
                whole[:, events] = _joined(piece).view_as(whole[:, events])
    # Non-finite numbers reach the gradients of a whole history: back to its start, and from there of all its events.
    lost = spoilt | _of_heads(is_spoilt(C), x) | is_spoilt(dy)
    lost[:, -1] |= is_spoilt(dlast.flatten(2))
    lost = in_history(lost, start)
    in_group = torch.unflatten(lost, 2, (B.shape[2], -1)).any(3)
    for whole, where in zip(wholes, (lost, lost, in_group, in_group), strict=True):
        whole.masked_fill_(where.view(*where.shape, *[1] * (whole.dim() - 3)), torch.nan)
    dA.masked_fill_(lost.flatten(0, 1).any(0), torch.nan)
    at_first = of_first_history(lost[:, 0], start)
    dstate = dstate.flatten(1, 2).masked_fill(at_first[..., None, None], torch.nan)
    dx, dstep, dB, dC = wholes
    return [dx, dstep, dA, dB, dC, dstate]


def _new_gradients(
    dy: Tensor, dlast: Tensor, x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, *others: Any
) -> list[Tensor]:
    return [torch.empty_like(value) for value in (x, step, A, B, C, dlast)]


_INPUTS = "Tensor x, Tensor step, Tensor A, Tensor B, Tensor C"
# An op, because torch.compile would unroll the loop over chunks anew for each length.
_scan = differentiable(
    "ssd_chunked",
    _forward,
    _backward,
    schemas=(
        f"({_INPUTS}, Tensor initial_state, Tensor? start) -> (Tensor, Tensor, Tensor, Tensor)",
        f"(Tensor dy, Tensor dlast, {_INPUTS}, Tensor? start, Tensor spoilt, Tensor states) -> Tensor[]",
    ),
    device_types=None,
    new_outputs=_new_outputs,
    new_gradients=_new_gradients,
    setup_context=save_for_chunks,
    differentiate=partial(differentiate_once, REFUSAL),
    refusal=REFUSAL,
)


def _cut(value: Tensor, events: slice, count: int, groups: int) -> Tensor:
    """View (B, L, H, X) as (B, k, G, r, S, X)."""
    chunks = torch.unflatten(value[:, events], 1, (count, -1))
    return torch.unflatten(chunks, 3, (groups, -1)).movedim(2, 4)


def _finite_part(value: Tensor, events: slice, count: int, groups: int) -> Tensor:
    """Copy the result of `_cut`, with 0 for non-finite numbers."""
    return finite_(_cut(value, events, count, groups).clone(memory_format=torch.contiguous_format))


def _joined(part: Tensor) -> Tensor:
    """Reshape (B, k, G, r, S, X) to (B, k * S, H, X)."""
    return part.movedim(4, 2).flatten(3, 4).flatten(1, 2)


def _part(
    x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, start: Tensor | None, events: slice, count: int
) -> _Part:
    groups = B.shape[2]
    step, B, C = (_finite_part(value, events, count, groups) for value in (step.unsqueeze(-1), B, C))
    decay = torch.exp(step * A.view(groups, -1, 1, 1))
    if start is not None:
        decay = decay.masked_fill(torch.unflatten(start[:, events], 1, (count, 1, 1, -1)).unsqueeze(-1), 0)
    within = decays_within(decay)
    x = _cut(x, events, count, groups)
    driven = finite_(torch.mul(x, step, out=x.new_empty(x.shape)))
    return _Part(step, B, C, driven, decay.cumprod(-2), within, within * (B @ C.mT))


def _gradients(part: _Part, dout: Tensor, first: Tensor, dlast: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of a part.

    Args:
        part: The part's inputs.
        dout: (B, k, G, r, S, P) gradient of outputs.
        first: (B, k, G, r, P, N) states before each chunk.
        dlast: (B, k, G, r, P, N) gradients of the states at each chunk's end.

    Returns:
        Gradients of `driven`, of the logarithms of the decays (B, k, G, r, S, 1), of B and of C.
    """
    dmixed = part.driven @ dout.mT
    dscores = (dmixed * part.within).sum(3, keepdim=True)
    # Terms of events through the last state (sent) and through the first one (had).
    sent = part.after * (part.B @ dlast.mT)
    sent_by_B = (part.after * (part.driven @ dlast)).sum(3, keepdim=True)
    had = part.before * (dout @ first)
    dB = dscores @ part.C + sent_by_B
    dC = dscores.mT @ part.B + had.sum(3, keepdim=True)
    # The decay of event k scales every term from an event before k to k or later.
    pairs = (dmixed.mul_(part.mixed)).cumsum(-2)[..., :-1, :].triu_(1).sum(-1)
    arriving = (had * part.C).sum(-1).flip(-1).cumsum(-1).flip(-1)
    leaving = (sent * part.driven).sum(-1).cumsum(-1)[..., :-1]
    passing = (part.through * first * dlast).sum((-2, -1)).unsqueeze(-1)
    dlog = arriving + passing + F.pad(pairs + leaving, (1, 0))
    return part.mixed @ dout + sent, dlog.unsqueeze(-1), dB, dC


def _spoilt(x: Tensor, step: Tensor, B: Tensor, initial_state: Tensor, start: Tensor | None) -> Tensor:
    """Return (B, L, H) bool, True if an event adds a non-finite number to the state, or the initial state has one."""
    # The largest product, because one that overflows counts too.
    spoilt = is_spoilt((x.abs().amax(-1) * step).unsqueeze(-1)) | _of_heads(is_spoilt(B), x)
    spoilt[:, 0] |= of_first_history(is_spoilt(initial_state.flatten(2)), start)
    return spoilt


def _of_heads(of_groups: Tensor, x: Tensor) -> Tensor:
    """Repeat (B, L, G) to (B, L, H)."""
    return of_groups.repeat_interleave(x.shape[2] // of_groups.shape[2], 2)


def ssd_chunked(
    x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute `ssd_reference`; memory grows with L / 64 states instead of L."""
    if not x.numel():
        return torch.zeros_like(x), initial_state
    y, last, _, _ = _scan(x, step, A, B, C, initial_state, start)
    return y, last
