"""Every backend of every op on the device against the float64 reference on CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from seqrec.ops import causal_conv1d, selective_scan, ssd_scan
from seqrec.ops.causal_conv1d import CONV_BACKENDS
from seqrec.ops.selective_scan import SCAN_BACKENDS
from seqrec.ops.ssd import SSD_BACKENDS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]
GENERATOR = torch.Generator()
FLAGS = ("valid", "start")


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


def flags(batch: int, length: int) -> dict[str, Tensor]:
    lengths = torch.randint(1, length + 1, (batch, 1), generator=GENERATOR)
    return {"valid": torch.arange(length) < lengths, "start": normal(batch, length) > 2}


def scan_inputs(batch: int, length: int, channels: int, states: int) -> dict[str, Tensor]:
    wide = {name: normal(batch, length, channels) for name in ("u", "delta", "z")}
    narrow = {name: normal(batch, length, states) for name in ("B", "C")}
    A = -torch.arange(1.0, states + 1, dtype=torch.float64).repeat(channels, 1)
    rest = {"D": normal(channels), "delta_bias": normal(channels) - 4, "A": A}
    return wide | narrow | rest | {"initial_state": normal(batch, channels, states)} | flags(batch, length)


def ssd_inputs(batch: int, length: int, channels: int, states: int) -> dict[str, Tensor]:
    heads, width = max(1, channels // 16), 16
    wide = {name: normal(batch, length, heads, width) for name in ("x", "z")}
    narrow = {name: normal(batch, length, 1, states) for name in ("B", "C")}
    rest = {"delta": normal(batch, length, heads), "A": -normal(heads).exp(), "D": normal(heads)}
    rest |= {"delta_bias": normal(heads) - 4, "initial_state": normal(batch, heads, width, states)}
    return wide | narrow | rest | flags(batch, length)


def conv_inputs(batch: int, length: int, channels: int, taps: int) -> dict[str, Tensor]:
    inputs = {
        "x": normal(batch, length, channels),
        "weight": normal(channels, taps),
        "bias": normal(channels),
    }
    return inputs | {"initial_state": normal(batch, taps - 1, channels)} | flags(batch, length)


OPS: dict[str, tuple[Callable[..., Any], Any, Callable[..., dict[str, Tensor]], list[tuple[int, ...]]]] = {
    "selective_scan": (
        selective_scan,
        SCAN_BACKENDS,
        scan_inputs,
        [(2, 7, 5, 3), (3, 300, 130, 32), (2, 5000, 64, 16)],
    ),
    "ssd_scan": (ssd_scan, SSD_BACKENDS, ssd_inputs, [(2, 7, 16, 16), (3, 300, 128, 32), (2, 5000, 64, 64)]),
    "causal_conv1d": (
        causal_conv1d,
        CONV_BACKENDS,
        conv_inputs,
        [(2, 7, 8, 2), (3, 300, 130, 4), (2, 5000, 64, 4)],
    ),
}
CASES = [(op, backend) for op, (_, backends, _, _) in OPS.items() for backend in backends.names]


def outcome(function: Callable[..., Any], inputs: dict[str, Tensor], **options: Any) -> list[Tensor]:
    """y, the last state, and the gradients of all real inputs, through both."""
    leaves = {n: x.requires_grad_() if x.is_floating_point() else x for n, x in inputs.items()}
    results = function(**leaves, return_last_state=True, **options)
    # Weights of one sign: sums of thousands of numbers must not cancel to what rounding leaves.
    total = sum((r * torch.linspace(0.5, 1, r.numel(), device=r.device).view(r.shape)).sum() for r in results)
    real = [x for x in leaves.values() if x.is_floating_point()]
    return [*results, *torch.autograd.grad(total, real)]


@pytest.mark.parametrize(
    "given", [(), ("initial_state",), ("initial_state", *FLAGS)], ids=lambda names: "-".join(names)
)
@pytest.mark.parametrize("size", [0, 1, 2])
@pytest.mark.parametrize(("op", "backend"), CASES, ids="-".join)
def test_values_and_gradients_equal_the_float64_reference(op: str, backend: str, size: int, given: tuple[str, ...]):
    function, backends, make, sizes = OPS[op]
    reason = backends[backend].why_unusable("cuda", torch.float32, given)
    if reason and all(backends[backend].why_unusable("cuda", torch.float32, g) for g in ((), given)):
        pytest.skip(reason)
    if reason:  # It has no starts, but may have the rest.
        given = ("initial_state", "valid")
        if reason := backends[backend].why_unusable("cuda", torch.float32, given):
            pytest.skip(reason)
    if backend == "reference" and size == 2:
        pytest.skip("the reference is slow at this length")
    GENERATOR.manual_seed(0)
    inputs = make(*sizes[size])
    inputs = {n: x for n, x in inputs.items() if n not in ("initial_state", *FLAGS) or n in given}
    options = {} if op == "causal_conv1d" else {"delta_softplus": True}
    expected = outcome(function, {n: x.clone() for n, x in inputs.items()}, backend="reference", **options)
    there = {n: (x.float() if x.is_floating_point() else x).cuda() for n, x in inputs.items()}
    found = outcome(function, there, backend=backend, **options)
    for actual, value in zip(found, expected, strict=True):
        # The device's exp and sums over thousands of events round otherwise; 1e-4 of the largest value.
        assert (actual.cpu().double() - value).abs().max() <= 1e-4 * value.abs().max().clamp_min(1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", list(OPS))
def test_triton_reads_and_writes_16_bits_and_computes_in_float32(op: str, dtype: torch.dtype):
    function, backends, make, sizes = OPS[op]
    if reason := backends["triton"].why_unusable("cuda", torch.float32, ("initial_state",)):
        pytest.skip(reason)
    GENERATOR.manual_seed(0)
    inputs = {n: x.float().cuda() for n, x in make(*sizes[1]).items() if n not in FLAGS}
    activations = [n for n, x in inputs.items() if x.shape[:2] == next(iter(inputs.values())).shape[:2]]
    narrow = {n: x.to(dtype) if n in activations else x for n, x in inputs.items()}
    options = {} if op == "causal_conv1d" else {"delta_softplus": True}
    expected = outcome(function, {n: x.float().clone() for n, x in narrow.items()}, backend="triton", **options)
    found = outcome(function, narrow, backend="triton", **options)
    for actual, value in zip(found, expected, strict=True):
        # Rounded once, when it is written; gradients of y arrive rounded too.
        assert (actual.float() - value).abs().max() <= 4 * torch.finfo(dtype).eps * value.abs().max()


@pytest.mark.parametrize("op", list(OPS))
def test_auto_is_a_kernel_where_triton_or_a_package_is(op: str):
    _, backends, _, _ = OPS[op]
    name = backends.choose("auto", "cuda", torch.float32).name
    kernels = [b for b in backends.names if b in ("mamba_ssm", "triton", "causal_conv1d")]
    assert name in kernels or all(backends[b].missing() for b in kernels)
