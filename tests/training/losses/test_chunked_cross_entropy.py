from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.benchmark.measurement import peak_bytes
from seqrec.training.losses.chunked_cross_entropy import Competitors, chunked_cross_entropy

# All events at a time, and four of them.
CHUNKS = [1 << 20, 40]


def problem(dtype: torch.dtype = torch.float64, events: int = 9, columns: int = 11) -> list[Tensor]:
    torch.manual_seed(0)
    tensors = [torch.randn(events, 3), torch.randn(columns, 3), torch.randn(events)]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def candidates_of(vectors: Tensor, events: int = 9) -> Competitors:
    """Competitors with weights, users, exclusions (all of one user's), and targets in and outside the table."""
    columns = len(vectors)
    excluded = torch.arange(3 * columns).view(3, columns) % 3 == 0
    excluded[1] = True
    own = (torch.arange(events) * 4 % (columns + 3)).masked_fill(
        torch.arange(events) * 4 % (columns + 3) >= columns, -1
    )
    return Competitors(
        vectors,
        own=own,
        first=2,
        log_weights=torch.linspace(-1, 1, columns, dtype=vectors.dtype),
        excluded=excluded,
        rows=torch.arange(events) % 3,
    )


def slowly(states: Tensor, vectors: Tensor, target_scores: Tensor) -> Tensor:
    """The formula, event by event and candidate by candidate."""
    told = candidates_of(vectors, len(states))
    costs = []
    for event, state in enumerate(states):
        total = target_scores[event].exp()
        for column in range(told.first, len(vectors)):
            if column != told.own[event] and not told.excluded[told.rows[event], column]:
                total = total + (told.log_weights[column] + state @ vectors[column]).exp()
        costs.append(total.log() - target_scores[event])
    return torch.stack(costs).mean()


@pytest.mark.parametrize("chunk", CHUNKS)
def test_value_and_gradients_equal_the_formula(chunk: int):
    leaves = problem()
    found = chunked_cross_entropy(leaves[0], leaves[2], candidates_of(leaves[1]), chunk=chunk)
    expected = slowly(*leaves)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(
        torch.autograd.grad(3 * found, leaves),
        torch.autograd.grad(3 * expected, leaves),
        rtol=1e-12,
        atol=1e-13,
    )


@pytest.mark.parametrize("columns", [3, 400])
def test_gradients_in_float32_equal_plain_cross_entropy(columns: int):
    # 100 events and 400 columns are enough for oneDNN.
    torch.manual_seed(0)
    leaves = [torch.randn(300, 32).requires_grad_(), torch.randn(columns, 32).requires_grad_()]
    targets = torch.randint(0, columns, (300,))
    candidates = Competitors(leaves[1], own=targets)
    scores = (leaves[0] * leaves[1][targets]).sum(1)
    found = torch.autograd.grad(chunked_cross_entropy(leaves[0], scores, candidates, chunk=100 * columns), leaves)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = torch.autograd.grad(F.cross_entropy(exact[0] @ exact[1].T, targets), exact)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_gradients_equal_finite_differences(chunk: int):
    states, vectors, target_scores = problem()

    def call(s: Tensor, v: Tensor, t: Tensor) -> Tensor:
        return chunked_cross_entropy(s, t, candidates_of(v), chunk=chunk)

    assert torch.autograd.gradcheck(call, (states, vectors, target_scores))


@pytest.mark.parametrize("chunk", CHUNKS)
def test_without_gradient_mode_there_is_the_value_alone(chunk: int):
    leaves = problem()
    with torch.no_grad():
        found = chunked_cross_entropy(leaves[0], leaves[2], candidates_of(leaves[1]), chunk=chunk)
    assert not found.requires_grad
    torch.testing.assert_close(found, slowly(*leaves).detach())


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_second_derivative_is_refused(chunk: int):
    leaves = problem()
    loss = chunked_cross_entropy(leaves[0], leaves[2], candidates_of(leaves[1]), chunk=chunk)
    with pytest.raises(NotImplementedError, match=r"have no second derivative.*without create_graph=True"):
        torch.autograd.grad(loss, leaves[0], create_graph=True)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_graph_that_is_kept_gives_the_same_gradients_again(chunk: int):
    leaves = problem()
    loss = chunked_cross_entropy(leaves[0], leaves[2], candidates_of(leaves[1]), chunk=chunk)
    first = [g.clone() for g in torch.autograd.grad(loss, leaves, retain_graph=True)]
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), tuple(first), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*:DeprecationWarning")
def test_a_compiled_loss_has_the_same_gradients():
    leaves = [torch.randn(300, 32).requires_grad_(), torch.randn(400, 32).requires_grad_()]
    targets = torch.randint(0, 400, (300,))

    def loss(states: Tensor, vectors: Tensor) -> Tensor:
        scores = (states * vectors[targets]).sum(1)
        return chunked_cross_entropy(states, scores, Competitors(vectors, own=targets))

    found = torch.autograd.grad(torch.compile(loss, backend="aot_eager")(*leaves), leaves)
    for one, other in zip(found, torch.autograd.grad(loss(*leaves), leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def autocast(call: Callable[[], Tensor]) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return call()


@pytest.mark.parametrize("chunk", [1 << 20, 1 << 11])
@pytest.mark.parametrize("how", ["autocast", "bfloat16"])
def test_sixteen_bits_stay_near_float32(chunk: int, how: str):
    torch.manual_seed(0)
    exact = [torch.randn(300, 32) * 0.5, torch.randn(200, 32) * 0.5]
    targets = torch.randint(1, 200, (300,))

    def loss(states: Tensor, vectors: Tensor) -> Tensor:
        scores = (states.float() * vectors[targets].float()).sum(1)
        return chunked_cross_entropy(states, scores, Competitors(vectors, own=targets, first=1), chunk=chunk)

    dtype = torch.bfloat16 if how == "bfloat16" else torch.float32
    leaves = [leaf.to(dtype).requires_grad_() for leaf in exact]
    found = autocast(lambda: loss(*leaves)) if how == "autocast" else loss(*leaves)
    assert found.dtype == torch.float32
    gradients = torch.autograd.grad(found, leaves)
    assert [gradient.dtype for gradient in gradients] == [dtype, dtype]
    wanted = [leaf.requires_grad_() for leaf in exact]
    expected = F.cross_entropy(wanted[0] @ wanted[1][1:].T, targets - 1)
    assert found.item() == pytest.approx(expected.item(), rel=2e-3)
    for gradient, want in zip(gradients, torch.autograd.grad(expected, wanted), strict=True):
        assert (gradient.float() - want).norm() < 0.02 * want.norm()


@pytest.mark.parametrize("chunk", [1 << 18, 1 << 21])
def test_memory_does_not_hold_all_scores(chunk: int):
    events, columns, width = 1024, 60_000, 8
    states, vectors = (
        torch.randn(events, width).requires_grad_(),
        torch.randn(columns, width).requires_grad_(),
    )
    targets = torch.randint(1, columns, (events,))

    def step() -> None:
        scores = (states * vectors[targets]).sum(1)
        candidates = Competitors(vectors, own=targets, first=1)
        torch.autograd.grad(chunked_cross_entropy(states, scores, candidates, chunk=chunk), (states, vectors))

    step()
    of_table = 4 * columns * width
    # All scores are 234 MiB, twice with their gradients. Tiles, their masks, and what has the table's size.
    assert peak_bytes(step, torch.device("cpu")) < 3 * 4 * chunk + 5 * of_table + (16 << 20)
