"""Triton kernels of the softmax cross-entropy; `cross_entropy` starts them.

Scores of a block of events against a block of candidates exist only in registers: `log_sums` passes all candidates by a
block of events, and `of_candidates` all events by a block of candidates, for which scores are computed once more.
Scores have units of log 2 and are relative to the target's, so the logarithm of the sum is the loss itself, with all
digits of a small one. Candidates, or events, may be cut into parts: sums of parts have a fixed order, which atomic
additions would not. Letters as in `cross_entropy`, but M, C and D are a block's: powers of two, of which the tensors
may fill less. Flags are uint8; None is an argument that was not given.
"""

# Annotated arguments are constant at compile time, the others are pointers and integers.
# ruff: noqa: ANN001, ANN201
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from seqrec.ops.selective_scan.triton_kernels import LOG2E


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """Return a b in float32, of float32 or 16-bit numbers."""
    if PRECISION == "ieee":
        # For the interpreter, which would multiply the bits of bfloat16. Products of such numbers are exact in float32.
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def read_rows(table, row_stride, row, rows, d, width):
    """Load rows (R, D) of a table, 0 beyond its end."""
    at = row.to(tl.int64)[:, None] * row_stride + d[None, :]
    return tl.load(table + at, mask=(row < rows)[:, None] & (d < width)[None, :], other=0.0)


@triton.jit
def read_events(source, m, events):
    """Load what decides the scores of events (M,): the target's score, the own row and the user row."""
    target, own, rows = source
    here = m < events
    of_user = m if rows is None else tl.load(rows + m, mask=here, other=0)
    return (tl.load(target + m, mask=here, other=0.0) * LOG2E, tl.load(own + m, mask=here, other=-1), of_user)


@triton.jit
def relative_scores(states, vectors, of_events, weighting, c, candidates, PRECISION: tl.constexpr):
    """Return scores (M, C) less the target's; -inf where a candidate does not compete."""
    target, own, of_user = of_events
    log_weights, excluded, excluded_row = weighting
    scores = product(states, tl.trans(vectors), PRECISION) * LOG2E
    here = c < candidates
    if log_weights is not None:
        scores += (tl.load(log_weights + c, mask=here, other=0.0).to(tl.float32) * LOG2E)[None, :]
    competes = here[None, :] & (c[None, :] != own[:, None])
    if excluded is not None:
        at = of_user.to(tl.int64)[:, None] * excluded_row + c[None, :]
        competes = competes & (tl.load(excluded + at, mask=here[None, :], other=0) == 0)
    return tl.where(competes, scores - target[:, None], float("-inf"))


@triton.jit(do_not_specialize=["events", "candidates", "part_blocks"])
def log_sums(
    states, vectors, target, own, log_weights, excluded, rows, largest, totals, dstates,
    state_stride, vector_stride, excluded_row, events, candidates, width, part_blocks,
    ONE_PART: tl.constexpr, M: tl.constexpr, C: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the losses in units of log 2, and gradients of states; candidates pass by once.

    With one part `largest` gets the losses, and `totals` nothing. Otherwise both and `dstates` are (parts, events, ..):
    each part's largest score, at least the target's, its sum of weights relative to that, and the weighted sum of
    vectors. The target is in the first part.
    """
    blocks = tl.cdiv(events, M)
    # Blocks of the same candidates are neighbours.
    block, part = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    m, d = block * M + tl.arange(0, M), tl.arange(0, D)
    of_events = read_events((target, own, rows), m, events)
    x = read_rows(states, state_stride, m, events, d, width)
    # No score is below the target's here, so no difference of infinities arises where no candidate competes.
    most = tl.zeros([M], tl.float32)
    # The target's weight of 1; NaN if its score is not finite.
    total = tl.where(part == 0, tl.exp2(of_events[0] - of_events[0]), 0.0)
    mixed = tl.zeros([M, D], tl.float32)
    for i in range(part * part_blocks, tl.minimum((part + 1) * part_blocks, tl.cdiv(candidates, C))):
        c = i * C + tl.arange(0, C)
        v = read_rows(vectors, vector_stride, c, candidates, d, width)
        scores = relative_scores(x, v, of_events, (log_weights, excluded, excluded_row), c, candidates, PRECISION)
        raised = tl.maximum(most, tl.max(scores, 1))
        scale, weights = tl.exp2(most - raised), tl.exp2(scores - raised[:, None])
        total = total * scale + tl.sum(weights, 1)
        if dstates is not None:
            mixed = mixed * scale[:, None] + product(weights.to(v.dtype), v, PRECISION)
        most = raised
    here, first = m < events, part.to(tl.int64) * events
    at = (first + m)[:, None] * width + d[None, :]
    if ONE_PART:
        tl.store(largest + m, most + tl.log2(total), mask=here)
        mixed = mixed / total[:, None]
    else:
        tl.store(largest + first + m, most, mask=here)
        tl.store(totals + first + m, total, mask=here)
    if dstates is not None:
        tl.store(dstates + at, mixed, mask=here[:, None] & (d < width)[None, :])


@triton.jit(do_not_specialize=["events", "candidates", "part_blocks"])
def of_candidates(
    states, vectors, target, own, log_weights, excluded, rows, losses, dvectors,
    state_stride, vector_stride, excluded_row, dvector_stride, events, candidates, width, part_blocks,
    ONE_PART: tl.constexpr, M: tl.constexpr, C: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the gradients of vectors, or write a part's (parts, candidates, width); events pass by once."""
    blocks = tl.cdiv(candidates, C)
    block, part = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    c, d = block * C + tl.arange(0, C), tl.arange(0, D)
    v = read_rows(vectors, vector_stride, c, candidates, d, width)
    grad = tl.zeros([C, D], tl.float32)
    for i in range(part * part_blocks, tl.minimum((part + 1) * part_blocks, tl.cdiv(events, M))):
        m = i * M + tl.arange(0, M)
        x = read_rows(states, state_stride, m, events, d, width)
        of_events = read_events((target, own, rows), m, events)
        scores = relative_scores(x, v, of_events, (log_weights, excluded, excluded_row), c, candidates, PRECISION)
        loss = tl.load(losses + m, mask=m < events, other=float("inf"))
        weights = tl.exp2(scores - loss[:, None])
        grad += product(tl.trans(weights).to(x.dtype), x, PRECISION)
    at = (part.to(tl.int64) * candidates + c)[:, None] * dvector_stride + d[None, :]
    has_at = (c < candidates)[:, None] & (d < width)[None, :]
    if ONE_PART:
        grad += tl.load(dvectors + at, mask=has_at, other=0.0)
    tl.store(dvectors + at, grad, mask=has_at)
