"""Triton kernels of the selective scan, forward and backward; `triton_launch` starts them.

A program is one warp: it walks one run of events of one row for a block of channels and keeps their states [N, D] in
registers. Letters as in `selective_scan`, but N and D are a block's: powers of two, of which `states` and
`channels` may fill less. In registers A holds A log2(e), so a decay is one exp2. Tensors of states that are passed
between kernels are (.., N, D), because neighbouring lanes then read neighbouring channels; callers get (.., D, N).
Inputs and gradients of them have any type of real numbers; states and all arithmetic are float32. Rows of an input
follow each other, and so do an event's numbers; z, B and C may be parts of wider tensors, with `z_event` and
`weights_event` numbers from one event to the next. Flags are uint8; None is an argument that was not given.
"""

# Annotated arguments are constant at compile time, the others are pointers and integers. Triton is a subset of Python:
# tuples are joined, not starred, and a `_` that a loop assigns must keep its type.
# ruff: noqa: ANN001, ANN201, ANN202, RUF005, RUF059
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def sigmoid(x):
    """Return the logistic function of x."""
    # The exponential of a number that is not positive cannot overflow.
    small = tl.exp2(-tl.abs(x) * LOG2E)
    return tl.where(x >= 0, 1.0, small) / (1.0 + small)


@triton.jit
def step_size(x, here, SOFTPLUS: tl.constexpr):
    """Return step sizes for delta + bias; 0, with which states pass through, where `here` is False."""
    if SOFTPLUS:
        # max(x, 0) + log1p(exp(-|x|)). log1p(e) = 2 atanh(s) with s = e / (2 + e), at most 1/3, is a short series;
        # unlike log(1 + e) it loses nothing if e is tiny.
        small = tl.exp2(-tl.abs(x) * LOG2E)
        s = small / (2.0 + small)
        q = s * s
        series = 1.0 / 9.0 + q * (1.0 / 11.0 + q * (1.0 / 13.0 + q * (1.0 / 15.0)))
        series = 1.0 + q * (1.0 / 3.0 + q * (1.0 / 5.0 + q * (1.0 / 7.0 + q * series)))
        x = tl.where(x > 0, x, 0.0) + 2.0 * s * series
    return tl.where(here, x, 0.0)


