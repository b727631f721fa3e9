"""Tests peculiar to the Triton kernels of the softmax cross-entropy.

Kernels run in Triton's interpreter, with programs of few events and candidates; `test_scan_triton` compiles them for a
GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from entropy_problems import exact, outcome, problem_of
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from seqrec.errors import InputError
from seqrec.ops import cross_entropy as module
from seqrec.ops.block_sizes import TABLE, BlockRow
from seqrec.ops.cross_entropy import CROSS_ENTROPY_BACKENDS, CrossEntropyProblem, cross_entropy
from seqrec.training.losses.chunked_cross_entropy import Competitors, chunked_cross_entropy

pytestmark = pytest.mark.kernels
SetRoom = Callable[[int], None]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := CROSS_ENTROPY_BACKENDS["triton"].why_unusable("cpu", torch.float32):
        pytest.skip(f"triton {reason}")
    row = BlockRow("", 0, {"events": 16, "candidates": 16})
    monkeypatch.setitem(TABLE, "cross_entropy", (*TABLE["cross_entropy"], row))


@pytest.fixture
def set_room(monkeypatch: pytest.MonkeyPatch) -> SetRoom:
    return lambda programs: monkeypatch.setattr(module, "programs_at_once", lambda device, each: programs)


def with_exclusions(problem: CrossEntropyProblem, users: int = 3) -> CrossEntropyProblem:
    """A third of the candidates does not compete, but for the last user no one does."""
    excluded = torch.rand(users, len(problem.vectors), generator=torch.Generator().manual_seed(0)) < 0.3
    excluded[-1] = True
    return problem._replace(excluded=excluded, rows=torch.arange(len(problem.states)) % users)


def assert_near(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float = 2e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("programs", [1, 99])
@pytest.mark.parametrize(("events", "candidates", "width"), [(1, 1, 1), (20, 37, 5), (33, 16, 17)])
def test_losses_and_gradients_equal_float64(set_room: SetRoom, events: int, candidates: int, width: int, programs: int):
    set_room(programs)
    problem = problem_of(events, candidates, width)
    assert_near(outcome(problem, "triton"), exact(problem))
    problem = with_exclusions(problem._replace(log_weights=None))
    assert_near(outcome(problem, "triton"), exact(problem))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(set_room: SetRoom, dtype: torch.dtype):
    set_room(99)
    problem = problem_of(20, 40, 8)
    assert problem.log_weights is not None
    low = problem._replace(
        states=problem.states.to(dtype), vectors=problem.vectors.to(dtype), log_weights=problem.log_weights.to(dtype)
    )
    found = outcome(low, "triton")
    assert all(each.dtype == torch.float32 for each in found)
    losses, to_states, to_vectors = exact(low)
    # Scores and losses stay in float32; the weights that multiply vectors and states are rounded.
    assert_near(found[:1], (losses,))
    assert_near(found[1:], (to_states, to_vectors), 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("scale", [1e-3, 100.0])
def test_large_and_small_scores_keep_their_digits(set_room: SetRoom, scale: float):
    set_room(99)
    problem = problem_of(20, 40, 8, scale=scale)
    assert_near(outcome(problem, "triton"), exact(problem), 1e-4)


def test_a_loss_near_zero_keeps_its_digits():
    problem = problem_of(5, 7, 4)._replace(target_scores=torch.full((5,), 20.0), log_weights=None)
    losses = exact(problem)[0]
    assert losses.max() < 1e-4
    torch.testing.assert_close(outcome(problem, "triton")[0].double(), losses, rtol=0.05, atol=1e-7)


def test_a_target_that_is_certain_has_no_loss_and_no_gradient():
    losses, *gradients = outcome(problem_of(5, 7, 4)._replace(target_scores=torch.full((5,), 1e30)), "triton")
    assert not losses.any()
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.filterwarnings("ignore:All-NaN slice")
@pytest.mark.parametrize("programs", [1, 99])
def test_what_is_no_number_becomes_no_number(set_room: SetRoom, programs: int):
    set_room(programs)
    problem = problem_of(3, 40, 8)
    problem.states[1, 2] = math.nan
    losses, to_states, _ = outcome(problem, "triton")
    assert losses.isnan().tolist() == [False, True, False]
    assert to_states.isnan().any(1).tolist() == [False, True, False]


@pytest.mark.filterwarnings("ignore:All-NaN slice", "ignore:invalid value")
@pytest.mark.parametrize("programs", [1, 99])
@pytest.mark.parametrize("candidates", [1, 40])
@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_target_that_is_no_finite_number_has_no_loss(set_room: SetRoom, score: float, candidates: int, programs: int):
    set_room(programs)
    # The only candidate of one is the target itself, so nothing competes.
    problem = problem_of(3, candidates, 8)._replace(own=torch.zeros(3, dtype=torch.int64))
    problem.target_scores[1] = score
    for found, expected in zip(outcome(problem, "triton"), outcome(problem, "reference"), strict=True):
        torch.testing.assert_close(found, expected, equal_nan=True)
    losses, to_states, _ = outcome(problem, "triton")
    assert losses.isnan().tolist() == to_states.isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("programs", [1, 99])
def test_user_rows_may_be_strided_and_are_needed(set_room: SetRoom, programs: int):
    set_room(programs)
    problem = with_exclusions(problem_of(20, 30, 8))
    assert problem.rows is not None
    strided = torch.stack([problem.rows, torch.full_like(problem.rows, 2)], 1)[:, 0]
    found = outcome(problem._replace(rows=strided), "triton")
    assert all(one.equal(other) for one, other in zip(found, outcome(problem, "triton"), strict=True))
    with pytest.raises(AssertionError, match="excluded needs rows"):
        cross_entropy(problem._replace(rows=None), backend="triton")


@pytest.mark.parametrize("programs", [1, 99])
def test_gradients_are_added_and_computed_only_if_wanted(set_room: SetRoom, programs: int):
    set_room(programs)
    problem = problem_of(20, 30, 8)
    # Rows of a wider table, as those after the padding item are.
    room, wide = torch.ones(8, 31).T[1:], torch.cat([problem.vectors, problem.vectors], 1)[:, :8]
    losses, to_states = cross_entropy(
        problem._replace(vectors=wide, to_states=False, to_vectors=room), backend="triton"
    )
    assert to_states is None
    assert_near((room - 1,), exact(problem)[2:])
    assert cross_entropy(problem._replace(to_vectors=None), backend="triton")[0].equal(losses)


def test_nothing_comes_of_no_events_and_of_no_candidates():
    losses, to_states, to_vectors = outcome(
        problem_of(4, 1, 3)._replace(vectors=torch.empty(0, 3), log_weights=None), "triton"
    )
    assert not losses.any()
    assert not to_states.any()
    assert to_vectors.shape == (0, 3)
    losses, to_states, to_vectors = outcome(problem_of(0, 4, 3), "triton")
    assert losses.shape == (0,)
    assert to_states.shape == (0, 3)
    assert not to_vectors.any()
    assert cross_entropy(problem_of(0, 4, 3)._replace(to_states=False), backend="triton")[1] is None


def test_results_repeat_to_the_bit_and_the_block_does_not_matter(set_room: SetRoom):
    set_room(99)
    problem = problem_of(20, 40, 8)
    first, second = outcome(problem, "triton"), outcome(problem._replace(block=3), "triton")
    assert all(one.equal(other) for one, other in zip(first, second, strict=True))


class Largest(TorchDispatchMode):
    """Records the bytes of the largest tensor that torch makes."""

    bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.bytes = max(self.bytes, result.nbytes)
        return result


@pytest.mark.parametrize("programs", [1, 8])
def test_scores_are_never_in_memory(set_room: SetRoom, programs: int):
    set_room(programs)
    problem = problem_of(64, 80, 4)
    with Largest() as by_triton:
        outcome(problem, "triton")
    with Largest() as by_torch:
        outcome(problem, "reference")
    assert by_torch.bytes == 4 * 64 * 80
    # Of each of at most two parts there is a gradient.
    assert by_triton.bytes <= 2 * 4 * 80 * 4


def test_both_ways_are_one_launch_each_if_programs_are_many(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def counted(name: str) -> None:
        kernel = getattr(module.kernels(), name)

        class Counted:
            def __getitem__(self, grid: tuple[int]) -> Any:
                calls.append((name, *grid))
                return kernel[grid]

        monkeypatch.setattr(module.kernels(), name, Counted())

    counted("log_sums")
    counted("of_candidates")
    outcome(problem_of(40, 50, 4), "triton")
    assert calls == [("log_sums", 3), ("of_candidates", 4)]


@pytest.mark.parametrize(("across", "along", "at_once"), [(1, 1, 1), (250, 8, 264), (4, 250, 264), (50, 3125, 264)])
def test_a_cut_covers_all_blocks_and_fills_a_device(across: int, along: int, at_once: int):
    parts, part_blocks = module._cut(across, along, at_once)
    assert (parts - 1) * part_blocks < along <= parts * part_blocks
    assert parts == 1 or at_once / 2 < across * parts <= at_once


def test_a_loss_over_shared_negatives_has_the_gradients_of_torch(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(1)
    states, table = (torch.randn(n, 6, generator=generator) for n in (18, 21))
    own = torch.randint(0, 21, (18,), generator=generator)
    results = []
    for backend in ("triton", "reference"):
        monkeypatch.setenv(CROSS_ENTROPY_BACKENDS.variable, backend)
        leaves = [states.clone().requires_grad_(), table.clone().requires_grad_()]
        scores = (leaves[0] * leaves[1][own]).sum(1)
        candidates = Competitors(leaves[1], own=own, first=1, log_weights=torch.linspace(-1, 1, 21))
        loss = chunked_cross_entropy(leaves[0], scores, candidates, has_target=own > 3)
        results.append([loss, *torch.autograd.grad(loss, leaves)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_auto_takes_it_on_a_gpu_only_where_torch_would_hold_too_many_scores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(CROSS_ENTROPY_BACKENDS, "run", lambda problem, wanted, **options: wanted)
    monkeypatch.delenv(CROSS_ENTROPY_BACKENDS.variable, raising=False)
    assert cross_entropy(problem_of(5, 7, 4)) == "auto"
    assert CROSS_ENTROPY_BACKENDS.auto("cpu", torch.float32)[0].name != "triton"
    monkeypatch.delenv("TRITON_INTERPRET")
    assert CROSS_ENTROPY_BACKENDS.auto("cuda", torch.float32)[0].name == "reference"
    with FakeTensorMode():
        for candidates, width, chosen in ((2**23, 8, "auto"), (2**23 + 1, 8, "triton"), (2**23 + 1, 300, "auto")):
            states, vectors = (torch.empty(n, width, device="cuda") for n in (50, candidates))
            own = torch.empty(50, dtype=torch.int64, device="cuda")
            problem = CrossEntropyProblem(states, vectors, torch.empty(50, device="cuda"), own, block=32)
            assert cross_entropy(problem) == chosen


def test_vectors_wider_than_a_block_are_refused():
    with pytest.raises(InputError, match="backend='triton' has no vectors wider than 256"):
        cross_entropy(problem_of(2, 2, 257), backend="triton")
