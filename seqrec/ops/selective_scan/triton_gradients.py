"""Triton kernels of the selective scan, backward: `triton_kernels` against time."""

# As there.
# ruff: noqa: ANN001, ANN201, ANN202, RUF005, RUF059
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from seqrec.ops.selective_scan.triton_kernels import (
    LOG2E,
    locate,
    of_channels,
    of_states,
    read_event,
    read_states,
    sigmoid,
    step_size,
    store_states,
)

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["length", "runs", "run_events"])
def run_begins(
    delta, A, C, z, dy, bias, valid, start, ends, sums, cuts,
    length, channels, states, runs, run_events,
    SOFTPLUS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`run_ends` against time: the gradient of the state before each run, were that of the state behind it zero."""
    row, run, block, at, tile, has_tile = locate(runs, channels, states, BLOCK_D, BLOCK_N)
    a, shift = of_states(A, at) * LOG2E, of_channels(bias, at)
    source = (None, delta, None, C, z, dy, valid, start)
    grad, total = tl.zeros([BLOCK_N, BLOCK_D], tl.float32), tl.zeros([BLOCK_D], tl.float32)
    begin, cut = run * run_events, tl.full([], False, tl.int1)
    end = tl.minimum(begin + run_events, length)
    event = row * length + end - 1
    coming = read_event(source, event, begin < end, at)
    for t in range(begin, end):
        _, delta_t, _, c_t, z_t, dy_t, here, restart = coming
        event -= 1
        coming = read_event(source, event, t + 1 < end, at)
        step = step_size(delta_t + shift, here, SOFTPLUS)
        if z is not None:
            dy_t *= z_t * sigmoid(z_t)
        grad = tl.exp2(step[None, :] * a) * (grad + dy_t[None, :] * c_t[:, None])
        if start is not None:
            grad = tl.where(restart, 0.0, grad)
            cut = cut | restart
        total += step
    place = row * runs + run
    tl.store(ends + place * states * channels + tile, grad, mask=has_tile)
    tl.store(sums + place * channels + at[0], total, mask=at[2])
    if start is not None:
        tl.store(cuts + place, cut.to(tl.uint8))


@triton.jit
def _advance(state, weights, source, event, inside, at, SOFTPLUS: tl.constexpr):
    """States behind and before an event, its decay, step sizes, delta + bias and what was read of it."""
    a, shift, _ = weights
    now = read_event(source, event, inside, at)
    if source[7] is not None:
        state = tl.where(now[7], 0.0, state)
    x = now[1] + shift
    step = step_size(x, now[6], SOFTPLUS)
    decay = tl.exp2(step[None, :] * a)
    return decay * state + (step * now[0])[None, :] * now[2][:, None], state, decay, step, x, now


@triton.jit
def _undo(grads, weights, built, source, results, event, inside, to_block, at, SOFTPLUS: tl.constexpr):
    """Gradient of the state before an event from that behind it; stores the event's own, adds to the sums."""
    grad, da, dskip, dshift = grads
    a, _, skip = weights
    state, before, decay, step, x, now = built
    u_t, _, b_t, c_t, z_t, dy_t, here, restart = now
    du, ddelta, dB, dC, dz = results
    d, n, has_d, has_n, channels, states = at
    of_d, of_n = event * channels + d, (to_block + event) * states + n
    has_d, has_n = tl.where(inside, has_d, False), tl.where(inside, has_n, False)
    if source[4] is not None:
        open_ = sigmoid(z_t)
        y_t = tl.sum(state * c_t[:, None], 0) + skip * u_t
        dz_t = dy_t * y_t * open_ * (1.0 + z_t * (1.0 - open_))
        tl.store(dz + of_d, tl.where(here, dz_t, 0.0), mask=has_d)
        dy_t *= z_t * open_
    grad += dy_t[None, :] * c_t[:, None]
    dc_t, db_t = tl.sum(dy_t[None, :] * state, 1), tl.sum((step * u_t)[None, :] * grad, 1)
    # Whatever passes by where no event is, NaN as well, is not its gradient.
    tl.store(dC + of_n, tl.where(here, dc_t, 0.0), mask=has_n)
    tl.store(dB + of_n, tl.where(here, db_t, 0.0), mask=has_n)
    dinput = tl.sum(grad * b_t[:, None], 0)
    grad *= decay
    if source[7] is not None:
        grad = tl.where(restart, 0.0, grad)
    ddecay = grad * before
    dstep = tl.sum(ddecay * a, 0) * LN2 + dinput * u_t
    if SOFTPLUS:
        dstep *= sigmoid(x)
    dstep = tl.where(here, dstep, 0.0)
    tl.store(ddelta + of_d, dstep, mask=has_d)
    tl.store(du + of_d, tl.where(here, dinput * step + skip * dy_t, 0.0), mask=has_d)
    return grad, da + ddecay * step[None, :], dskip + dy_t * u_t, dshift + dstep


@triton.jit
def _undo_group(
    grads, state, weights, source, results, row, first, length, to_block, at,
    SOFTPLUS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """`_undo` of a group of events, last one first; `state` is that before the group."""
    built = ()
    for i in tl.static_range(GROUP):
        t = first + i
        event = _advance(state, weights, source, row * length + t, t < length, at, SOFTPLUS)
        built, state = built + (event,), event[0]
    for i in tl.static_range(GROUP - 1, -1, -1):
        t = first + i
        place = row * length + t
        grads = _undo(grads, weights, built[i], source, results, place, t < length, to_block, at, SOFTPLUS)
    return grads


@triton.jit(do_not_specialize=["length", "rows", "runs", "run_chunks", "chunks"])
def gradients(
    u, delta, A, B, C, D, z, bias, valid, start, kept, dy, behind, scratch,
    du, ddelta, dA, dB, dC, dD, dz, dbias, dfirst,
    length, channels, states, rows, runs, run_chunks, chunks,
    SOFTPLUS: tl.constexpr, CHUNK: tl.constexpr, GROUP: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """All gradients, chunk by chunk from each run's end.

    A chunk's states are built again from the kept one: first every GROUP-th, which go to this program's scratch,
    then, against time, those between two of them, in registers. dA, dD and dbias are a run's, dB and dC a block's.
    """
    row, run, block, at, tile, has_tile = locate(runs, channels, states, BLOCK_D, BLOCK_N)
    weights = (of_states(A, at) * LOG2E, of_channels(bias, at), of_channels(D, at))
    inputs, source = (u, delta, B, None, None, None, valid, start), (u, delta, B, C, z, dy, valid, start)
    results = (du, ddelta, dB, dC, dz)
    place = row * runs + run
    grad = read_states(behind, place, tile, has_tile, at)
    da, of_d = tl.zeros([BLOCK_N, BLOCK_D], tl.float32), tl.zeros([BLOCK_D], tl.float32)
    grads = (grad, da, of_d, of_d)
    own = tl.arange(0, BLOCK_N)[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    own += tl.program_id(0).to(tl.int64) * (CHUNK // GROUP * BLOCK_N * BLOCK_D)
    to_block = block * rows.to(tl.int64) * length
    last = tl.minimum((run + 1) * run_chunks, chunks)
    for back in range(1, last - run * run_chunks + 1):
        chunk = last - back
        begin = chunk * CHUNK
        groups = tl.cdiv(tl.minimum(length - begin, CHUNK), GROUP)
        state = tl.load(kept + (row * chunks + chunk) * states * channels + tile, mask=has_tile, other=0.0)
        # What one thread stores another may load, and the other way round.
        tl.debug_barrier()
        tl.store(scratch + own, state)
        for group in range(1, groups):
            for i in tl.static_range(GROUP):
                t = begin + (group - 1) * GROUP + i
                state = _advance(state, weights, inputs, row * length + t, t < length, at, SOFTPLUS)[0]
            tl.store(scratch + own + group * (BLOCK_N * BLOCK_D), state)
        tl.debug_barrier()
        for group in range(1, groups + 1):
            state = tl.load(scratch + own + (groups - group) * (BLOCK_N * BLOCK_D))
            first = begin + (groups - group) * GROUP
            grads = _undo_group(
                grads, state, weights, source, results, row, first, length, to_block, at, SOFTPLUS, GROUP
            )
    store_states(dA + place * states * channels, grads[1], at)
    tl.store(dD + place * channels + at[0], grads[2], mask=at[2])
    tl.store(dbias + place * channels + at[0], grads[3], mask=at[2])
    if run == 0:
        store_states(dfirst + row * states * channels, grads[0], at)
