"""Softmax cross-entropy against candidates: the compiled library gives the losses and gradients of float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops import cross_entropy as module
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
    target = problem.target_scores.double()
    losses = torch.cat([target.unsqueeze(1), scores], 1).logsumexp(1) - target
    return losses.detach(), *torch.autograd.grad(losses.sum(), (states, vectors))


def outcome(problem: CrossEntropyProblem, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    room = torch.zeros_like(problem.vectors)
    losses, to_states = cross_entropy(problem._replace(to_vectors=room), backend=backend)
    assert to_states is not None
    return losses, to_states, room


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    events=st.integers(1, 150),
    candidates=st.integers(1, 300),
    width=st.integers(1, 70),
    block=st.integers(1, 160),
    weighted=st.booleans(),
)
def test_losses_and_gradients_equal_float64(
    cpp: None, events: int, candidates: int, width: int, block: int, weighted: bool
):
    problem = problem_of(events, candidates, width, block=block)
    problem = problem if weighted else problem._replace(log_weights=None)
    for backend in ("cpp", "reference"):
        for found, expected in zip(outcome(problem, backend), exact(problem), strict=True):
            torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2e-5)


def test_every_variant_that_runs_here_agrees(variant: None):
    problem = problem_of(130, 1000, 37, block=50)
    for found, expected in zip(outcome(problem, "cpp"), exact(problem), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2e-5)


def test_threads_change_no_bit_and_blocks_change_only_the_order_of_the_candidates_sums(
    cpp: None, monkeypatch: pytest.MonkeyPatch
):
    problem = problem_of(200, 500, 24, block=90)
    whole = outcome(problem, "cpp")
    for threads in (2, 3, 40):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert all(one.equal(other) for one, other in zip(outcome(problem, "cpp"), whole, strict=True))
    losses, to_states, to_vectors = outcome(problem._replace(block=7), "cpp")
    assert losses.equal(whole[0])
    assert to_states.equal(whole[1])
    torch.testing.assert_close(to_vectors, whole[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 100.0])
def test_large_and_small_scores_keep_their_digits(cpp: None, scale: float):
    problem = problem_of(40, 90, 16, scale=scale)
    for found, expected in zip(outcome(problem, "cpp"), exact(problem), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_what_is_no_number_becomes_no_number(backend: str, request: pytest.FixtureRequest):
    if backend == "cpp":
        request.getfixturevalue("cpp")
    problem = problem_of(3, 70, 8)
    problem.states[1, 2] = math.nan
    losses, to_states, _ = outcome(problem, backend)
    assert losses.isnan().tolist() == [False, True, False]
    assert to_states.isnan().any(1).tolist() == [False, True, False]


def test_gradients_are_added_and_computed_only_if_wanted(cpp: None):
    problem = problem_of(20, 30, 8)
    expected = exact(problem)[2]
    room = torch.ones_like(problem.vectors)
    losses, to_states = cross_entropy(problem._replace(to_states=False, to_vectors=room), backend="cpp")
    assert to_states is None
    torch.testing.assert_close(room - 1, expected.float(), rtol=1e-4, atol=1e-5)
    assert cross_entropy(problem._replace(to_vectors=None), backend="cpp")[0].equal(losses)


def test_a_table_beyond_the_cache_is_left_to_torch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST_NUMBERS", 30 * 8 - 1)
    monkeypatch.setattr(module, "cross_entropy_reference", lambda problem: "torch")
    assert cross_entropy(problem_of(5, 30, 8)) == "torch"


def test_excluded_candidates_are_refused_by_name(cpp: None):
    problem = problem_of(5, 30, 8)._replace(excluded=torch.zeros(1, 30, dtype=torch.bool), rows=torch.zeros(5).long())
    with pytest.raises(InputError, match="has no excluded"):
        cross_entropy(problem, backend="cpp")
    torch.testing.assert_close(cross_entropy(problem)[0], F.relu(cross_entropy(problem, backend="reference")[0]))
