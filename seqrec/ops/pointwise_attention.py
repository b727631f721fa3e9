"""Pointwise attention of HSTU. Shapes: B batch, H heads, L events, P head width, R distances, G buckets of gaps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops.autograd import differentiable
from seqrec.ops.backends import Backend, Backends
from seqrec.ops.event_input import gap_codes
from seqrec.ops.export import without_autocast
from seqrec.ops.problems import check_shapes

__all__ = ["POINTWISE_BACKENDS", "pointwise_attention", "weigh"]

# Queries, and keys, of a block: the weights of a head then stay in a core's cache.
BLOCK_EVENTS = 128


class PointwiseProblem(NamedTuple):
    """Input of a backend; see `pointwise_attention` for each argument."""

    query: Tensor
    key: Tensor
    value: Tensor
    distances: Tensor
    gaps: Tensor | None = None
    times: Tensor | None = None
    boundaries: Tensor | None = None


def pointwise_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    distances: Tensor,
    *,
    gaps: Tensor | None = None,
    times: Tensor | None = None,
    boundaries: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute pointwise aggregated attention (Actions Speak Louder than Words, Zhai et al. 2024, equation 2).

    `y_t = 1 / (t + 1) * sum_{s <= t} silu(q_t . k_s + p(t - s) + g(time_t - time_s)) v_s`, events counted from 0.
    Weights are not normed to a sum of 1, as by softmax, so they also tell how often something happened. Causal, so
    right padding never reaches an event. Sums are in float32 at least, also under autocast.

    Differs from the authors' code, which divides by the longest length of a batch: an event's output would depend on
    it. They norm the outputs next, which takes a factor out again.

    Backends, in the order in which "auto" prefers them; both give the same values and gradients:

    - "blocked": plain torch, any device. 128 queries and 128 keys at a time, forward and backward, so that memory grows
      with L. It has no second derivative.
    - "reference": L x L weights of each head. Never "auto".

    Args:
        query: (B, H, L, P). They are not scaled.
        key: (B, H, L, P).
        value: (B, H, L, P).
        distances: (R,) numbers p that are added to scores, by how many events the key is older; the last one is that of
            all greater distances.
        gaps: (G,) numbers g that are added to scores, by the bucket of the time between key and query. None adds none.
        times: (B, L) int64 of the events, for `gaps`.
        boundaries: (G - 2,) int64 of the buckets; see `seqrec.encoders.layers.gaps.GapBuckets`.
        backend: A name above, or "auto": the environment variable SEQREC_POINTWISE_BACKEND if set, else "blocked".

    Returns:
        (B, H, L, P).

    Raises:
        InputError: if the backend is unknown, an argument's shape, device or dtype does not fit, or one of `gaps`,
            `times` and `boundaries` is given without the others.

    Example:
        >>> import torch
        >>> from seqrec.ops import pointwise_attention
        >>> ones = torch.ones(1, 1, 3, 1)
        >>> y = pointwise_attention(0 * ones, ones, ones, torch.tensor([30.0, 0.0]))
        >>> y.flatten().tolist()  # An event sees itself with weight 30, and older ones with silu(0) = 0.
        [30.0, 15.0, 10.0]
    """
    problem = PointwiseProblem(query, key, value, distances, gaps, times, boundaries)
    _check(problem)
    out: Tensor = POINTWISE_BACKENDS.run(problem, backend, exported=pointwise_reference, given=())
    return out.to(query.dtype)


def _check(problem: PointwiseProblem) -> None:
    query, _, _, distances, *others = problem
    if query.dim() != 4 or not query.shape[1] or not query.shape[3]:
        raise InputError(f"query must be (B, H, L, P) with H and P of at least 1, got {tuple(query.shape)}")
    if distances.dim() != 1 or not len(distances):
        raise InputError(f"distances must be (R,) with R of at least 1, got {tuple(distances.shape)}")
    if len({other is None for other in others}) == 2:
        raise InputError("gaps, times and boundaries go together: give all of them, or none")
    shapes = dict.fromkeys(("key", "value"), tuple(query.shape)) | {"distances": tuple(distances.shape)}
    gaps, times, boundaries = others
    if gaps is not None and times is not None and boundaries is not None:
        shapes["gaps"] = (len(boundaries) + 2,)
        if times.shape != (query.shape[0], query.shape[2]) or times.dtype != torch.int64:
            expected = f"({query.shape[0]}, {query.shape[2]})"
            raise InputError(f"times must be {expected} int64, got {tuple(times.shape)} {times.dtype}")
    check_shapes(problem._asdict(), shapes, query.device)


