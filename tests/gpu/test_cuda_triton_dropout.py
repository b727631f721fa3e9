"""The Triton dropout on a GPU: pytest -m gpu. In the interpreter, `tests/ops` has it."""

from __future__ import annotations

import pytest
import torch

from seqrec.ops import dropout, triton_support
from seqrec.ops.random import new_seed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(triton_support.interprets(), reason="TRITON_INTERPRET is set"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]
SEED = torch.tensor([987654321])


@pytest.mark.parametrize("count", [1, 33, 4096, 10_007, 3_000_001])
@pytest.mark.parametrize("seed", [SEED, -SEED, SEED << 30])
def test_the_elements_that_a_cpu_drops_are_dropped(count: int, seed: torch.Tensor):
    x, weights = torch.randn(2, count)
    results = []
    for backend, device in (("reference", "cpu"), ("triton", "cuda")):
        leaf = x.to(device).requires_grad_()
        y = dropout(leaf, 0.3, seed=seed, backend=backend)
        (gradient,) = torch.autograd.grad(y, leaf, weights.to(device))
        results.append([y.detach().cpu(), gradient.cpu()])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_more_than_two_to_the_31_elements_are_found():
    x = torch.ones(2**31 + 5, dtype=torch.bfloat16, device="cuda")
    y = dropout(x, 0.5, seed=SEED, backend="triton")
    end = slice(2**31, None)
    tail = dropout(torch.ones(4101, device="cuda"), 0.5, seed=SEED, backend="triton")
    assert y[end].float().unique().tolist() in ([0.0, 2.0], [0.0], [2.0])
    assert 0.49 < float((y[-(2**20) :] == 0).float().mean()) < 0.51
    assert not torch.equal(y[:4101].float(), y[2**30 : 2**30 + 4101].float())
    torch.testing.assert_close(y[:4101].float(), tail)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_each_type_keeps_its_type(dtype: torch.dtype):
    y = dropout(torch.ones(1000, 100, dtype=dtype, device="cuda"), 0.5, backend="triton")
    assert y.dtype == dtype
    assert sorted(y.unique().tolist()) == [0.0, 2.0]
    assert 0.49 < float((y == 0).float().mean()) < 0.51


def test_a_seed_on_the_device_changes_between_replays_of_a_graph():
    x = torch.ones(100_000, device="cuda", requires_grad=True)
    seed = new_seed("cuda")

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        y = dropout(x, 0.5, seed=seed, backend="triton")
        return y, torch.autograd.grad(y.sum(), x)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, gradient = step()
    outcomes = []
    for number in (1, 2, 1):
        seed.fill_(number)
        graph.replay()
        assert torch.equal(y, gradient)
        outcomes.append(y.detach().clone())
    assert torch.equal(outcomes[0], outcomes[2])
    assert not torch.equal(outcomes[0], outcomes[1])
    assert torch.equal(outcomes[0], dropout(x, 0.5, seed=torch.tensor([1]), backend="triton"))


def test_torchs_seed_of_the_device_decides():
    x = torch.ones(1000, device="cuda")
    torch.cuda.manual_seed(3)
    first, second = (dropout(x, 0.5, backend="triton") for _ in range(2))
    torch.cuda.manual_seed(3)
    assert torch.equal(dropout(x, 0.5, backend="triton"), first)
    assert not torch.equal(first, second)


def test_torch_compile_gives_the_same():
    x = torch.randn(300, 70, device="cuda", requires_grad=True)

    def total(x: torch.Tensor) -> torch.Tensor:
        return dropout(x, 0.3, seed=SEED, backend="triton").square().sum()

    (expected,) = torch.autograd.grad(total(x), x)
    (found,) = torch.autograd.grad(torch.compile(total, fullgraph=True)(x), x)
    torch.testing.assert_close(found, expected)
