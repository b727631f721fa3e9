"""The Triton convolution on a GPU: pytest -m gpu. In the interpreter, `tests/ops` has it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seqrec.ops import causal_conv1d, triton_support

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(triton_support.interprets(), reason="TRITON_INTERPRET is set"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]


def make_leaves(batch: int, length: int, channels: int, taps: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = {"x": (batch, length, channels), "weight": (channels, taps), "bias": (channels,)}
    return {
        name: torch.randn(shape, generator=generator, device="cuda").requires_grad_() for name, shape in shapes.items()
    }


def total(**leaves: Tensor) -> Tensor:
    return causal_conv1d(**leaves, silu=True, backend="triton").square().sum()


@pytest.mark.parametrize("taps", [1, 3, 8, 20])
def test_any_number_of_taps_equals_plain_torch(taps: int):
    gradients = []
    for backend in ("triton", "shifted"):
        leaves = make_leaves(3, 300, 70, taps)
        causal_conv1d(**leaves, silu=True, backend=backend).square().sum().backward()
        gradients.append([x.grad for x in leaves.values()])
    for actual, expected in zip(*gradients, strict=True):
        assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_all_results_are_the_same_bit_for_bit_each_time():
    leaves = make_leaves(16, 3000, 130)
    first, second = (torch.autograd.grad(total(**leaves), leaves.values()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_torch_compile_gives_the_same():
    leaves = make_leaves(2, 100, 64)
    expected = torch.autograd.grad(total(**leaves), leaves.values())
    found = torch.autograd.grad(torch.compile(total, fullgraph=True)(**leaves), leaves.values())
    torch.testing.assert_close(found, expected)


def test_more_than_two_to_the_31_elements_are_found():
    free, _ = torch.cuda.mem_get_info()
    if free < 60 << 30:
        pytest.skip("needs 60 GB of free device memory")
    leaves = make_leaves(1, 1, 6400)
    weight = {name: leaves[name] for name in ("weight", "bias")}
    x = torch.zeros(70, 5000, 6400, device="cuda")
    x[-1].normal_()
    outcomes = []
    for part in (x, x[-1:].clone()):
        leaf = part.requires_grad_()
        out = causal_conv1d(leaf, **weight, silu=True, backend="triton")
        (dx,) = torch.autograd.grad(out[-1].square().sum(), leaf)
        outcomes.append((out[-1].detach(), dx[-1].clone()))
        assert not dx[:-1].any()
    torch.testing.assert_close(*outcomes)
