"""Triton kernels of the causal convolution; `triton_launch` starts them.

A program takes a block of events of one row, and a block of their channels. Events are numbered among the row's valid
ones: a window covers the inputs of the W numbers up to its own, at any places, and numbers below 0 are the initial
state. `order` is the place of each number, valid events before padding; `counts` is the number of valid events;
`starts` counts the starts up to each place, and a window skips inputs of another count. None is an argument that was
not given; without `order`, numbers are places. Tensors have any type of real numbers; sums are float32.
"""

# Annotated arguments are constant at compile time, the others are pointers and integers. Triton is a subset of Python:
# tuples are joined, not starred, and no function returns None.
# ruff: noqa: ANN001, ANN201, ANN202, RUF005
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from seqrec.ops.selective_scan.triton_kernels import read_real


@triton.jit
def locate(blocks, channels, BLOCK_D: tl.constexpr):
    """Return the row of this program, its block of events, both as one number, its channels and if they exist."""
    # Blocks of channels of the same events are neighbours.
    strips = tl.cdiv(channels, BLOCK_D)
    strip, place = tl.program_id(0) % strips, tl.program_id(0) // strips
    d = strip * BLOCK_D + tl.arange(0, BLOCK_D)
    # 64 bits, and so have all offsets computed from it.
    place = place.to(tl.int64)
    return place // blocks, place % blocks, place, d, d < channels


@triton.jit
def valid_events(counts, row, length):
    """Return the number of valid events of a row."""
    return (length if counts is None else tl.load(counts + row)).to(tl.int64)


@triton.jit
def place_of(source, k, exists):
    """Return the places of numbers, counted over all rows."""
    order, row, length = source[2], source[4], source[6]
    return row * length + (k if order is None else tl.load(order + row * length + k, mask=exists, other=0))


@triton.jit
def read(source, k, d, has_d, TAPS: tl.constexpr):
    """Load the inputs (K, D) of numbers, 0 if they do not exist, and the starts (K,) up to them."""
    x, state, order, starts, row, count, length, row_stride, event_stride, channels = source
    here = (k >= 0) & (k < count)
    place = k if order is None else tl.load(order + row * length + k, mask=here, other=0)
    at = row * row_stride + place[:, None] * event_stride + d[None, :]
    inputs = read_real(x + at, here[:, None] & has_d[None, :])
    if state is not None:
        # The newest input of the state has the number -1.
        i = k + (TAPS - 1)
        before = (k < 0) & (i >= 0)
        at = (row * (TAPS - 1) + i)[:, None] * channels + d[None, :]
        older = read_real(state + at, before[:, None] & has_d[None, :])
        inputs = tl.where(before[:, None], older, inputs)
    passed = here if starts is None else tl.load(starts + row * length + place, mask=here, other=0)
    return inputs, passed


@triton.jit
def passed_in_all(source):
    """Return the number of starts in the row."""
    starts, row, length = source[3], source[4], source[6]
    return 0 if starts is None else tl.load(starts + row * length + length - 1)


@triton.jit
def in_sight(source, event, passed, values):
    """Return values (K, D) if their event has the number of starts `passed`, else 0."""
    # Selected, because a product with 0 would let NaN through.
    return values if source[3] is None else tl.where((event[1] == passed)[:, None], values, 0.0)


@triton.jit
def read_weights(weight, bias, d, has_d, TAPS: tl.constexpr):
    """Load each tap's weights (1, D), oldest first, and last the bias, 0 if it is None."""
    weights = ()
    for w in tl.static_range(TAPS):
        weights = weights + (read_real(weight + d * TAPS + w, has_d)[None, :],)
    shift = tl.zeros_like(weights[0]) if bias is None else read_real(bias + d, has_d)[None, :]
    return weights + (shift,)


@triton.jit
def convolve(source, weights, events, first: tl.constexpr, TAPS: tl.constexpr):
    """Return sums (K, D) of the windows that begin with event number `first` of those read, before SiLU."""
    total = weights[TAPS]
    newest = events[first + TAPS - 1]
    for w in tl.static_range(TAPS):
        total += in_sight(source, events[first + w], newest[1], events[first + w][0]) * weights[w]
    return total


@triton.jit
def _store_last(last, source, d, has_d, TAPS: tl.constexpr, KEPT: tl.constexpr):
    row, count, channels = source[4], source[5], source[9]
    i = tl.arange(0, KEPT)
    event = read(source, count - (TAPS - 1) + i, d, has_d, TAPS)
    at = (row * (TAPS - 1) + i)[:, None] * channels + d[None, :]
    kept = in_sight(source, event, passed_in_all(source), event[0])
    tl.store(last + at, kept, mask=(i < TAPS - 1)[:, None] & has_d[None, :])


