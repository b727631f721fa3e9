"""State-space-dual scan problems for tests: inputs and outcomes with gradients."""

import pytest
import torch

from seqrec.ops.ssd import SSD_BACKENDS, ssd_scan

OPTIONAL = ("D", "z", "delta_bias", "initial_state", "valid", "start")
# More than two chunks of any backend, and no multiple of one.
LARGER = {"B": 2, "L": 150, "H": 4, "P": 5, "G": 2, "N": 3}
OF_EVENTS = ("x", "delta", "B", "C", "z")


def require(name, given=()):
    """Skip where a backend cannot run float32 on this machine's CPU with these optional arguments."""
    if reason := SSD_BACKENDS[name].why_unusable("cpu", torch.float32, given):
        pytest.skip(f"{name} {reason}")


def make_inputs(B=2, L=7, H=2, P=3, G=1, N=4, dtype=torch.float32, seed=0, flags=False):
    """All real inputs; with `flags` a third of the events is padding, and a fifth begins a history."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = {
        "x": normal(B, L, H, P),
        "delta": normal(B, L, H) - 1,
        "A": -torch.exp(normal(H)),
        "B": normal(B, L, G, N),
        "C": normal(B, L, G, N),
        "D": normal(H),
        "z": normal(B, L, H, P),
        "delta_bias": normal(H),
        "initial_state": normal(B, H, P, N),
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
    y, last = ssd_scan(**inputs, delta_softplus=delta_softplus, return_last_state=True, backend=backend)
    weights = [
        torch.linspace(-1, 2, out.numel(), dtype=torch.float64).cos().view(out.shape).to(dtype)
        for out in (y, last)
    ]
    # The last state of no events is constant where there is no initial state.
    reached = [(out, weight) for out, weight in zip((y, last), weights, strict=True) if out.requires_grad]
    if reached:
        torch.autograd.backward(*zip(*reached, strict=True))
    real = {name: value for name, value in inputs.items() if value.is_floating_point()}
    gradients = {
        name: torch.zeros_like(value) if value.grad is None else value.grad for name, value in real.items()
    }
    return {"y": y.detach(), "last": last.detach(), **gradients}


# Gradients that are sums over all events, and one whose numbers are as large as the terms: where there is but one head,
# the terms may cancel, and what is left is as exact as they are.
TERMS = {"A": "delta", "delta_bias": "delta", "D": "x"}


def assert_close(actual, expected, tolerance=1e-5):
    """Largest error of each tensor at most `tolerance` of its largest value, or of its terms'."""
    for name, value in expected.items():
        assert actual[name].shape == value.shape, name
        if value.numel():
            terms = expected.get(TERMS.get(name, name), value)
            scale = max(x.abs().max().item() for x in (value, terms, torch.tensor(1e-6)) if x.numel())
            assert (actual[name].double() - value).abs().max() <= tolerance * scale, name
