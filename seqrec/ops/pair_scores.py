"""Scores of chosen items for each event: dot products of states with rows of a table.

M events, N items of an event, V rows of the table, D width; m events of one block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.ops.autograd import differentiable, refuse_second_derivative
from seqrec.ops.backends import Backend, Backends
from seqrec.ops.compiled_library import call, compiled_backend

__all__ = ["PAIR_SCORES_BACKENDS", "pair_scores"]

# Numbers held at a time, m x N x D: 4 MiB stay in a CPU's cache, and large blocks keep a GPU busy.
CPU_BLOCK, DEVICE_BLOCK = 1 << 20, 1 << 25


def pair_scores(states: Tensor, vectors: Tensor, item_ids: Tensor, *, backend: str = "auto") -> Tensor:
    """Score the chosen items of each event, without holding their vectors (M, N, D).

    Backends, in the order in which "auto" prefers them:

    - "cpp": compiled library, float32 on CPU. One pass over the pairs, and one in backward for each gradient. The same
      bits with any number of threads.
    - "torch": plain torch, any device and dtype. If there are several items of an event, it gathers vectors for a block
      of events at a time, and again in backward.
    - "reference": gathers all vectors at once. The only one with second derivatives everywhere. Never "auto".

    Args:
        states: (M, D).
        vectors: (V, D).
        item_ids: (M, N) int64 rows of `vectors`.
        backend: A name above, or "auto": the environment variable SEQREC_PAIR_SCORES_BACKEND if set, else the first
            that can compute this.

    Returns:
        (M, N) in the wider of the two types.

    Raises:
        InputError: if the backend is unknown, missing or cannot compute this.
        IndexError: if an id is no row of `vectors`.

    Example:
        >>> import torch
        >>> from seqrec.ops import pair_scores
        >>> pair_scores(torch.tensor([[1.0, 2.0]]), torch.eye(2), torch.tensor([[1, 0, 1]])).tolist()
        [[2.0, 1.0, 2.0]]
    """
    scores: Tensor = PAIR_SCORES_BACKENDS.run(
        PairScoresProblem(vectors, states, item_ids),
        backend,
        exported=pair_scores_reference,
        given=("autocast",) if torch.is_autocast_enabled(states.device.type) else (),
        precise=False,
    )
    return scores


class PairScoresProblem(NamedTuple):
    """Input of a backend; see `pair_scores` for each argument."""

    vectors: Tensor
    states: Tensor
    item_ids: Tensor


def pair_scores_reference(problem: PairScoresProblem) -> Tensor:
    """Compute `pair_scores` from the vectors of all pairs."""
    return (F.embedding(problem.item_ids, problem.vectors) * problem.states.unsqueeze(1)).sum(-1)


def pair_scores_torch(problem: PairScoresProblem) -> Tensor:
    """Compute `pair_scores` for a block of events at a time; one item of each needs no blocks."""
    if problem.item_ids.shape[1] == 1:
        return pair_scores_reference(problem)
    scores: Tensor = _PairScores.apply(problem.states, problem.vectors, problem.item_ids)  # type: ignore[no-untyped-call]
    return scores


class _PairScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, vectors: Tensor, item_ids: Tensor) -> Tensor:
        ctx.save_for_backward(states, vectors, item_ids)
        dtype = torch.promote_types(states.dtype, vectors.dtype)
        scores = torch.empty(item_ids.shape, dtype=dtype, device=states.device)
        with torch.autocast(states.device.type, enabled=False):
            for events, gathered in _gathered(vectors, item_ids):
                block = states[events].to(dtype).unsqueeze(2)
                scores[events] = torch.bmm(gathered.to(dtype), block).squeeze(2)
        return scores

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(
            "scores of sampled negatives have no second derivative: call backward or grad without create_graph=True"
        )
        states, vectors, item_ids = ctx.saved_tensors
        dtype = gradient.dtype
        to_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        to_vectors = torch.zeros_like(vectors, dtype=dtype) if ctx.needs_input_grad[1] else None
        with torch.autocast(states.device.type, enabled=False):
            for events, gathered in _gathered(vectors, item_ids):
                part = gradient[events]
                if to_states is not None:
                    to_states[events] = torch.bmm(part.unsqueeze(1), gathered.to(dtype)).squeeze(1)
                if to_vectors is not None:
                    products = part.unsqueeze(2) * states[events].to(dtype).unsqueeze(1)
                    to_vectors.index_add_(0, item_ids[events].flatten(), products.flatten(0, 1))
        return to_states, None if to_vectors is None else to_vectors.to(vectors.dtype), None


def _gathered(vectors: Tensor, item_ids: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of events with their item vectors (m, N, D)."""
    numbers = CPU_BLOCK if vectors.device.type == "cpu" else DEVICE_BLOCK
    size = max(1, numbers // (item_ids.shape[1] * vectors.shape[1]))
    for begin in range(0, len(item_ids), size):
        events = slice(begin, begin + size)
        part = item_ids[events]
        yield events, vectors.index_select(0, part.flatten()).view(*part.shape, -1)


def _forward(states: Tensor, vectors: Tensor, item_ids: Tensor) -> Tensor:
    states, vectors, item_ids = states.contiguous(), vectors.contiguous(), item_ids.contiguous()
    scores = states.new_empty(item_ids.shape)
    if scores.numel():
        least, most = item_ids.aminmax()
        if not 0 <= int(least) <= int(most) < len(vectors):
            raise IndexError(f"item_ids hold {int(least)}..{int(most)}, but the table has rows 0..{len(vectors) - 1}")
        operands = {"item_ids": item_ids, "states": states, "vectors": vectors}
        call("pair_scores_forward", _sizes(states, item_ids), {**operands, "scores": scores})
    return scores


def _sizes(states: Tensor, item_ids: Tensor) -> dict[str, int]:
    (events, draws), width = item_ids.shape, states.shape[1]
    # Each part reads all pairs, so there are no more than the threads.
    return {"events": events, "draws": draws, "width": width, "parts": min(torch.get_num_threads(), -(-width // 16))}


def _backward(dscores: Tensor, states: Tensor, vectors: Tensor, item_ids: Tensor, table: bool) -> list[Tensor]:
    states, vectors, item_ids = states.contiguous(), vectors.contiguous(), item_ids.contiguous()
    dstates = torch.zeros_like(states) if not item_ids.numel() else torch.empty_like(states)
    dvectors = torch.zeros_like(vectors) if table else vectors.new_empty(0)
    if item_ids.numel():
        operands = {"item_ids": item_ids, "states": states, "vectors": vectors, "dscores": dscores.contiguous()}
        results = {"dstates": dstates, "dvectors": dvectors if table else None}
        call("pair_scores_backward", _sizes(states, item_ids), {**operands, **results})
    return [dstates, dvectors]


def _new_scores(states: Tensor, vectors: Tensor, item_ids: Tensor) -> Tensor:
    return states.new_empty(item_ids.shape)


def _new_gradients(dscores: Tensor, states: Tensor, vectors: Tensor, item_ids: Tensor, table: bool) -> list[Tensor]:
    return [states.new_empty(states.shape), vectors.new_empty(vectors.shape if table else 0)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, backward: Any, dscores: Tensor) -> tuple[Tensor | None, ...]:
    table = ctx.needs_input_grad[1]
    dstates, dvectors = backward(dscores, *ctx.saved_tensors, table)
    return dstates, dvectors if table else None, None


_INPUTS = "Tensor states, Tensor vectors, Tensor item_ids"
_compiled = differentiable(
    "pair_scores_compiled",
    _forward,
    _backward,
    schemas=(f"({_INPUTS}) -> Tensor", f"(Tensor dscores, {_INPUTS}, bool table) -> Tensor[]"),
    device_types="cpu",
    new_outputs=_new_scores,
    new_gradients=_new_gradients,
    setup_context=_setup_context,
    differentiate=_differentiate,
    refusal="compiled scores of chosen items have no second derivative; use backend='reference' for it",
)


def pair_scores_compiled(problem: PairScoresProblem) -> Tensor:
    """Compute `pair_scores` in float32 on CPU by the compiled library."""
    scores: Tensor = _compiled(problem.states, problem.vectors, problem.item_ids)
    return scores


PAIR_SCORES_BACKENDS: Backends[Callable[[PairScoresProblem], Tensor]] = Backends(
    "scores of chosen items",
    "SEQREC_PAIR_SCORES_BACKEND",
    [
        compiled_backend(pair_scores_compiled, frozenset({"autocast"})),
        Backend("torch", pair_scores_torch, supports=lambda device, dtype: dtype.is_floating_point),
        Backend("reference", pair_scores_reference, supports=lambda device, dtype: dtype.is_floating_point),
    ],
)
