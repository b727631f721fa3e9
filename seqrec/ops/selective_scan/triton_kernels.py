"""Triton kernels of the selective scan, forward; `triton_gradients` has those of backward, `triton_launch` starts both.

A program is one warp: it walks one run of events of one row for a block of channels, whose states [N, D] are in
registers. Letters as in `selective_scan`, but N and D are a block's: powers of two, of which `states` and
`channels` may fill less. In registers A holds A log2(e), so that a decay is one exp2. Tensors of states that stay
between kernels are (.., N, D), so that neighbouring lanes read neighbouring channels; what callers see is (.., D, N).
Flags are uint8; None is what was not given.
"""

# What is annotated is constant at compile time, the others are pointers and integers. Triton is a subset of Python:
# tuples are joined, not starred, and a `_` that a loop assigns must keep its type.
# ruff: noqa: ANN001, ANN201, RUF059
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def sigmoid(x):
    """Logistic function."""
    # The exponential of a number that is not positive cannot overflow.
    small = tl.exp2(-tl.abs(x) * LOG2E)
    return tl.where(x >= 0, 1.0, small) / (1.0 + small)


@triton.jit
def step_size(x, here, SOFTPLUS: tl.constexpr):
    """Step sizes of delta + bias; 0, at which states pass through, where there is no event."""
    if SOFTPLUS:
        # max(x, 0) + log1p(exp(-|x|)). log1p(e) = 2 atanh(s) with s = e / (2 + e), at most 1/3, is a short series;
        # unlike log(1 + e) it loses nothing where e is tiny.
        small = tl.exp2(-tl.abs(x) * LOG2E)
        s = small / (2.0 + small)
        q = s * s
        series = 1.0 / 9.0 + q * (1.0 / 11.0 + q * (1.0 / 13.0 + q * (1.0 / 15.0)))
        series = 1.0 + q * (1.0 / 3.0 + q * (1.0 / 5.0 + q * (1.0 / 7.0 + q * series)))
        x = tl.where(x > 0, x, 0.0) + 2.0 * s * series
    return tl.where(here, x, 0.0)


