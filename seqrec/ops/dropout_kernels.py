"""Triton kernels of dropout, and the numbers that decide what is dropped, the same as of `seqrec.ops.random`."""

# Annotated arguments are constant at compile time, the others are pointers and numbers.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

# As in `seqrec.ops.random` and `seqrec.ops.dropout`.
DRAWN, WORDS, ROW = tl.constexpr(32), tl.constexpr(16), tl.constexpr(4096)


@triton.jit
def _mixed(x):
    """SplitMix64's finaliser of uint64."""
    x += 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def row_key(seed, row):
    """Return the key of a row, uint64; seed and row are int64."""
    return _mixed(_mixed(seed.to(tl.uint64)) + row.to(tl.uint64))


@triton.jit
def is_kept(key, column, threshold):
    """Return True where the number of a column is at least the threshold; a key for all, or for each column."""
    counter = (column // DRAWN * WORDS + column % WORDS).to(tl.uint32)
    word = counter * 0x9E3779B1 + (key & 0xFFFFFFFF).to(tl.uint32)
    word = (word ^ (word >> 16)) * 0x7FEB352D
    word = (word ^ (word >> 15) ^ (key >> 32).to(tl.uint32)) * 0x846CA68B
    word = word ^ (word >> 16)
    number = tl.where(column // WORDS % 2 == 1, word >> 16, word & 0xFFFF)
    return number.to(tl.int32) >= threshold


@triton.jit
def drop(x, seed, y, count, threshold, scale, BLOCK: tl.constexpr):
    """Write x with elements set to 0, and the others multiplied by `scale`."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    column = (first % ROW).to(tl.int32) + tl.arange(0, BLOCK)
    here = first + tl.arange(0, BLOCK) < count
    value = tl.load(x + first + tl.arange(0, BLOCK), mask=here, other=0.0).to(tl.float32)
    kept = is_kept(row_key(tl.load(seed), first // ROW), column, threshold)
    tl.store(y + first + tl.arange(0, BLOCK), tl.where(kept, value * scale, 0.0), mask=here)
