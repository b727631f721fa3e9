"""Softmax cross-entropy of events against many candidates, with its gradients, without holding all scores at once.

Shapes: M events, C candidates, D width, B users; m events of one block of scores.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.ops.backends import Backend, Backends
from seqrec.ops.block_sizes import block_sizes
from seqrec.ops.compiled_library import call, compiled_backend, contiguous
from seqrec.ops.linear import add_product, linear
from seqrec.ops.problems import at_least_float32
from seqrec.ops.triton_support import (
    LOW_PRECISION,
    dot_precision,
    interprets,
    launching_on,
    power_of_two,
    programs_at_once,
    triton_backend,
)

__all__ = ["CROSS_ENTROPY_BACKENDS", "CrossEntropyProblem", "cross_entropy"]

# Scores are computed in units of log 2: 2^x takes a quarter of the time of e^x on a CPU.
UNITS = math.log2(math.e)
# Candidates of a panel, `ACROSS` of `cpp/cross_entropy.h`, and events whose weights a thread has at a time, in whole
# blocks of the rows that a product takes.
ACROSS, TILE, ROWS = 64, 24, 6
# Most numbers of a table that stays in a core's cache; for larger ones the compiled library takes longer than torch.
MOST_NUMBERS = 1 << 19
# Most bytes of the scores that `reference` holds at a time on a GPU; "auto" then prefers kernels that hold none.
MOST_BYTES = 1 << 30
# Widest vectors of the Triton kernels: a block of wider ones does not fit into the registers.
MAX_WIDTH = 256
TOO_WIDE = f"vectors wider than {MAX_WIDTH}"


class CrossEntropyProblem(NamedTuple):
    """What `cross_entropy` computes.

    Attributes:
        states: (M, D), in the type that scores have.
        vectors: (C, D) of the candidates, in the same type.
        target_scores: (M,), at least float32.
        own: (M,) int64, row of `vectors` that is the event's own target, which does not compete with itself; outside of
            0..C - 1 if the candidates lack it.
        block: Events with scores in memory at a time; "triton" holds none.
        to_states: Whether the gradient of states is wanted.
        to_vectors: (C, D) to which the gradient of vectors is added; None if it is not wanted.
        log_weights: (C,) added to all scores of a candidate; None adds nothing.
        excluded: (B, C) bool, True if a user's candidate does not compete; None excludes none.
        rows: (M,) user row of each event; needed with `excluded`.
    """

    states: Tensor
    vectors: Tensor
    target_scores: Tensor
    own: Tensor
    block: int
    to_states: bool = False
    to_vectors: Tensor | None = None
    log_weights: Tensor | None = None
    excluded: Tensor | None = None
    rows: Tensor | None = None


Losses = tuple[Tensor, "Tensor | None"]


def cross_entropy(problem: CrossEntropyProblem, *, backend: str = "auto") -> Losses:
    """Return `-log(exp(target) / (exp(target) + sum over candidates of weight * exp(score)))` of each event.

    Backends, in the order in which "auto" prefers them:

    - "cpp": compiled library, float32 on CPU, without `excluded` and `torch.compile`. Weights of a few events become
      the states' gradient while they are in a core's cache. The same bits with any number of threads and any `block`,
      but for the gradient of vectors, whose sum is taken block by block.
    - "reference": torch, any device and dtype: three matrix products a block, and passes over its scores. "auto" takes
      it too if `vectors` has more than 2^19 numbers, which leave the cache.
    - "triton": kernels for float32, float16 and bfloat16 on CUDA, up to 256 numbers a vector, without `torch.compile`.
      Scores are never written to memory: one pass over the candidates for losses and the gradient of states, and one
      over the events, which computes the scores again, for that of vectors. Sums are float32, and the bits the same
      each time. A product of float32 is three TF32 products, or one if `torch.set_float32_matmul_precision` allows it.
      It has no times on a GPU yet, so "auto" takes it only if a block of the reference's scores exceeds 1 GiB.

    Args:
        problem: See `CrossEntropyProblem`.
        backend: A name above, or "auto": the environment variable SEQREC_CROSS_ENTROPY_BACKEND if set, else the first
            that can compute this.

    Returns:
        Losses (M,) in the type of `target_scores`, and the gradient of their sum by states (M, D), or None.

    Raises:
        InputError: if the backend is unknown, missing or cannot compute this.

    Example:
        >>> import torch
        >>> from seqrec.ops.cross_entropy import CrossEntropyProblem, cross_entropy
        >>> states, vectors, own = torch.tensor([[1.0, 2.0]]), torch.eye(2), torch.tensor([1])
        >>> cross_entropy(CrossEntropyProblem(states, vectors, torch.tensor([2.0]), own, block=1))[0]
        tensor([0.3133])
    """
    compiling = torch.compiler.is_compiling()
    unusual = {
        "excluded": problem.excluded is not None,
        "compilation": compiling,
        TOO_WIDE: problem.states.shape[1] > MAX_WIDTH,
    }
    given = tuple(name for name, holds in unusual.items() if holds)
    if backend == "auto" and not compiling and not os.environ.get(CROSS_ENTROPY_BACKENDS.variable):
        backend = _preferred(problem, given)
    losses: Losses = CROSS_ENTROPY_BACKENDS.run(
        problem, backend, exported=cross_entropy_reference, given=given, precise=False
    )
    return losses


def _preferred(problem: CrossEntropyProblem, given: tuple[str, ...]) -> str:
    """Return the backend for the size of a problem; "auto" if the size does not matter."""
    device = problem.states.device.type
    if device == "cpu":
        return "reference" if problem.vectors.numel() > MOST_NUMBERS else "auto"
    held = min(problem.block, len(problem.states)) * len(problem.vectors) * problem.target_scores.element_size()
    unusable = CROSS_ENTROPY_BACKENDS["triton"].why_unusable(device, problem.states.dtype, given)
    return "triton" if held > MOST_BYTES and unusable is None else "auto"


def cross_entropy_reference(problem: CrossEntropyProblem) -> Losses:
    """Compute `cross_entropy` by torch."""
    states, vectors, target_scores, *_ = problem
    losses = torch.empty_like(target_scores)
    to_states = torch.empty_like(states, dtype=target_scores.dtype) if problem.to_states else None
    for events in _blocks(problem):
        block = states[events] * UNITS
        scores = _scores(block, problem, events)
        own = target_scores[events].unsqueeze(1) * UNITS
        largest = torch.maximum(scores.amax(1, keepdim=True), own)
        weights = scores.sub_(largest).exp2_()
        total = weights.sum(1, keepdim=True) + (own - largest).exp2()
        losses[events] = ((total.log2() + (largest - own)) / UNITS).squeeze(1)
        # Probabilities are weights / total. Dividing the narrow side saves a pass over the block.
        weights = weights.to(states.dtype)
        if to_states is not None:
            to_states[events] = at_least_float32(linear(weights, vectors.T)) / total
        if problem.to_vectors is not None:
            add_product(problem.to_vectors, weights, (block / (total * UNITS)).to(states.dtype))
    return losses, to_states


def _blocks(problem: CrossEntropyProblem) -> Iterator[slice]:
    for begin in range(0, len(problem.states), problem.block):
        yield slice(begin, min(begin + problem.block, len(problem.states)))


def _scores(states: Tensor, problem: CrossEntropyProblem, events: slice) -> Tensor:
    """Return the scores (m, C) of a block in the units of its states; -inf if a candidate does not compete."""
    scores = at_least_float32(linear(states, problem.vectors))
    if problem.log_weights is not None:
        scores += problem.log_weights * UNITS
    if problem.excluded is not None:
        assert problem.rows is not None, "excluded needs rows"
        scores.masked_fill_(problem.excluded[problem.rows[events]], -torch.inf)
    # A gather and a scatter: selecting the events that have their target here would make Python wait for the device.
    own = problem.own[events]
    inside = (own >= 0) & (own < scores.shape[1])
    place = own.clamp(0, scores.shape[1] - 1).unsqueeze(1)
    kept = scores.gather(1, place).masked_fill_(inside.unsqueeze(1), -torch.inf)
    return scores.scatter_(1, place, kept)


def cross_entropy_compiled(problem: CrossEntropyProblem) -> Losses:
    """Compute `cross_entropy` in float32 on CPU by the compiled library."""
    (events, width), candidates = problem.states.shape, len(problem.vectors)
    panels, block = -(-candidates // ACROSS), min(problem.block, events)
    packed = F.pad(problem.vectors, (0, 0, 0, panels * ACROSS - candidates)).view(panels, ACROSS, width).mT
    # An odd number of rows: the scores of an event are then not all at one place of the cache.
    weights = problem.states.new_empty(panels, block | 1, ACROSS)
    log_weights = None if problem.log_weights is None else problem.log_weights * UNITS
    of_candidates = contiguous(vectors=problem.vectors, packed=packed, log_weights=log_weights)
    of_candidates |= {"weights": weights, "dvectors": problem.to_vectors}
    targets = problem.target_scores * UNITS
    largest, totals = torch.empty_like(targets), torch.empty_like(targets)
    to_states = problem.states.new_empty(events, width) if problem.to_states else None
    scaled = None if problem.to_vectors is None else problem.states.new_empty(events, width)
    of_events = contiguous(own=problem.own, states=problem.states * UNITS)
    of_events |= {"target": targets, "largest": largest, "totals": totals, "dstates": to_states, "scaled": scaled}
    tile = min(TILE, -(-block // (torch.get_num_threads() * ROWS)) * ROWS)
    sizes = {"candidates": candidates, "width": width, "row": block | 1, "tile": tile}
    for part in _blocks(problem):
        tensors = of_candidates | {name: None if x is None else x[part] for name, x in of_events.items()}
        call("cross_entropy_forward", sizes | {"events": part.stop - part.start}, tensors)
        if problem.to_vectors is not None:
            call("cross_entropy_backward", sizes | {"events": part.stop - part.start}, tensors)
    return (totals.log2() + (largest - targets)) / UNITS, to_states


def kernels() -> Any:
    """Import the Triton kernels."""
    from seqrec.ops import cross_entropy_kernels

    return cross_entropy_kernels


def cross_entropy_triton(problem: CrossEntropyProblem) -> Losses:
    """Compute `cross_entropy` on a GPU; scores are never in memory."""
    states, vectors, target_scores, own, *_ = problem
    (events, width), candidates = states.shape, len(vectors)
    if not events:
        return torch.empty_like(target_scores), target_scores.new_empty(0, width) if problem.to_states else None
    assert problem.excluded is None or problem.rows is not None, "excluded needs rows"
    states, vectors = (x if x.stride(1) == 1 else x.contiguous() for x in (states, vectors))
    excluded = None if problem.excluded is None else problem.excluded.view(torch.uint8)
    source = (states, vectors, *_contiguous(target_scores, own, problem.log_weights, excluded, problem.rows))
    strides = (states.stride(0), vectors.stride(0), 0 if excluded is None else excluded.shape[1])
    blocks, at_once = _blocks_of(problem)
    across, along = -(-events // blocks["M"]), -(-candidates // blocks["C"])
    with launching_on(states):
        losses, to_states = _launch_log_sums(problem, source, strides, blocks, _cut(across, along, at_once))
        if problem.to_vectors is not None and candidates:
            _launch_of_candidates(problem, source, losses, strides, blocks, _cut(along, across, at_once))
    return losses / UNITS, to_states


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.contiguous() for x in tensors]


def _blocks_of(problem: CrossEntropyProblem) -> tuple[dict[str, Any], int]:
    """Return the arguments of a kernel that are constant when it is compiled, and the programs that run at a time."""
    (events, width), candidates = problem.states.shape, len(problem.vectors)
    sizes = block_sizes("cross_entropy", problem.states.device, width)
    blocks: dict[str, Any] = {
        "M": min(sizes["events"], power_of_two(events, 16)),
        "C": min(sizes["candidates"], power_of_two(candidates, 16)),
        "D": power_of_two(width, 16),
        "PRECISION": "ieee" if interprets() else dot_precision(),
        "num_warps": sizes["warps"],
        "num_stages": 1,
    }
    return blocks, programs_at_once(problem.states.device, sizes["programs"])


def _cut(across: int, along: int, at_once: int) -> tuple[int, int]:
    """Return in how many parts the blocks that a program passes are cut, to fill a GPU, and the blocks of a part."""
    part_blocks = max(-(-along // max(at_once // max(across, 1), 1)), 1)
    return max(-(-along // part_blocks), 1), part_blocks


def _launch_log_sums(
    problem: CrossEntropyProblem,
    source: tuple[Tensor | None, ...],
    strides: tuple[int, ...],
    blocks: dict[str, Any],
    cut: tuple[int, int],
) -> Losses:
    """Return losses (M,) in units of log 2, and the gradient of states."""
    (events, width), (parts, part_blocks) = problem.states.shape, cut
    target = problem.target_scores
    largest, totals = (target.new_empty(parts, events) for _ in range(2))
    to_states = target.new_empty(parts, events, width) if problem.to_states else None
    kernels().log_sums[(-(-events // blocks["M"]) * parts,)](
        *(*source, largest, totals, to_states, *strides),
        *(events, len(problem.vectors), width, part_blocks),
        ONE_PART=parts == 1,
        **blocks,
    )
    if parts == 1:
        return largest[0], None if to_states is None else to_states[0]
    most = largest.amax(0)
    shares = (largest - most).exp2_()
    total = (totals * shares).sum(0)
    if to_states is not None:
        to_states = to_states.mul_((shares / total).unsqueeze(-1)).sum(0)
    return most + total.log2(), to_states


def _launch_of_candidates(
    problem: CrossEntropyProblem,
    source: tuple[Tensor | None, ...],
    losses: Tensor,
    strides: tuple[int, ...],
    blocks: dict[str, Any],
    cut: tuple[int, int],
) -> None:
    """Add the gradient of vectors to `problem.to_vectors`."""
    (candidates, width), (parts, part_blocks), result = problem.vectors.shape, cut, problem.to_vectors
    assert result is not None
    direct = parts == 1 and result.stride(1) == 1
    added = result if direct else result.new_empty(parts, candidates, width)
    kernels().of_candidates[(-(-candidates // blocks["C"]) * parts,)](
        *(*source, losses, added, *strides, result.stride(0) if direct else width),
        *(len(problem.states), candidates, width, part_blocks),
        ONE_PART=direct,
        **blocks,
    )
    if not direct:
        result.add_(added.sum(0))


CROSS_ENTROPY_BACKENDS: Backends[Callable[[CrossEntropyProblem], Losses]] = Backends(
    "softmax cross-entropy",
    "SEQREC_CROSS_ENTROPY_BACKEND",
    [
        compiled_backend(cross_entropy_compiled, frozenset({"excluded", "compilation"})),
        Backend("reference", cross_entropy_reference, supports=lambda device, dtype: dtype.is_floating_point),
        triton_backend(
            cross_entropy_triton, kernels, frozenset({"compilation", TOO_WIDE}), (torch.float32, *LOW_PRECISION)
        ),
    ],
)