def weigh(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, seen: Tensor) -> Tensor:
    """Return the mean of values, each times `silu(q . k + bias)`, over the keys that are seen.

    Args:
        query: (B, H, Q, P).
        key: (B, H, K, P).
        value: (B, H, K, P).
        bias: Broadcasts to (B, H, Q, K).
        seen: The same, bool.

    Returns:
        (B, H, Q, P), 0 for a query that sees no key.
    """
    weights = F.silu(query @ key.transpose(2, 3) + bias).masked_fill(~seen, 0)
    return (weights @ value) / seen.sum(-1, keepdim=True).clamp_min(1)


def pointwise_reference(problem: PointwiseProblem) -> Tensor:
    """Compute `pointwise_attention` from all L x L weights of each head."""
    query, key, value, distances, gaps, times, boundaries = problem
    event = torch.arange(query.shape[2], device=query.device)
    distance = event.unsqueeze(1) - event
    bias = distances[distance.clamp(0, len(distances) - 1)]
    if gaps is not None and times is not None and boundaries is not None:
        bias = bias + gaps[gap_codes(times.unsqueeze(2), times.unsqueeze(1), boundaries)].unsqueeze(1)
    return weigh(query, key, value, bias, distance >= 0)


class _Blocks:
    """Blocks of queries and keys of a problem, and the numbers that are added to their scores."""

    def __init__(self, problem: PointwiseProblem) -> None:
        self.problem = problem
        self.heads = problem.query.shape[1]
        self.query, self.key, self.value = (x.flatten(0, 1) for x in problem[:3])
        event = torch.arange(BLOCK_EVENTS, device=self.query.device)
        self.within = event.unsqueeze(1) - event

    def far_apart(self) -> Iterator[tuple[Tensor, list[tuple[slice, slice]]]]:
        """Yield each distance between blocks, as events of distances (S, S), with all pairs of blocks at it."""
        length, size = self.query.shape[1], BLOCK_EVENTS
        for apart in range(0, length, size):
            begins = range(apart, length, size)
            blocks = [(slice(i, min(i + size, length)), slice(i - apart, i - apart + size)) for i in begins]
            if not apart:
                blocks = [(rows, rows) for rows, _ in blocks]
            yield (self.within + apart).clamp(0, len(self.problem.distances) - 1), blocks

    def codes(self, rows: slice, columns: slice) -> Tensor | None:
        """Return the buckets (B, Q, K) of the time between a block's queries and keys; None if gaps are not read."""
        _, _, _, _, _, times, boundaries = self.problem
        if times is None or boundaries is None:
            return None
        return gap_codes(times[:, rows].unsqueeze(2), times[:, columns].unsqueeze(1), boundaries)

    def scores(self, rows: slice, columns: slice, bias: Tensor, codes: Tensor | None) -> Tensor:
        """Return the scores (B * H, Q, K) of a block, given the numbers of its distances."""
        scores = torch.bmm(self.query[:, rows], self.key[:, columns].transpose(1, 2))
        scores += bias[: scores.shape[1], : scores.shape[2]]
        if codes is not None and self.problem.gaps is not None:
            added = self.problem.gaps.index_select(0, codes.flatten()).view_as(codes)
            scores.view(-1, self.heads, *scores.shape[1:]).add_(added.unsqueeze(1))
        return scores


