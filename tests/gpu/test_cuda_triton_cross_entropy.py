"""The Triton softmax cross-entropy on a GPU: pytest -m gpu. In the interpreter, `tests/ops` has it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seqrec.ops import triton_support
from seqrec.ops.cross_entropy import CrossEntropyProblem, cross_entropy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(triton_support.interprets(), reason="TRITON_INTERPRET is set"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]


def problem_of(events: int, candidates: int, width: int, dtype: torch.dtype = torch.float32) -> CrossEntropyProblem:
    """Random numbers on the GPU; some targets are no candidates, and candidates have weights and do not all compete."""
    generator = torch.Generator().manual_seed(events)
    states, vectors = (torch.randn(n, width, generator=generator).to(dtype).cuda() for n in (events, candidates))
    own = torch.randint(-1, candidates + 2, (events,), generator=generator).cuda()
    weights = torch.randn(candidates, generator=generator).cuda()
    excluded = (torch.rand(3, candidates, generator=generator) < 0.1).cuda()
    scores, rows = torch.randn(events, generator=generator).cuda(), torch.arange(events, device="cuda") % 3
    return CrossEntropyProblem(
        states, vectors, scores, own, 100, True, log_weights=weights, excluded=excluded, rows=rows
    )


def outcome(problem: CrossEntropyProblem, backend: str = "triton") -> list[Tensor]:
    """Losses, and gradients of states and of vectors."""
    sums = torch.zeros_like(problem.vectors, dtype=problem.target_scores.dtype)
    losses, to_states = cross_entropy(problem._replace(to_vectors=sums), backend=backend)
    assert to_states is not None
    return [losses, to_states, sums]


def exact(problem: CrossEntropyProblem) -> list[Tensor]:
    wide = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in problem]
    return outcome(CrossEntropyProblem(*wide), "reference")


@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 1), (33, 100, 5), (200, 4000, 64), (5000, 256, 64), (300, 3000, 65), (700, 900, 128), (100, 500, 256)],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_losses_and_gradients_equal_float64(sizes: tuple[int, ...], dtype: torch.dtype):
    problem = problem_of(*sizes, dtype=dtype)
    tolerance = 2e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    for found, expected in zip(outcome(problem), exact(problem), strict=True):
        assert (found - expected).abs().max() <= tolerance * expected.abs().max().clamp_min(1)


def test_all_results_are_the_same_bit_for_bit_each_time():
    problem = problem_of(3000, 5000, 64)
    assert all(torch.equal(one, other) for one, other in zip(outcome(problem), outcome(problem), strict=True))


def test_memory_does_not_grow_with_events_times_candidates():
    problem = problem_of(16_000, 200_000, 64)._replace(excluded=None)
    outcome(problem)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    outcome(problem)
    # The gradients, and a few numbers an event; all scores would be 12.8 GB.
    assert torch.cuda.max_memory_allocated() - before < 4 * (problem.states.nbytes + problem.vectors.nbytes)


def test_a_cuda_graph_replays_it():
    problem = problem_of(500, 256, 64)
    sums = torch.zeros_like(problem.vectors)
    problem = problem._replace(to_vectors=sums)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        cross_entropy(problem, backend="triton")
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        losses, to_states = cross_entropy(problem, backend="triton")
    problem.states.copy_(problem_of(501, 256, 64).states[:500])
    sums.zero_()
    graph.replay()
    for found, expected in zip((losses, to_states, sums), outcome(problem), strict=True):
        assert torch.equal(found, expected)
