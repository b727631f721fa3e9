"""Triton kernels of the state-space-dual scan, forward and backward; `triton_launch` starts them.

A program walks one run of chunks of one row for one head and a block of its width. It keeps the state (P, N) in
registers and computes a chunk of S events by matrix products, as `chunked` does, with rows i of outputs and columns j
of inputs. Letters as in `ssd_scan`, but P and N are a block's: powers of two, of which `width` and `states` may fill
less. Logarithms are of base 2, so a decay is one exp2; that of an event with a start is -inf, for a decay of exactly 0.
Only sums of logarithms occur, never differences: a huge step costs its successors no digits.

A matrix product would spread a NaN over its whole chunk, as 0 * NaN is NaN. So non-finite numbers are replaced by 0,
and the results that depend on them by NaN afterwards: the later events of a history in forward, and all its events of
a chunk in backward. From chunk to chunk a NaN passes in the state. Flags are uint8; None is an argument that was not
given. Inputs and gradients of them have any type of real numbers; states and all arithmetic are float32.
"""

# Annotated arguments are constant at compile time, the others are pointers and integers. Triton is a subset of Python:
# tuples are joined, not starred, and a `_` that a loop assigns must keep its type.
# ruff: noqa: ANN001, ANN201, RUF059
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from seqrec.ops.selective_scan.triton_kernels import LOG2E, read_real, sigmoid, step_size

# Below it a decay is 0 whatever it is multiplied by; -inf marks starts alone.
LEAST_LOG = tl.constexpr(-1e30)
LARGEST = tl.constexpr(3.4028234663852886e38)


