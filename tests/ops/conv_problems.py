"""Convolution problems for tests: inputs, and outcomes with gradients."""

import os

import pytest
import torch
from scan_problems import IN_CI

from seqrec.ops import causal_conv1d
from seqrec.ops.causal_conv1d import CONV_BACKENDS

OPTIONAL = ("bias", "initial_state", "valid", "start")
LARGER = {"B": 2, "L": 45, "D": 19, "W": 4}
# Backends that compute on a CPU; the one for GPUs alone has tests of its own.
ON_CPU = [name for name in CONV_BACKENDS.names if CONV_BACKENDS[name].supports("cpu", torch.float32)]


def require(name, given=()):
    """Skip where a backend cannot run float32 on this machine's CPU with these optional arguments; fail in CI."""
    if reason := CONV_BACKENDS[name].why_unusable("cpu", torch.float32, given):
        refuse = pytest.fail if name in IN_CI and os.environ.get("CI") == "true" else pytest.skip
        refuse(f"{name} {reason}")


def make_inputs(B=2, L=9, D=5, W=4, dtype=torch.float32, seed=0, flags=False):
    """All real inputs; with `flags` a third of the events is padding, and a fifth begins a history."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (B, L, D), "weight": (D, W), "bias": (D,), "initial_state": (B, W - 1, D)}
    inputs = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for name, shape in shapes.items()
    }
    drawn = torch.rand(2, B, L, generator=generator)
    return inputs | ({"valid": drawn[0] < 0.7, "start": drawn[1] < 0.2} if flags else {})


def run(inputs, backend, dtype=torch.float32, silu=True):
    """Outputs and, by fixed weights on both of them, the gradients of all real inputs."""
    inputs = {
        name: value.detach().to(dtype).requires_grad_() if value.is_floating_point() else value
        for name, value in inputs.items()
    }
    out, last = causal_conv1d(**inputs, silu=silu, return_last_state=True, backend=backend)
    weights = [
        torch.linspace(-1, 2, x.numel(), dtype=torch.float64).cos().view(x.shape).to(dtype)
        for x in (out, last)
    ]
    # No events and no initial state make constants.
    reached = [(x, weight) for x, weight in zip((out, last), weights, strict=True) if x.requires_grad]
    if reached:
        torch.autograd.backward(*zip(*reached, strict=True))
    real = {name: x for name, x in inputs.items() if x.is_floating_point()}
    gradients = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in real.items()}
    return {"out": out.detach(), "last": last.detach(), **gradients}