def _forward(*inputs: Any) -> Tensor:
    problem = PointwiseProblem(*inputs)
    blocks = _Blocks(problem)
    out = torch.zeros_like(blocks.query, memory_format=torch.contiguous_format)
    for distances, pairs in blocks.far_apart():
        bias = problem.distances[distances]
        for rows, columns in pairs:
            weights = F.silu(blocks.scores(rows, columns, bias, blocks.codes(rows, columns)), inplace=True)
            if rows is columns:
                weights.tril_()
            out[:, rows].baddbmm_(weights, blocks.value[:, columns])
    return (out / _counts(out)).view(problem.query.shape)


def _counts(x: Tensor) -> Tensor:
    """Return how many events each of x (.., L, P) sees, as (L, 1)."""
    return torch.arange(1, x.shape[-2] + 1, device=x.device, dtype=x.dtype).unsqueeze(1)


def _backward(dout: Tensor, *inputs: Any) -> list[Tensor]:
    problem = PointwiseProblem(*inputs)
    blocks, (dquery, dkey, dvalue, ddistances, dgaps) = _Blocks(problem), _zeros(problem)
    query, key, value = (x.flatten(0, 1) for x in (dquery, dkey, dvalue))
    dout = (dout / _counts(dout)).flatten(0, 1)
    for distances, pairs in blocks.far_apart():
        bias, size = problem.distances[distances], BLOCK_EVENTS
        dbias = bias.new_zeros(size, size)
        for rows, columns in pairs:
            codes = blocks.codes(rows, columns)
            scores = blocks.scores(rows, columns, bias, codes)
            dscores = torch.bmm(dout[:, rows], blocks.value[:, columns].transpose(1, 2))
            dscores = torch.ops.aten.silu_backward(dscores, scores)
            weights = F.silu(scores, inplace=True)
            if rows is columns:
                weights.tril_()
                dscores.tril_()
            value[:, columns].baddbmm_(weights.transpose(1, 2), dout[:, rows])
            query[:, rows].baddbmm_(dscores, blocks.key[:, columns])
            key[:, columns].baddbmm_(dscores.transpose(1, 2), blocks.query[:, rows])
            dbias[: dscores.shape[1], : dscores.shape[2]] += dscores.sum(0)
            if codes is not None:
                dgaps.index_add_(
                    0, codes.flatten(), dscores.view(-1, blocks.heads, *dscores.shape[1:]).sum(1).flatten()
                )
        ddistances.index_add_(0, distances.flatten(), dbias.flatten())
    return [dquery, dkey, dvalue, ddistances, dgaps]


def _zeros(problem: PointwiseProblem) -> list[Tensor]:
    """Return gradients of 0 of all real inputs; that of `gaps` is empty without them."""
    real = [*problem[:4], problem.distances[:0] if problem.gaps is None else problem.gaps]
    return [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in real]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, backward: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    with without_autocast(dout.device.type):
        *gradients, dgaps = backward(dout, *ctx.saved_tensors)
    return (*gradients, dgaps if len(dgaps) else None, None, None)


_INPUTS = "Tensor query, Tensor key, Tensor value, Tensor distances, Tensor? gaps, Tensor? times, Tensor? boundaries"
_pointwise = differentiable(
    "pointwise_attention",
    _forward,
    _backward,
    schemas=(f"({_INPUTS}) -> Tensor", f"(Tensor dout, {_INPUTS}) -> Tensor[]"),
    device_types=None,
    new_outputs=lambda query, *_: torch.empty_like(query, memory_format=torch.contiguous_format),
    new_gradients=lambda dout, *inputs: _zeros(PointwiseProblem(*inputs)),
    setup_context=_save,
    differentiate=_differentiate,
    refusal="blocked pointwise attention has no second derivative; use backend='reference' for it",
)


def pointwise_blocked(problem: PointwiseProblem) -> Tensor:
    """Compute `pointwise_reference`; memory grows with L."""
    out: Tensor = _pointwise(*problem)
    return out


# In the order in which "auto" prefers them.
POINTWISE_BACKENDS: Backends[Callable[[PointwiseProblem], Tensor]] = Backends(
    "pointwise attention",
    "SEQREC_POINTWISE_BACKEND",
    [Backend("blocked", pointwise_blocked), Backend("reference", pointwise_reference)],
)