@triton.jit
def locate(runs, channels, states, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return row, run and block of this program, its channels and states, and their offsets in a row of states."""
    blocks = tl.cdiv(channels, BLOCK_D)
    # Blocks of the same events are neighbours, because they share B and C.
    block, rest = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    d, n = block * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    has_d, has_n = d < channels, n < states
    at = (d, n, has_d, has_n, channels, states)
    # The row has 64 bits, and so have all offsets computed from it.
    row, run = (rest // runs).to(tl.int64), rest % runs
    return row, run, block, at, n[:, None] * channels + d[None, :], has_n[:, None] & has_d[None, :]


@triton.jit
def read_real(place, mask):
    """Load real numbers of any type as float32; 0 where the mask is False."""
    return tl.load(place, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def of_states(tensor, at):
    """Load a (D, N) tensor as (N, D)."""
    d, n, has_d, has_n, channels, states = at
    place = d[None, :] * states + n[:, None]
    return read_real(tensor + place, has_n[:, None] & has_d[None, :])


@triton.jit
def store_states(tensor, values, at):
    """Store (N, D) values into a (D, N) tensor."""
    d, n, has_d, has_n, channels, states = at
    tl.store(tensor + d[None, :] * states + n[:, None], values, mask=has_n[:, None] & has_d[None, :])


@triton.jit
def of_channels(tensor, at):
    """Load one number per channel; 0 if the tensor is None."""
    return 0.0 if tensor is None else read_real(tensor + at[0], at[2])


@triton.jit
def read_event(source, event, inside, at):
    """Load an event's u, delta, B, C, z and dy (0 if None), whether it is an event, and whether a history starts.

    Padding, and places outside the run, are no events: nothing is read, and all numbers are 0.
    """
    u, delta, B, C, z, dy, valid, start, z_event, weights_event = source
    d, n, has_d, has_n, channels, states = at
    restart = inside if start is None else tl.load(start + event, mask=inside, other=0) != 0
    here = inside if valid is None else tl.load(valid + event, mask=inside, other=0) != 0
    of_d, of_n = event * channels + d, event * weights_event + n
    # Not `&`: some interpreters turn a block and a scalar into integers, and refuse those as masks.
    has_d, has_n = tl.where(here, has_d, False), tl.where(here, has_n, False)
    u_t = 0.0 if u is None else read_real(u + of_d, has_d)
    delta_t = read_real(delta + of_d, has_d)
    b_t = 0.0 if B is None else read_real(B + of_n, has_n)
    c_t = 0.0 if C is None else read_real(C + of_n, has_n)
    z_t = 0.0 if z is None else read_real(z + event * z_event + d, has_d)
    dy_t = 0.0 if dy is None else read_real(dy + of_d, has_d)
    return u_t, delta_t, b_t, c_t, z_t, dy_t, here, restart


@triton.jit
def read_states(tensor, number, tile, has_tile, at):
    """Load states by their number from a (.., N, D) tensor; zeros if it is None."""
    if tensor is None:
        found = tl.zeros(tile.shape, tl.float32)
    else:
        found = tl.load(tensor + number * at[5] * at[4] + tile, mask=has_tile, other=0.0)
    return found


@triton.jit(do_not_specialize=["length", "runs", "run_events"])
def run_ends(
    u, delta, A, B, bias, valid, start, ends, sums, cuts,
    weights_event, length, channels, states, runs, run_events,
    SOFTPLUS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Compute each run's last state from zero (B, R, N, D), the sum of its step sizes, and if it has a start."""
    row, run, block, at, tile, has_tile = locate(runs, channels, states, BLOCK_D, BLOCK_N)
    a, shift = of_states(A, at) * LOG2E, of_channels(bias, at)
    source = (u, delta, B, None, None, None, valid, start, 0, weights_event)
    state, total = tl.zeros([BLOCK_N, BLOCK_D], tl.float32), tl.zeros([BLOCK_D], tl.float32)
    begin, cut = run * run_events, tl.full([], False, tl.int1)
    end = tl.minimum(begin + run_events, length)
    event = row * length + begin
    coming = read_event(source, event, begin < end, at)
    for t in range(begin, end):
        u_t, delta_t, b_t, _, _, _, here, restart = coming
        # Read one event ahead: the work on this one hides the latency.
        event += 1
        coming = read_event(source, event, t + 1 < end, at)
        step = step_size(delta_t + shift, here, SOFTPLUS)
        if start is not None:
            # Selected, because a product with 0 would let NaN through.
            state = tl.where(restart, 0.0, state)
            cut = cut | restart
        state = tl.exp2(step[None, :] * a) * state + (step * u_t)[None, :] * b_t[:, None]
        total += step
    place = row * runs + run
    tl.store(ends + place * states * channels + tile, state, mask=has_tile)
    tl.store(sums + place * channels + at[0], total, mask=at[2])
    if start is not None:
        tl.store(cuts + place, cut.to(tl.uint8))


@triton.jit(do_not_specialize=["runs"])
def carry(ends, sums, cuts, A, state, begins, channels, states, runs, REVERSE: tl.constexpr, BLOCK: tl.constexpr):
    """Compute the state before each run (B, R, N, D) from the first state; with REVERSE, after each from the last."""
    size = states * channels
    blocks = tl.cdiv(size, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    place = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    here = place < size
    a = read_real(A + place % channels * states + place // channels, here) * LOG2E
    now = tl.zeros([BLOCK], tl.float32) if state is None else tl.load(state + row * size + place, mask=here, other=0.0)
    for i in range(runs):
        run = row * runs + (runs - 1 - i if REVERSE else i)
        tl.store(begins + run * size + place, now, mask=here)
        end = tl.load(ends + run * size + place, mask=here, other=0.0)
        decay = tl.exp2(a * tl.load(sums + run * channels + place % channels, mask=here, other=0.0))
        # A product of decays may overflow although the recurrence does not: skip it if the state is 0.
        passes = now != 0.0
        if cuts is not None:
            passes = passes & (tl.load(cuts + run) == 0)
        now = tl.where(passes, decay * now + end, end)


@triton.jit(do_not_specialize=["length", "runs", "run_chunks", "chunks"])
def outputs(
    u, delta, A, B, C, D, z, bias, valid, start, begins, y, last, kept,
    z_event, weights_event, length, channels, states, runs, run_chunks, chunks,
    SOFTPLUS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Compute y and the last state from each run's first state; keep the state before each chunk (B, K, N, D)."""
    row, run, block, at, tile, has_tile = locate(runs, channels, states, BLOCK_D, BLOCK_N)
    a, shift, skip = of_states(A, at) * LOG2E, of_channels(bias, at), of_channels(D, at)
    source = (u, delta, B, C, z, None, valid, start, z_event, weights_event)
    state = read_states(begins, row * runs + run, tile, has_tile, at)
    begin = run * run_chunks * CHUNK
    end = tl.minimum(begin + run_chunks * CHUNK, length)
    event = row * length + begin
    coming = read_event(source, event, begin < end, at)
    for chunk in range(run * run_chunks, tl.cdiv(end, CHUNK)):
        if kept is not None:
            tl.store(kept + (row * chunks + chunk) * states * channels + tile, state, mask=has_tile)
        for t in range(chunk * CHUNK, tl.minimum((chunk + 1) * CHUNK, end)):
            u_t, delta_t, b_t, c_t, z_t, _, here, restart = coming
            of_d = event * channels + at[0]
            event += 1
            coming = read_event(source, event, t + 1 < end, at)
            step = step_size(delta_t + shift, here, SOFTPLUS)
            if start is not None:
                state = tl.where(restart, 0.0, state)
            state = tl.exp2(step[None, :] * a) * state + (step * u_t)[None, :] * b_t[:, None]
            y_t = tl.sum(state * c_t[:, None], 0) + skip * u_t
            if z is not None:
                y_t *= z_t * sigmoid(z_t)
            tl.store(y + of_d, tl.where(here, y_t, 0.0), mask=at[2])
    if run == runs - 1:
        store_states(last + row * states * channels, state, at)


@triton.jit(do_not_specialize=["length", "runs", "run_events"])
def run_begins(
    delta, A, C, z, dy, bias, valid, start, ends, sums, cuts,
    z_event, weights_event, length, channels, states, runs, run_events,
    SOFTPLUS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Run `run_ends` against time: the gradient of the state before each run, if that of the state after it is zero."""
    row, run, block, at, tile, has_tile = locate(runs, channels, states, BLOCK_D, BLOCK_N)
    a, shift = of_states(A, at) * LOG2E, of_channels(bias, at)
    source = (None, delta, None, C, z, dy, valid, start, z_event, weights_event)
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
    """Return the states after and before an event, its decay, step sizes, delta + bias and loaded numbers."""
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
    """Compute the gradient of the state before an event from the one after it; store the event's own, add to sums."""
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
    # At padding, what passes by (NaN as well) is not a gradient of the padding.
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
    """Run `_undo` over a group of events, last one first; `state` is the state before the group."""
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
    u, delta, A, B, C, D, z, bias, valid, start, kept, dy, dafter, scratch,
    du, ddelta, dA, dB, dC, dD, dz, dbias, dfirst,
    z_event, weights_event, length, channels, states, rows, runs, run_chunks, chunks,
    SOFTPLUS: tl.constexpr, CHUNK: tl.constexpr, GROUP: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Compute all gradients, chunk by chunk from each run's end.

    A chunk's states are recomputed from the kept one: first every GROUP-th, stored in this program's scratch, then,
    against time and in registers, the states in between. dA, dD and dbias are per run, dB and dC per block.
    """
    row, run, block, at, tile, has_tile = locate(runs, channels, states, BLOCK_D, BLOCK_N)
    weights = (of_states(A, at) * LOG2E, of_channels(bias, at), of_channels(D, at))
    inputs = (u, delta, B, None, None, None, valid, start, 0, weights_event)
    source = (u, delta, B, C, z, dy, valid, start, z_event, weights_event)
    results = (du, ddelta, dB, dC, dz)
    place = row * runs + run
    grad = read_states(dafter, place, tile, has_tile, at)
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
        # One thread may load what another stores, and the reverse.
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