@triton.jit(do_not_specialize=["length", "blocks"])
def conv_outputs(
    x, weight, bias, state, order, counts, starts, out, last,
    row_stride, event_stride, length, channels, blocks,
    SILU: tl.constexpr, TAPS: tl.constexpr, KEPT: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute outputs, and in each row's first programs the last state; KEPT is its size as a power of two."""
    row, block, _, d, has_d = locate(blocks, channels, BLOCK_D)
    count = valid_events(counts, row, length)
    source = (x, state, order, starts, row, count, length, row_stride, event_stride, channels)
    k = block * BLOCK_L + tl.arange(0, BLOCK_L)
    events = ()
    for w in tl.static_range(TAPS):
        events = events + (read(source, k + (w - TAPS + 1), d, has_d, TAPS),)
    total = convolve(source, read_weights(weight, bias, d, has_d, TAPS), events, 0, TAPS)
    if SILU:
        total *= tl.sigmoid(total)
    exists = k < length
    at = place_of(source, k, exists)[:, None] * channels + d[None, :]
    tl.store(out + at, tl.where((k < count)[:, None], total, 0.0), mask=exists[:, None] & has_d[None, :])
    if TAPS > 1 and block == 0:
        _store_last(last, source, d, has_d, TAPS, KEPT)


@triton.jit
def _of_sums(dout, source, weights, events, k, d, has_d, j: tl.constexpr, SILU: tl.constexpr, TAPS: tl.constexpr):
    """Return gradients (K, D) of the sums of the windows that end j numbers after k; 0 if no event is there."""
    end = k + j
    here = (end >= 0) & (end < source[5])
    at = place_of(source, end, here)[:, None] * source[9] + d[None, :]
    dsum = read_real(dout + at, here[:, None] & has_d[None, :])
    if SILU:
        total = convolve(source, weights, events, j, TAPS)
        open_ = tl.sigmoid(total)
        # The sum may be NaN if no event is there.
        dsum = tl.where(here[:, None], dsum * open_ * (1.0 + total * (1.0 - open_)), 0.0)
    return dsum


@triton.jit
def _of_last(dlast, source, own, k, d, has_d, TAPS: tl.constexpr):
    """Return gradients (K, D) of inputs through the last state."""
    row, count, channels = source[4], source[5], source[9]
    i = k - count + (TAPS - 1)
    kept = (i >= 0) & (k < count)
    at = (row * (TAPS - 1) + i)[:, None] * channels + d[None, :]
    grad = read_real(dlast + at, kept[:, None] & has_d[None, :])
    return in_sight(source, own, passed_in_all(source), grad)


@triton.jit(do_not_specialize=["length", "blocks"])
def conv_gradients(
    x, weight, bias, state, order, counts, starts, dout, dlast, dx, dstate, parts,
    row_stride, event_stride, length, channels, blocks,
    SILU: tl.constexpr, TAPS: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute gradients of inputs, of the initial state (numbers below 0), and a block's parts of the weights'.

    Parts are (B * blocks, D * W + D): the taps' and the bias's.
    """
    row, block, slice_, d, has_d = locate(blocks, channels, BLOCK_D)
    count = valid_events(counts, row, length)
    source = (x, state, order, starts, row, count, length, row_stride, event_stride, channels)
    weights = read_weights(weight, bias, d, has_d, TAPS)
    k = block * BLOCK_L + tl.arange(0, BLOCK_L) - (0 if state is None else TAPS - 1)
    # All inputs of the windows that contain k: their sums are recomputed.
    events = ()
    for w in tl.static_range(2 * TAPS - 1):
        events = events + (read(source, k + (w - TAPS + 1), d, has_d, TAPS),)
    own = events[TAPS - 1]
    parts += slice_ * channels * (TAPS + 1)
    grad = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)
    for j in tl.static_range(TAPS):
        dsum = _of_sums(dout, source, weights, events, k, d, has_d, j, SILU, TAPS)
        grad += in_sight(source, events[TAPS - 1 + j], own[1], dsum) * weights[TAPS - 1 - j]
        if j == 0:
            tl.store(parts + channels * TAPS + d, tl.sum(dsum, 0), mask=has_d)
            for w in tl.static_range(TAPS):
                part = dsum * in_sight(source, events[w], own[1], events[w][0])
                # A state that no window contains may be NaN.
                part = tl.sum(tl.where((k >= 0)[:, None], part, 0.0), 0)
                tl.store(parts + d * TAPS + w, part, mask=has_d)
    if dlast is not None:
        grad += _of_last(dlast, source, own, k, d, has_d, TAPS)
    exists = (k >= 0) & (k < length)
    at = place_of(source, k, exists)[:, None] * channels + d[None, :]
    tl.store(dx + at, tl.where((k < count)[:, None], grad, 0.0), mask=exists[:, None] & has_d[None, :])
    if state is not None:
        at = (row * (TAPS - 1) + k + (TAPS - 1))[:, None] * channels + d[None, :]
        tl.store(dstate + at, grad, mask=(k < 0)[:, None] & has_d[None, :])
