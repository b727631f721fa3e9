"""Problems of the softmax cross-entropy as tests give them to backends, and their results in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.ops.cross_entropy import CrossEntropyProblem, cross_entropy


def problem_of(
    events: int, candidates: int, width: int, *, block: int = 100, scale: float = 1.0
) -> CrossEntropyProblem:
    """Random numbers; some events have a target that is no candidate, and candidates have weights."""
    generator = torch.Generator().manual_seed(events + candidates)
    states, vectors = (torch.randn(n, width, generator=generator) * scale for n in (events, candidates))
    own = torch.randint(-1, candidates + 2, (events,), generator=generator)
    weights = torch.randn(candidates, generator=generator)
    scores = torch.randn(events, generator=generator) * scale
    room = torch.zeros_like(vectors)
    return CrossEntropyProblem(states, vectors, scores, own, block, True, room, log_weights=weights)


def exact(problem: CrossEntropyProblem) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and gradients of their sum in float64, by autograd from all scores."""
    states, vectors = (each.double().requires_grad_() for each in (problem.states, problem.vectors))
    scores = states @ vectors.T
    if problem.log_weights is not None:
        scores = scores + problem.log_weights.double()
    columns = torch.arange(len(vectors))
    scores = scores.masked_fill(problem.own.unsqueeze(1) == columns, -torch.inf)
    if problem.excluded is not None:
        scores = scores.masked_fill(problem.excluded[problem.rows], -torch.inf)
    target = problem.target_scores.double()
    losses = torch.cat([target.unsqueeze(1), scores], 1).logsumexp(1) - target
    return losses.detach(), *torch.autograd.grad(losses.sum(), (states, vectors))


def outcome(problem: CrossEntropyProblem, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    room = torch.zeros_like(problem.vectors, dtype=problem.target_scores.dtype)
    losses, to_states = cross_entropy(problem._replace(to_vectors=room), backend=backend)
    assert to_states is not None
    return losses, to_states, room
