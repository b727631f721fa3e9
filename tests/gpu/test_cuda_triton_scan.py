"""The Triton scan on a GPU: pytest -m gpu. In the interpreter, `tests/ops` has it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from scan_runs import ALWAYS
from scan_runs import run as run_scan

from seqrec.ops import selective_scan, triton_support
from seqrec.ops.selective_scan import SCAN_BACKENDS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(triton_support.interprets(), reason="TRITON_INTERPRET is set"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]

run = partial(run_scan, selective_scan)


def make_inputs(B: int, L: int, D: int, N: int, flags: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    inputs = {name: normal(B, L, D) for name in ("u", "delta", "z")}
    inputs |= {"B": normal(B, L, N), "C": normal(B, L, N), "D": normal(D), "delta_bias": normal(D) - 1}
    inputs |= {"A": -torch.exp(normal(D, N)), "initial_state": normal(B, D, N)}
    return inputs | ({"valid": normal(B, L) < 0.4, "start": normal(B, L) > 2} if flags else {})


@pytest.mark.parametrize("flags", [False, True])
@pytest.mark.parametrize(
    ("B", "L", "D", "N"),
    [(2, 1, 1, 1), (3, 65, 37, 5), (2, 333, 130, 70), (1, 200, 6, 256), (1, 5000, 64, 32), (300, 40, 64, 16)],
)
def test_values_and_gradients_equal_the_float64_reference_on_cpu(B: int, L: int, D: int, N: int, flags: bool):
    inputs = make_inputs(B, L, D, N, flags)
    expected = run(inputs, "reference", "cpu", torch.float64)
    found = run(inputs, "triton", "cuda")
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-5 * value.abs().max().clamp_min(1e-6), name


@pytest.mark.parametrize("size", [-1e30, -100.0, -20.0, 20.0, 89.0, 1e20, 1e30])
def test_extreme_step_sizes_give_what_the_reference_gives(size: float):
    inputs = make_inputs(2, 45, 19, 5)
    inputs["delta"][0, ::3] = size
    inputs["z"] *= 200
    expected = run(inputs, "reference", "cpu", torch.float64)
    found = run(inputs, "triton", "cuda")
    for name, value in expected.items():
        assert value.isfinite().all()
        assert (found[name] - value).abs().max() <= 1e-4 * value.abs().max().clamp_min(1e-6), name


def test_what_stands_in_the_padding_and_before_a_start_is_of_no_effect():
    inputs = make_inputs(2, 500, 40, 16, flags=True)
    clean = run(inputs, "triton", "cuda")
    for name in ("u", "delta", "B", "C", "z"):
        dirty = inputs[name].masked_fill(~inputs["valid"].unsqueeze(-1), float("nan"))
        result = run(inputs | {name: dirty}, "triton", "cuda")
        assert all(torch.equal(result[key], clean[key]) for key in clean), name
    start = torch.zeros(2, 500, dtype=torch.bool)
    start[:, 300] = True
    clean = run(inputs | {"start": start}, "triton", "cuda")
    dirty = inputs["u"].clone()
    dirty[:, :300] = float("nan")
    result = run(inputs | {"start": start, "u": dirty}, "triton", "cuda")
    assert torch.equal(result["y"][:, 300:], clean["y"][:, 300:])
    assert torch.equal(result["last"], clean["last"])


def test_all_results_are_the_same_bit_for_bit_each_time():
    inputs = make_inputs(4, 3000, 128, 32, flags=True)
    first, second = (run(inputs, "triton", "cuda") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_auto_is_a_fast_backend_and_half_precision_and_autocast_keep_float32():
    assert SCAN_BACKENDS.auto("cuda", torch.float32, ("start",))[0].name == "triton"
    inputs = {name: x.cuda() for name, x in make_inputs(2, 300, 64, 16).items()}
    expected, last = selective_scan(**inputs, **ALWAYS, backend="triton")
    with torch.autocast("cuda", torch.bfloat16):
        y, _ = selective_scan(**inputs, **ALWAYS, backend="triton")
    assert torch.equal(y, expected)
    half = {name: x.bfloat16() for name, x in inputs.items()}
    y, last = selective_scan(**half, **ALWAYS, backend="triton")
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)


def test_torch_compile_gives_the_same():
    inputs = {name: x.cuda() for name, x in make_inputs(2, 100, 64, 16).items()}

    def total(**given: torch.Tensor) -> torch.Tensor:
        return selective_scan(**given, delta_softplus=True, backend="triton").square().sum()

    leaves = [{name: x.clone().requires_grad_() for name, x in inputs.items()} for _ in range(2)]
    total(**leaves[0]).backward()
    torch.compile(total, fullgraph=True)(**leaves[1]).backward()
    for name in inputs:
        torch.testing.assert_close(leaves[1][name].grad, leaves[0][name].grad)


def test_more_than_two_to_the_31_elements_are_found():
    free, _ = torch.cuda.mem_get_info()
    if free < 60 << 30:
        pytest.skip("needs 60 GB of free device memory")
    sizes = {"B": 70, "L": 5000, "D": 6400, "N": 1}
    shape = (sizes["B"], sizes["L"], sizes["D"])
    u = torch.zeros(shape, device="cuda")
    u[-1] = torch.randn(shape[1:], device="cuda")
    row = torch.ones(sizes["B"], sizes["L"], 1, device="cuda")
    A = -torch.ones(sizes["D"], 1, device="cuda")
    y = selective_scan(u, torch.ones_like(u), A, row, row, backend="triton")
    alone = selective_scan(u[-1:], torch.ones_like(u[-1:]), A, row[-1:], row[-1:], backend="triton")
    torch.testing.assert_close(y[-1:], alone)
    assert not y[:-1].any()


@pytest.mark.skipif("mamba_ssm" not in SCAN_BACKENDS.names, reason="no such backend")
def test_it_equals_the_kernels_of_mamba_ssm():
    if reason := SCAN_BACKENDS["mamba_ssm"].why_unusable("cuda", torch.float32, ("initial_state", "valid")):
        pytest.skip(f"mamba_ssm {reason}")
    inputs = make_inputs(4, 5000, 128, 32)
    ours, theirs = (run(inputs, name, "cuda") for name in ("triton", "mamba_ssm"))
    for name, value in theirs.items():
        assert (ours[name] - value).abs().max() <= 1e-4 * value.abs().max(), name