@triton.jit
def locate(runs, heads, width, states, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return row, run, head and block of this program, its width and states, and their offsets in a head's state."""
    blocks = tl.cdiv(width, BLOCK_P)
    # Blocks and heads of the same events are neighbours, because they share B and C.
    block, rest = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    head, rest = rest % heads, rest // heads
    p, n = block * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    tile, has_tile = p[:, None] * states + n[None, :], (p < width)[:, None] & (n < states)[None, :]
    # The row has 64 bits, and so have all offsets computed from it.
    return (rest // runs).to(tl.int64), rest % runs, head, block, p, p < width, n, n < states, tile, has_tile


@triton.jit
def of_head(tensor, head):
    """Load one number of a head; 0 if the tensor is None."""
    return 0.0 if tensor is None else tl.load(tensor + head).to(tl.float32)


@triton.jit
def read_tile(tensor, number, size, tile, has_tile):
    """Load a block's state by its number from a (.., P, N) tensor; zeros if it is None."""
    if tensor is None:
        found = tl.zeros(tile.shape, tl.float32)
    else:
        found = tl.load(tensor + number * size + tile, mask=has_tile, other=0.0)
    return found


@triton.jit
def finite(values):
    """Return values with 0 for those that are not finite."""
    return tl.where(tl.abs(values) <= LARGEST, values, 0.0)


@triton.jit
def unfit(values):
    """Return 1 for rows (S,) of values (S, X) in which a number is not finite, else 0."""
    return tl.max(tl.where(tl.abs(values) <= LARGEST, 0, 1), 1)


@triton.jit
def read_wide(tensor, strides, row, t, here, p, has_p, head, width):
    """Load (S, P) numbers of events; 0 where no event is."""
    # Within a row 32 bits suffice for offsets.
    at = t[:, None] * strides[1] + p[None, :]
    return read_real(tensor + (row * strides[0] + head * width) + at, here[:, None] & has_p[None, :])


@triton.jit
def store_wide(tensor, values, row, t, length, p, has_p, head, heads, width):
    """Store (S, P) numbers of events into a contiguous (B, L, H, P) tensor."""
    at = t[:, None] * (heads * width) + p[None, :]
    has_at = (t < length)[:, None] & has_p[None, :]
    tl.store(tensor + (row * length * heads + head) * width + at, values, mask=has_at)


@triton.jit
def read_steps(source, row, begin, length, head, a, shift, SOFTPLUS: tl.constexpr, S: tl.constexpr):
    """Load what decides the decays of a chunk.

    Returns:
        Places of events, which are there, delta with its bias, finite step sizes, 1 where they were not finite, the
        logarithms of decays, and the number of starts in the chunk up to each event.
    """
    delta, valid, start, strides = source
    t = begin + tl.arange(0, S)
    inside = t < length
    here = inside if valid is None else tl.load(valid + row * length + t, mask=inside, other=0) != 0
    raw = read_real(delta + row * strides[0] + t * strides[1] + head, here) + shift
    step = step_size(raw, here, SOFTPLUS)
    bad = tl.where(tl.abs(step) <= LARGEST, 0, 1)
    step = finite(step)
    log = tl.maximum(step * a, LEAST_LOG)
    count = tl.zeros([S], tl.int32)
    if start is not None:
        starts = tl.load(start + row * length + t, mask=inside, other=0).to(tl.int32)
        log = tl.where(starts != 0, float("-inf"), log)
        count = tl.cumsum(starts, 0)
    return t, here, raw, step, bad, log, count


@triton.jit
def decays_after(log, t):
    """Return the product (S,) of the decays of the events after each."""
    return tl.exp2(tl.sum(tl.where(t[:, None] > t[None, :], log[:, None], 0.0), 0))


@triton.jit
def mixing(b, c, log, count, t, PRECISION: tl.constexpr):
    """Return (S, S) weights of event j in the output of event i; the decays of events j + 1 .. i; if j reaches i."""
    # Compared are the events themselves: numbers that are the same for all chunks would occupy registers all the time.
    reach = (t[:, None] >= t[None, :]) & (count[:, None] == count[None, :])
    logs = tl.cumsum(tl.where(t[:, None] > t[None, :], log[:, None], 0.0), 0)
    between = tl.where(reach, tl.exp2(logs), 0.0)
    return tl.where(reach, between * tl.dot(c, tl.trans(b), input_precision=PRECISION), 0.0), between, reach


@triton.jit
def whether(flags):
    """Return True if a flag (S,) is not 0."""
    return tl.max(flags, 0) != 0


@triton.jit
def advance(state, driven, bad, B, log, count, t, PRECISION: tl.constexpr):
    """Return the state (P, N) after a chunk."""
    total = tl.sum(log, 0)
    last = tl.max(count, 0)
    added = tl.dot(tl.trans(driven * decays_after(log, t)[:, None]), B, input_precision=PRECISION)
    added = tl.where(whether(tl.where(count == last, bad, 0)), float("nan"), added)
    # Selected, because a product with 0 would let NaN through.
    return tl.where(last > 0, 0.0, tl.exp2(total) * state) + added


@triton.jit(do_not_specialize=["length", "runs", "run_chunks", "chunks"])
def run_ends(
    x, delta, A, B, bias, valid, start, ends, logs,
    x_row, x_event, delta_row, delta_event, B_row, B_event,
    length, heads, width, groups, states, runs, run_chunks, chunks,
    SOFTPLUS: tl.constexpr, S: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute each run's last state from zero (B, R, H, P, N), and the sum of its logarithms (B, R, H)."""
    row, run, head, block, p, has_p, n, has_n, tile, has_tile = locate(runs, heads, width, states, BLOCK_P, BLOCK_N)
    a, shift = of_head(A, head) * LOG2E, of_head(bias, head)
    steps = (delta, valid, start, (delta_row, delta_event))
    group = head // (heads // groups)
    state, total = tl.zeros([BLOCK_P, BLOCK_N], tl.float32), 0.0
    for chunk in range(run * run_chunks, tl.minimum((run + 1) * run_chunks, chunks)):
        begin = chunk * S
        t, here, raw, step, bad, log, count = read_steps(steps, row, begin, length, head, a, shift, SOFTPLUS, S)
        b = read_wide(B, (B_row, B_event), row, t, here, n, has_n, group, states)
        driven = step[:, None] * read_wide(x, (x_row, x_event), row, t, here, p, has_p, head, width)
        bad = tl.maximum(bad, tl.maximum(unfit(b), unfit(driven)))
        state = advance(state, finite(driven), bad, finite(b), log, count, t, PRECISION)
        total += tl.sum(log, 0)
    place = (row * runs + run) * heads + head
    tl.store(ends + place * width * states + tile, state, mask=has_tile)
    if block == 0:
        tl.store(logs + place, total)


@triton.jit(do_not_specialize=["runs"])
def carry(ends, logs, first, begins, heads, size, runs, REVERSE: tl.constexpr, BLOCK: tl.constexpr):
    """Compute the state before each run (B, R, H, P * N) from the first one (B, H, P * N); None is zero."""
    wide = heads.to(tl.int64) * size
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, place = place // (tl.cdiv(wide, BLOCK) * BLOCK), place % (tl.cdiv(wide, BLOCK) * BLOCK)
    here = place < wide
    state = tl.zeros([BLOCK], tl.float32)
    if first is not None:
        state = tl.load(first + row * wide + place, mask=here, other=0.0)
    for i in range(runs):
        run = row * runs + (runs - 1 - i if REVERSE else i)
        tl.store(begins + run * wide + place, state, mask=here)
        log = tl.load(logs + run * heads + place // size, mask=here, other=0.0)
        end = tl.load(ends + run * wide + place, mask=here, other=0.0)
        state = tl.where(log == float("-inf"), 0.0, tl.exp2(log) * state) + end


@triton.jit
def mix(driven, first, c, log, scores, lost, PRECISION: tl.constexpr):
    """Return outputs (S, P) without skip and gate; NaN where `lost` is not 0."""
    before = tl.exp2(tl.cumsum(log, 0))
    y = tl.dot(scores, driven, input_precision=PRECISION)
    y += before[:, None] * tl.dot(c, tl.trans(first), input_precision=PRECISION)
    return tl.where((lost != 0)[:, None], float("nan"), y)


@triton.jit(do_not_specialize=["length", "runs", "run_chunks", "chunks"])
def outputs(
    x, delta, A, B, C, D, z, bias, valid, start, begins, y, last, kept,
    x_row, x_event, delta_row, delta_event, B_row, B_event, C_row, C_event, z_row, z_event,
    length, heads, width, groups, states, runs, run_chunks, chunks,
    SOFTPLUS: tl.constexpr, S: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute outputs, the last state, and the state before each chunk (B, K, H, P, N), if `kept` is not None."""
    row, run, head, block, p, has_p, n, has_n, tile, has_tile = locate(runs, heads, width, states, BLOCK_P, BLOCK_N)
    a, shift, skip = of_head(A, head) * LOG2E, of_head(bias, head), of_head(D, head)
    steps = (delta, valid, start, (delta_row, delta_event))
    group, size = head // (heads // groups), width * states
    state = read_tile(begins, (row * runs + run) * heads + head, size, tile, has_tile)
    for chunk in range(run * run_chunks, tl.minimum((run + 1) * run_chunks, chunks)):
        if kept is not None:
            tl.store(kept + ((row * chunks + chunk) * heads + head) * size + tile, state, mask=has_tile)
        begin = chunk * S
        t, here, raw, step, bad, log, count = read_steps(steps, row, begin, length, head, a, shift, SOFTPLUS, S)
        b = read_wide(B, (B_row, B_event), row, t, here, n, has_n, group, states)
        c = read_wide(C, (C_row, C_event), row, t, here, n, has_n, group, states)
        value = read_wide(x, (x_row, x_event), row, t, here, p, has_p, head, width)
        driven = step[:, None] * value
        bad = tl.maximum(bad, tl.maximum(unfit(b), unfit(driven)))
        lost = tl.where(whether(unfit(state)) & (count == 0), 1, unfit(c))
        driven, b, c = finite(driven), finite(b), finite(c)
        scores, between, reach = mixing(b, c, log, count, t, PRECISION)
        lost = tl.maximum(lost, tl.max(tl.where(reach, bad[None, :], 0), 1))
        out = mix(driven, finite(state), c, log, scores, lost, PRECISION) + skip * value
        if z is not None:
            gate = read_wide(z, (z_row, z_event), row, t, here, p, has_p, head, width)
            out *= gate * sigmoid(gate)
        out = tl.where(here[:, None], out, 0.0)
        store_wide(y, out, row, t, length, p, has_p, head, heads, width)
        state = advance(state, driven, bad, b, log, count, t, PRECISION)
    if run == runs - 1:
        tl.store(last + (row * heads + head) * size + tile, state, mask=has_tile)


@triton.jit
def read_outer(source, row, t, here, p, has_p, head, width):
    """Load the gradient of outputs; return it before the gate, and what the outputs before the gate give the gate's."""
    dy, z, dy_strides, z_strides = source
    dout = read_wide(dy, dy_strides, row, t, here, p, has_p, head, width)
    dgate = dout
    if z is not None:
        gate = read_wide(z, z_strides, row, t, here, p, has_p, head, width)
        open_ = sigmoid(gate)
        dgate = dout * open_ * (1.0 + gate * (1.0 - open_))
        dout *= gate * open_
    return dout, dgate


@triton.jit
def retreat(dstate, dout, bad, c, log, count, PRECISION: tl.constexpr):
    """Return the gradient of the state (P, N) before a chunk from that of the state after it."""
    before = tl.exp2(tl.cumsum(log, 0))
    received = tl.dot(tl.trans(dout * before[:, None]), c, input_precision=PRECISION)
    received = tl.where(whether(tl.where(count == 0, bad, 0)), float("nan"), received)
    return tl.where(tl.max(count, 0) > 0, 0.0, tl.exp2(tl.sum(log, 0)) * dstate) + received


@triton.jit(do_not_specialize=["length", "runs", "run_chunks", "chunks"])
def run_begins(
    delta, A, C, z, dy, bias, valid, start, begins, logs,
    delta_row, delta_event, C_row, C_event, z_row, z_event, dy_row, dy_event,
    length, heads, width, groups, states, runs, run_chunks, chunks,
    SOFTPLUS: tl.constexpr, S: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of the state before each run if that of its last state is zero; otherwise as `run_ends`."""
    row, run, head, block, p, has_p, n, has_n, tile, has_tile = locate(runs, heads, width, states, BLOCK_P, BLOCK_N)
    a, shift = of_head(A, head) * LOG2E, of_head(bias, head)
    steps = (delta, valid, start, (delta_row, delta_event))
    outer = (dy, z, (dy_row, dy_event), (z_row, z_event))
    group = head // (heads // groups)
    dstate, total = tl.zeros([BLOCK_P, BLOCK_N], tl.float32), 0.0
    end = tl.minimum((run + 1) * run_chunks, chunks)
    for back in range(1, end - run * run_chunks + 1):
        begin = (end - back) * S
        t, here, raw, step, bad, log, count = read_steps(steps, row, begin, length, head, a, shift, SOFTPLUS, S)
        c = read_wide(C, (C_row, C_event), row, t, here, n, has_n, group, states)
        dout, dgate = read_outer(outer, row, t, here, p, has_p, head, width)
        bad = tl.maximum(bad, tl.maximum(unfit(c), unfit(dout)))
        dstate = retreat(dstate, finite(dout), bad, finite(c), log, count, PRECISION)
        total += tl.sum(log, 0)
    place = (row * runs + run) * heads + head
    tl.store(begins + place * width * states + tile, dstate, mask=has_tile)
    if block == 0:
        tl.store(logs + place, total)


@triton.jit
def of_logarithms(dmixed, mixed, had, c, sent, driven, t):
    """Return gradients (S,) of the logarithms of the decays, without the part of what passes through the chunk.

    The decay of event k scales every term from an event before k, or from the state before the chunk, to event k or
    later, or to the state after the chunk.
    """
    # Sums of each row's columns before k, exact products with 0 and 1.
    pairs = tl.dot(dmixed * mixed, tl.where(t[:, None] < t[None, :], 1.0, 0.0), input_precision="tf32x3")
    arriving, leaving = tl.sum(had * c, 1), tl.sum(sent * driven, 1)
    return tl.sum(tl.where(t[:, None] >= t[None, :], pairs + arriving[:, None], leaving[:, None]), 0)


@triton.jit
def of_chunk(b, c, driven, dout, first, dlast, mixed, between, log, count, t, PRECISION: tl.constexpr):
    """Return gradients of what a chunk adds to the state, of the logarithms of decays, of B and of C."""
    after, before = decays_after(log, t)[:, None], tl.exp2(tl.cumsum(log, 0))[:, None]
    dmixed = tl.dot(dout, tl.trans(driven), input_precision=PRECISION)
    dscores = dmixed * between
    sent = after * tl.dot(b, tl.trans(dlast), input_precision=PRECISION)
    had = before * tl.dot(dout, first, input_precision=PRECISION)
    ddriven = tl.dot(tl.trans(mixed), dout, input_precision=PRECISION) + sent
    dc = tl.dot(dscores, b, input_precision=PRECISION) + had
    db = tl.dot(tl.trans(dscores), c, input_precision=PRECISION)
    db += after * tl.dot(driven, dlast, input_precision=PRECISION)
    through = tl.where(tl.max(count, 0) > 0, 0.0, tl.exp2(tl.sum(log, 0)))
    dlog = of_logarithms(dmixed, mixed, had, c, sent, driven, t) + through * tl.sum(tl.sum(first * dlast, 1), 0)
    return ddriven, dlog, db, dc


@triton.jit
def lost_events(bad, count, first, dstate):
    """Return True for events of a history of which something in the chunk is not finite."""
    lost = tl.max(tl.where(count[:, None] == count[None, :], bad[None, :], 0), 1)
    lost = tl.where(whether(unfit(first)) & (count == 0), 1, lost)
    return tl.where(whether(unfit(dstate)) & (count == tl.max(count, 0)), 1, lost) != 0


@triton.jit
def settled(values, here, lost):
    """Return gradients (S, X), 0 at padding, where what passes by is no gradient of it, and NaN where lost."""
    return tl.where(here[:, None], tl.where(lost[:, None], float("nan"), values), 0.0)


@triton.jit
def store_sums(sums, every, place, values):
    """Store this program's sums, each `every` numbers after the one before."""
    for i in tl.static_range(len(values)):
        tl.store(sums + i * every + place, values[i])


@triton.jit(do_not_specialize=["length", "runs", "run_chunks", "chunks", "rows"])
def gradients(
    x, delta, A, B, C, D, z, bias, valid, start, kept, dy, dafter,
    dx, ddelta, dB, dC, dz, sums, dfirst,
    x_row, x_event, delta_row, delta_event, B_row, B_event, C_row, C_event, z_row, z_event, dy_row, dy_event,
    rows, length, heads, width, groups, states, runs, run_chunks, chunks,
    SOFTPLUS: tl.constexpr, S: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute all gradients, chunk by chunk from each run's end.

    ddelta is a part per block (blocks, B, L, H); dB and dC are a part per block and head of a group, (blocks * H / G,
    B, L, G, N); `sums` has the gradients of A, D and bias by program, (3, B * R, blocks, H).
    """
    row, run, head, block, p, has_p, n, has_n, tile, has_tile = locate(runs, heads, width, states, BLOCK_P, BLOCK_N)
    a, shift, skip = of_head(A, head) * LOG2E, of_head(bias, head), of_head(D, head)
    steps, outer = (delta, valid, start, (delta_row, delta_event)), (dy, z, (dy_row, dy_event), (z_row, z_event))
    members, size = heads // groups, width * states
    group, part = head // members, (block * members + head % members) * rows + row
    dstate = read_tile(dafter, (row * runs + run) * heads + head, size, tile, has_tile)
    dA, dD, dshift = 0.0, 0.0, 0.0
    end = tl.minimum((run + 1) * run_chunks, chunks)
    for back in range(1, end - run * run_chunks + 1):
        begin = (end - back) * S
        t, here, raw, step, bad, log, count = read_steps(steps, row, begin, length, head, a, shift, SOFTPLUS, S)
        first = read_tile(kept, (row * chunks + end - back) * heads + head, size, tile, has_tile)
        b = read_wide(B, (B_row, B_event), row, t, here, n, has_n, group, states)
        c = read_wide(C, (C_row, C_event), row, t, here, n, has_n, group, states)
        value = read_wide(x, (x_row, x_event), row, t, here, p, has_p, head, width)
        dout, dgate = read_outer(outer, row, t, here, p, has_p, head, width)
        dD += tl.sum(tl.sum(dout * value, 1), 0)
        dskip, driven = skip * dout, step[:, None] * value
        bad = tl.maximum(bad, tl.maximum(unfit(c), unfit(dout)))
        lost = lost_events(tl.maximum(bad, tl.maximum(unfit(b), unfit(driven))), count, first, dstate)
        b, c, dout, driven, first = finite(b), finite(c), finite(dout), finite(driven), finite(first)
        mixed, between, reach = mixing(b, c, log, count, t, PRECISION)
        if z is not None:
            y = mix(driven, first, c, log, mixed, tl.zeros([S], tl.int32), PRECISION) + skip * value
            store_wide(dz, settled(dgate * y, here, lost), row, t, length, p, has_p, head, heads, width)
        of_last = finite(dstate)
        ddriven, dlog, db, dc = of_chunk(b, c, driven, dout, first, of_last, mixed, between, log, count, t, PRECISION)
        dvalue = settled(ddriven * step[:, None] + dskip, here, lost)
        store_wide(dx, dvalue, row, t, length, p, has_p, head, heads, width)
        store_wide(dB, settled(db, here, lost), part, t, length, n, has_n, group, groups, states)
        store_wide(dC, settled(dc, here, lost), part, t, length, n, has_n, group, groups, states)
        dlog = tl.where(here, tl.where(lost, float("nan"), dlog), 0.0)
        dstep = tl.sum(tl.where(here[:, None], ddriven * value, 0.0), 1) + dlog * of_head(A, head)
        dstep = tl.where(here, dstep * sigmoid(raw) if SOFTPLUS else dstep, 0.0)
        tl.store(ddelta + ((block * rows + row) * length + t) * heads + head, dstep, mask=t < length)
        dA, dshift = dA + tl.sum(dlog * step, 0), dshift + tl.sum(dstep, 0)
        dstate = retreat(dstate, dout, bad, c, log, count, PRECISION)
    blocks = tl.cdiv(width, BLOCK_P)
    place = ((row * runs + run) * blocks + block) * heads + head
    store_sums(sums, rows * runs * blocks * heads, place, (dA, dD, dshift))
    if run == 0:
        tl.store(dfirst + (row * heads + head) * size + tile, dstate, mask=has_tile)
