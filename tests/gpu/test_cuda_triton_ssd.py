"""The Triton kernels of Mamba-2's scan on a GPU: pytest -m gpu. In the interpreter, `tests/ops` has them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from scan_runs import ALWAYS
from scan_runs import run as run_scan

from seqrec.ops import ssd_scan, triton_support

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(triton_support.interprets(), reason="TRITON_INTERPRET is set"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]

run = partial(run_scan, ssd_scan)


def make_inputs(
    B: int, L: int, H: int, P: int, G: int, N: int, flags: bool = False, seed: int = 0
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    inputs = {"x": normal(B, L, H, P), "delta": normal(B, L, H) - 1, "A": -torch.exp(normal(H))}
    inputs |= {"B": normal(B, L, G, N), "C": normal(B, L, G, N), "D": normal(H), "z": normal(B, L, H, P)}
    inputs |= {"delta_bias": normal(H), "initial_state": normal(B, H, P, N)}
    return inputs | ({"valid": normal(B, L) < 0.4, "start": normal(B, L) > 2} if flags else {})


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    # These gradients are sums over events, which may cancel to less than their terms.
    terms = {"A": "delta", "delta_bias": "delta", "D": "x"}
    for name, value in expected.items():
        scale = max(float(x.abs().max()) for x in (value, expected[terms.get(name, name)]))
        assert (found[name] - value).abs().max() <= tolerance * max(scale, 1e-6), name


@pytest.mark.parametrize("flags", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        (2, 1, 1, 1, 1, 1),
        (3, 150, 4, 5, 2, 3),
        (2, 333, 2, 64, 1, 32),
        (1, 200, 3, 130, 3, 200),
        (40, 60, 2, 32, 1, 64),
    ],
    ids=str,
)
def test_values_and_gradients_equal_the_float64_reference_on_cpu(sizes: tuple[int, ...], flags: bool):
    inputs = make_inputs(*sizes, flags)
    expected = run(inputs, "reference", "cpu", torch.float64)
    assert_near(run(inputs, "triton", "cuda"), expected, 1e-5)


def test_many_events_equal_float64():
    inputs = make_inputs(2, 5000, 2, 64, 1, 32, flags=True)
    assert_near(run(inputs, "triton", "cuda"), run(inputs, "chunked", "cpu", torch.float64), 2e-5)


@pytest.mark.parametrize("size", [-1e30, -100.0, -20.0, 20.0, 89.0, 1e20, 1e30])
def test_extreme_step_sizes_give_what_the_reference_gives(size: float):
    inputs = make_inputs(2, 100, 2, 16, 1, 16)
    inputs["delta"][0, ::3] = size
    inputs["z"] *= 200
    expected = run(inputs, "reference", "cpu", torch.float64)
    assert all(value.isfinite().all() for value in expected.values())
    assert_near(run(inputs, "triton", "cuda"), expected, 1e-4)


def test_what_stands_in_the_padding_and_before_a_start_is_of_no_effect():
    inputs = make_inputs(2, 300, 2, 32, 1, 16, flags=True)
    clean = run(inputs, "triton", "cuda")
    for name in ("x", "delta", "B", "C", "z"):
        padding = ~inputs["valid"].view(2, 300, *[1] * (inputs[name].dim() - 2))
        result = run(inputs | {name: inputs[name].masked_fill(padding, float("nan"))}, "triton", "cuda")
        assert all(torch.equal(result[key], clean[key]) for key in clean), name
    start = torch.zeros(2, 300, dtype=torch.bool)
    start[:, 200] = True
    clean = run(inputs | {"start": start}, "triton", "cuda")
    dirty = inputs["x"].clone()
    dirty[:, :200] = float("nan")
    result = run(inputs | {"start": start, "x": dirty}, "triton", "cuda")
    for key in ("y", "x", "delta", "B", "C"):
        assert torch.equal(result[key][:, 200:], clean[key][:, 200:]), key
    assert torch.equal(result["last"], clean["last"])
    # A NaN that is not in the padding is not hidden.
    assert result["y"][:, :200][inputs["valid"][:, :200]].isnan().any()


def test_parts_of_wider_tensors_are_read_where_they_are():
    inputs = {name: x.cuda() for name, x in make_inputs(3, 100, 2, 32, 1, 16).items()}
    wide = torch.cat([inputs["x"].flatten(2), inputs["B"].flatten(2), inputs["C"].flatten(2)], -1)
    x, B, C = wide.split([64, 16, 16], -1)
    parts = {"x": x.unflatten(-1, (2, 32)), "B": B.unsqueeze(2), "C": C.unsqueeze(2)}
    assert not parts["x"].is_contiguous()
    for found, expected in zip(
        ssd_scan(**inputs | parts, **ALWAYS, backend="triton"),
        ssd_scan(**inputs, **ALWAYS, backend="triton"),
        strict=True,
    ):
        assert torch.equal(found, expected)


def test_all_results_are_the_same_bit_for_bit_each_time():
    inputs = make_inputs(4, 2000, 2, 64, 1, 32, flags=True)
    first, second = (run(inputs, "triton", "cuda") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_half_precision_and_autocast_keep_float32():
    inputs = {name: x.cuda() for name, x in make_inputs(2, 300, 2, 32, 1, 16).items()}
    expected, _ = ssd_scan(**inputs, **ALWAYS, backend="triton")
    with torch.autocast("cuda", torch.bfloat16):
        y, _ = ssd_scan(**inputs, **ALWAYS, backend="triton")
    assert torch.equal(y, expected)
    y, last = ssd_scan(**{name: x.bfloat16() for name, x in inputs.items()}, **ALWAYS, backend="triton")
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)


def test_tf32_is_used_only_if_torch_may_use_it():
    inputs = make_inputs(2, 300, 2, 64, 1, 64)
    expected = run(inputs, "reference", "cpu", torch.float64)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        lower = run(inputs, "triton", "cuda")
    finally:
        torch.set_float32_matmul_precision(before)
    assert_near(lower, expected, 1e-2)
    assert (lower["y"] - expected["y"]).abs().max() > 2 * (
        run(inputs, "triton", "cuda")["y"] - expected["y"]
    ).abs().max()


def test_torch_compile_gives_the_same():
    inputs = {name: x.cuda() for name, x in make_inputs(2, 100, 2, 32, 1, 16).items()}

    def total(**given: torch.Tensor) -> torch.Tensor:
        return ssd_scan(**given, delta_softplus=True, backend="triton").square().sum()

    leaves = [{name: x.clone().requires_grad_() for name, x in inputs.items()} for _ in range(2)]
    total(**leaves[0]).backward()
    torch.compile(total, fullgraph=True)(**leaves[1]).backward()
    for name in inputs:
        torch.testing.assert_close(leaves[1][name].grad, leaves[0][name].grad)