@triton.jit
def locate(runs, channels, states, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr):
    """Row, run and block of this program; where its channels and states are in a row of memory and in a tile."""
    blocks = tl.cdiv(channels, BLOCK_D)
    # Blocks of the same events are neighbours, since they share B and C.
    block, rest = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    d, n = block * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    has_d, has_n = d < channels, n < states
    at = (d, n, has_d, has_n, channels, states)
    # The row has 64 bits, and so have all offsets that come of it.
    row, run = (rest // runs).to(tl.int64), rest % runs
    return row, run, block, at, n[:, None] * channels + d[None, :], has_n[:, None] & has_d[None, :]


@triton.jit
def of_states(tensor, at):
    """A number of each state of each channel of a (D, N) tensor, as (N, D)."""
    d, n, has_d, has_n, channels, states = at
    place = d[None, :] * states + n[:, None]
    return tl.load(tensor + place, mask=has_n[:, None] & has_d[None, :], other=0.0)


@triton.jit
def store_states(tensor, values, at):
    """Store (N, D) numbers into a (D, N) tensor."""
    d, n, has_d, has_n, channels, states = at
    tl.store(tensor + d[None, :] * states + n[:, None], values, mask=has_n[:, None] & has_d[None, :])


@triton.jit
def of_channels(tensor, at):
    """A number of each channel, 0 where not given."""
    return 0.0 if tensor is None else tl.load(tensor + at[0], mask=at[2], other=0.0)


@triton.jit
def read_event(source, event, inside, at):
    """An event's u, delta, B, C, z and dy (0 if not given), whether it is one, and whether a history starts there.

    Padding, and what is not inside the run, is none: zeros that nothing was read for.
    """
    u, delta, B, C, z, dy, valid, start = source
    d, n, has_d, has_n, channels, states = at
    restart = inside if start is None else tl.load(start + event, mask=inside, other=0) != 0
    here = inside if valid is None else tl.load(valid + event, mask=inside, other=0) != 0
    of_d, of_n = event * channels + d, event * states + n
    # Not `&`: of a block and a scalar some interpreters make integers, and refuse them as masks.
    has_d, has_n = tl.where(here, has_d, False), tl.where(here, has_n, False)
    u_t = 0.0 if u is None else tl.load(u + of_d, mask=has_d, other=0.0)
    delta_t = tl.load(delta + of_d, mask=has_d, other=0.0)
    b_t = 0.0 if B is None else tl.load(B + of_n, mask=has_n, other=0.0)
    c_t = 0.0 if C is None else tl.load(C + of_n, mask=has_n, other=0.0)
    z_t = 0.0 if z is None else tl.load(z + of_d, mask=has_d, other=0.0)
    dy_t = 0.0 if dy is None else tl.load(dy + of_d, mask=has_d, other=0.0)
    return u_t, delta_t, b_t, c_t, z_t, dy_t, here, restart


@triton.jit
def read_states(tensor, number, tile, has_tile, at):
    """The numbered states of a (.., N, D) tensor, zeros where not given."""
    if tensor is None:
        found = tl.zeros(tile.shape, tl.float32)
    else:
        found = tl.load(tensor + number * at[5] * at[4] + tile, mask=has_tile, other=0.0)
    return found


@triton.jit(do_not_specialize=["length", "runs", "run_events"])
def run_ends(
    u, delta, A, B, bias, valid, start, ends, sums, cuts,
    length, channels, states, runs, run_events,
    SOFTPLUS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """State at each run's end from zero (B, R, N, D), sum of its step sizes, and whether a history starts in it."""
    row, run, block, at, tile, has_tile = locate(runs, channels, states, BLOCK_D, BLOCK_N)
    a, shift = of_states(A, at) * LOG2E, of_channels(bias, at)
    source = (u, delta, B, None, None, None, valid, start)
    state, total = tl.zeros([BLOCK_N, BLOCK_D], tl.float32), tl.zeros([BLOCK_D], tl.float32)
    begin, cut = run * run_events, tl.full([], False, tl.int1)
    end = tl.minimum(begin + run_events, length)
    event = row * length + begin
    coming = read_event(source, event, begin < end, at)
    for t in range(begin, end):
        u_t, delta_t, b_t, _, _, _, here, restart = coming
        # One event ahead, so that the work on this one hides the time it takes.
        event += 1
        coming = read_event(source, event, t + 1 < end, at)
        step = step_size(delta_t + shift, here, SOFTPLUS)
        if start is not None:
            # Chosen, since a product with 0 would let NaN through.
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
def carry(
    ends, sums, cuts, A, state, begins, channels, states, runs, REVERSE: tl.constexpr, BLOCK: tl.constexpr
):
    """State before each run (B, R, N, D) from the one before all; with REVERSE behind each from the one behind all."""
    size = states * channels
    blocks = tl.cdiv(size, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    place = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    here = place < size
    a = tl.load(A + place % channels * states + place // channels, mask=here, other=0.0) * LOG2E
    now = (
        tl.zeros([BLOCK], tl.float32)
        if state is None
        else tl.load(state + row * size + place, mask=here, other=0.0)
    )
    for i in range(runs):
        run = row * runs + (runs - 1 - i if REVERSE else i)
        tl.store(begins + run * size + place, now, mask=here)
        end = tl.load(ends + run * size + place, mask=here, other=0.0)
        decay = tl.exp2(a * tl.load(sums + run * channels + place % channels, mask=here, other=0.0))
        # A product of decays may overflow where each of them, and so the recurrence, does not: none of it with 0.
        passes = now != 0.0
        if cuts is not None:
            passes = passes & (tl.load(cuts + run) == 0)
        now = tl.where(passes, decay * now + end, end)


@triton.jit(do_not_specialize=["length", "runs", "run_chunks", "chunks"])
def outputs(
    u, delta, A, B, C, D, z, bias, valid, start, begins, y, last, kept,
    length, channels, states, runs, run_chunks, chunks,
    SOFTPLUS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Outputs y and the last state from each run's first state; keeps the state before each chunk (B, K, N, D)."""
    row, run, block, at, tile, has_tile = locate(runs, channels, states, BLOCK_D, BLOCK_N)
    a, shift, skip = of_states(A, at) * LOG2E, of_channels(bias, at), of_channels(D, at)
    source = (u, delta, B, C, z, None, valid, start)
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
