"""Softmax cross-entropy against candidates: the compiled library gives the losses and gradients of float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from entropy_problems import exact, outcome, problem_of
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec.errors import InputError
from seqrec.ops import cross_entropy as module
from seqrec.ops.cross_entropy import cross_entropy


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


def test_a_table_beyond_the_cache_is_left_to_torch_unless_the_user_chose(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST_NUMBERS", 30 * 8 - 1)
    monkeypatch.setattr(module.CROSS_ENTROPY_BACKENDS, "run", lambda problem, wanted, **options: wanted)
    monkeypatch.delenv(module.CROSS_ENTROPY_BACKENDS.variable, raising=False)
    problem = problem_of(5, 30, 8)
    assert cross_entropy(problem) == "reference"
    assert cross_entropy(problem, backend="cpp") == "cpp"
    monkeypatch.setenv(module.CROSS_ENTROPY_BACKENDS.variable, "cpp")
    assert cross_entropy(problem) == "auto"


def test_excluded_candidates_are_refused_by_name(cpp: None):
    problem = problem_of(5, 30, 8)._replace(excluded=torch.zeros(1, 30, dtype=torch.bool), rows=torch.zeros(5).long())
    with pytest.raises(InputError, match="has no excluded"):
        cross_entropy(problem, backend="cpp")
    torch.testing.assert_close(cross_entropy(problem)[0], F.relu(cross_entropy(problem, backend="reference")[0]))
