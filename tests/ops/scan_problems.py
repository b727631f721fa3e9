"""Scan problems for tests: inputs, outcomes with gradients, and how near two outcomes must be."""

import os

import pytest
import torch

from seqrec.ops import selective_scan
from seqrec.ops.selective_scan import SCAN_BACKENDS

OPTIONAL = ("D", "z", "delta_bias", "initial_state", "valid", "start")
LARGER = {"B": 2, "L": 45, "D": 19, "N": 5}
# Backends that compute on a CPU somewhere; those for GPUs alone have tests of their own.
ON_CPU = [name for name in SCAN_BACKENDS.names if SCAN_BACKENDS[name].supports("cpu", torch.float32)]
# What CI installs: there, a backend that is missing fails its tests instead of skipping them.
IN_CI = ("cpp", "triton")


def require(name, given=()):
    """Skip where a backend cannot run float32 on this machine's CPU with these optional arguments."""
    reason = SCAN_BACKENDS[name].why_unusable("cpu", torch.float32, given)
    if reason and name in IN_CI and os.environ.get("CI") == "true":
        pytest.fail(f"CI has the backend {name!r}, but it {reason}")
    if reason:
        pytest.skip(f"{name} {reason}")


def make_inputs(B=2, L=7, D=3, N=4, dtype=torch.float32, seed=0, flags=False):
    """All real inputs; with `flags` a third of the events is padding, and a fifth begins a history."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = {
        "u": normal(B, L, D),
        "delta": normal(B, L, D) - 1,
        "A": -torch.exp(normal(D, N)),
        "B": normal(B, L, N),
        "C": normal(B, L, N),
        "D": normal(D),
        "z": normal(B, L, D),
        "delta_bias": normal(D),
        "initial_state": normal(B, D, N),
    }
    inputs = {name: value.to(dtype).requires_grad_() for name, value in inputs.items()}
    return inputs | ({"valid": normal(B, L) < 0.4, "start": normal(B, L) > 0.8} if flags else {})


def without(inputs, *names):
    return {name: value for name, value in inputs.items() if name not in names}


def run(inputs, backend, dtype=torch.float32, delta_softplus=True):
    """Outputs and, by fixed weights on both of them, the gradients of all real inputs."""
    inputs = {
        name: value.detach().to(dtype).requires_grad_() if value.is_floating_point() else value
        for name, value in inputs.items()
    }
    y, last = selective_scan(**inputs, delta_softplus=delta_softplus, return_last_state=True, backend=backend)
    weights = [
        torch.linspace(-1, 2, x.numel(), dtype=torch.float64).cos().view(x.shape).to(dtype) for x in (y, last)
    ]
    # The last state of no events is constant where there is no initial state.
    reached = [(x, weight) for x, weight in zip((y, last), weights, strict=True) if x.requires_grad]
    if reached:
        torch.autograd.backward(*zip(*reached, strict=True))
    real = {name: x for name, x in inputs.items() if x.is_floating_point()}
    gradients = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in real.items()}
    return {"y": y.detach(), "last": last.detach(), **gradients}


def assert_close(actual, expected, tolerance=1e-5, least=1e-6):
    """Largest error of each tensor at most `tolerance` of its largest value, and of `least` where that is less."""
    for name, value in expected.items():
        assert actual[name].shape == value.shape, name
        if value.numel():
            scale = value.abs().max().clamp_min(least)
            assert (actual[name].double() - value).abs().max() <= tolerance * scale, name
