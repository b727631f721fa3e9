"""The ops as tests see them: problems, outcomes with gradients, and how near two outcomes must be."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from seqrec.ops import causal_conv1d, gated_delta_rule, selective_scan, ssd_scan
from seqrec.ops.backends import Backends
from seqrec.ops.causal_conv1d import CONV_BACKENDS
from seqrec.ops.gated_delta import GATED_DELTA_BACKENDS
from seqrec.ops.selective_scan import SCAN_BACKENDS, selective_scan_step
from seqrec.ops.ssd import SSD_BACKENDS, ssd_step

# CI installs these: there, a missing one fails its tests instead of skipping them.
IN_CI = ("cpp", "triton")


@dataclass(frozen=True, eq=False)
class Op:
    """An op and the problems that tests give it.

    Attributes:
        name: Name in test ids.
        function: The op.
        backends: Its backends.
        draw: Makes real inputs from a function that draws normal float64 numbers, and sizes.
        activation: Argument that turns softplus or SiLU on; empty if there is none.
        events: Inputs with an axis of events; the first one decides the results' dtype.
        optional: Arguments that may be None.
        larger: Sizes of a problem of more than one chunk of any backend, and not a multiple of one.
        largest: Sizes of many events, states and channels.
        edges: Sizes that are empty or smallest, as changes to small ones.
        splits: Events after which a problem of size `larger` is split.
        begins: Events at which packed histories begin in a problem of size `larger`.
        plain: The backend in plain torch.
        sizing: The argument that decides sizes besides the first one.
        step: Computes a single event; None for the convolution.
        least: Smallest scale that errors are compared with.
        narrow_states: States that have the type of the first input.
        terms: Gradient that is a sum over events -> a gradient as large as its terms, which may cancel.
    """

    name: str
    function: Callable[..., Any]
    backends: Backends[Any]
    draw: Callable[..., dict[str, torch.Tensor]]
    activation: str
    events: tuple[str, ...]
    optional: tuple[str, ...]
    larger: dict[str, int]
    largest: dict[str, int]
    edges: tuple[dict[str, int], ...]
    splits: tuple[int, ...]
    begins: tuple[int, ...]
    plain: str
    sizing: str
    step: Callable[..., Any] | None = None
    least: float = 1e-6
    narrow_states: tuple[str, ...] = ()
    terms: dict[str, str] = field(default_factory=dict)

    @property
    def on_cpu(self):
        """Backends that compute on a CPU somewhere; those for GPUs alone have tests of their own."""
        return [name for name in self.backends.names if self.backends[name].supports("cpu", torch.float32)]

    def require(self, name, given=()):
        """Skip if a backend cannot run float32 on this machine's CPU with these optional arguments; fail in CI."""
        if reason := self.backends[name].why_unusable("cpu", torch.float32, given):
            refuse = pytest.fail if name in IN_CI and os.environ.get("CI") == "true" else pytest.skip
            refuse(f"{name} {reason}")

    def make(self, *, dtype=torch.float32, seed=0, flags=False, **sizes):
        """All real inputs; with `flags` a third of the events is padding, and a fifth begins a history."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        inputs = self.draw(normal, **sizes)
        inputs = {name: value.to(dtype).requires_grad_() for name, value in inputs.items()}
        shape = inputs[self.events[0]].shape[:2]
        return inputs | ({"valid": normal(*shape) < 0.4, "start": normal(*shape) > 0.8} if flags else {})

    def detached(self, **sizes):
        return {name: value.detach() for name, value in self.make(**sizes).items()}

    def __call__(self, inputs, backend, activate=True, **options):
        """Outputs and last state."""
        activation = {self.activation: activate} if self.activation else {}
        options = {**activation, "return_last_state": True} | options
        return self.function(**inputs, **options, backend=backend)

    def run(self, inputs, backend, dtype=torch.float32, activate=True):
        """Outputs "y" and "last" and, by fixed weights on both of them, the gradients of all real inputs."""
        inputs = {
            name: value.detach().to(dtype).requires_grad_() if value.is_floating_point() else value
            for name, value in inputs.items()
        }
        outputs = self(inputs, backend, activate)
        # Without events and an initial state the last state is constant.
        if reached := [(x, weights(x)) for x in outputs if x.requires_grad]:
            torch.autograd.backward(*zip(*reached, strict=True))
        real = {name: x for name, x in inputs.items() if x.is_floating_point()}
        gradients = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in real.items()}
        return {"y": outputs[0].detach(), "last": outputs[1].detach(), **gradients}

    def assert_close(self, actual, expected, tolerance=1e-5, least=None):
        """Largest error of each tensor at most `tolerance` of its largest value or of its terms', at least `least`."""
        least = self.least if least is None else least
        for name, value in expected.items():
            assert actual[name].shape == value.shape, name
            if value.numel():
                terms = expected.get(self.terms.get(name, name), value)
                scale = max([least, *(x.abs().max().item() for x in (value, terms) if x.numel())])
                assert (actual[name].double() - value).abs().max() <= tolerance * scale, name

    def assert_reference(self, inputs, backend, tolerance=1e-5, **options):
        """Values and gradients equal those of the reference in float64."""
        expected = self.run(inputs, "reference", torch.float64, **options)
        self.assert_close(self.run(inputs, backend, **options), expected, tolerance)

    def cut(self, inputs, part):
        """The inputs of some events."""
        names = (*self.events, "valid", "start")
        return {name: x[:, part] if name in names else x for name, x in inputs.items()}

    def event(self, **sizes):
        """Arguments of a step."""
        inputs = self.make(**sizes)
        event = {name: x[:, 0] if name in self.events else x for name, x in inputs.items()}
        event["state"] = event.pop("initial_state")
        return event

    def starts(self, *events, batch=2):
        """Flags of rows in which histories begin at these events."""
        start = torch.zeros(batch, self.larger["L"], dtype=torch.bool)
        start[:, list(events)] = True
        return start


def weights(x):
    """Fixed weights of both signs."""
    return torch.linspace(-1, 2, x.numel(), dtype=torch.float64).cos().view(x.shape).to(x.dtype)


def without(inputs, *names):
    return {name: value for name, value in inputs.items() if name not in names}


def draw_scan(normal, B=2, L=7, D=3, N=4):
    return {
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


def draw_ssd(normal, B=2, L=7, H=2, P=3, G=1, N=4):
    return {
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


def draw_gated_delta(normal, B=2, L=7, H=2, K=4, V=3):
    q, k = (torch.nn.functional.normalize(normal(B, L, H, K), dim=-1) for _ in range(2))
    return {
        "q": q,
        "k": k,
        "v": normal(B, L, H, V),
        "log_decay": -torch.exp(normal(B, L, H) - 2),
        "beta": torch.sigmoid(normal(B, L, H)),
        "initial_state": normal(B, H, V, K),
    }


def draw_convolution(normal, B=2, L=9, D=5, W=4):
    shapes = {"x": (B, L, D), "weight": (D, W), "bias": (D,), "initial_state": (B, W - 1, D)}
    return {name: normal(*shape) for name, shape in shapes.items()}


SCAN = Op(
    "scan",
    selective_scan,
    SCAN_BACKENDS,
    draw_scan,
    "delta_softplus",
    events=("u", "delta", "B", "C", "z"),
    optional=("D", "z", "delta_bias", "initial_state", "valid", "start"),
    larger={"B": 2, "L": 45, "D": 19, "N": 5},
    largest={"B": 1, "L": 300, "D": 130, "N": 70},
    edges=({"L": 0}, {"B": 0}, {"L": 1}, {"D": 1, "N": 1}, {"N": 0}),
    splits=(0, 1, 31, 32, 44, 45),
    begins=(0, 1, 13, 40, 45),
    plain="chunked",
    sizing="A",
    step=selective_scan_step,
)
SSD = Op(
    "ssd",
    ssd_scan,
    SSD_BACKENDS,
    draw_ssd,
    "delta_softplus",
    events=("x", "delta", "B", "C", "z"),
    optional=SCAN.optional,
    larger={"B": 2, "L": 150, "H": 4, "P": 5, "G": 2, "N": 3},
    largest={"B": 1, "L": 700, "H": 6, "P": 33, "G": 2, "N": 70},
    edges=({"L": 0}, {"B": 0}, {"L": 1}, {"L": 64}, {"H": 1, "P": 1, "N": 1}, {"N": 0}, {"P": 0}),
    splits=(0, 1, 63, 64, 149, 150),
    begins=(0, 1, 13, 64, 100, 150),
    plain="chunked",
    sizing="B",
    step=ssd_step,
    terms={"A": "delta", "delta_bias": "delta", "D": "x"},
)
CONVOLUTION = Op(
    "convolution",
    causal_conv1d,
    CONV_BACKENDS,
    draw_convolution,
    "silu",
    events=("x",),
    optional=("bias", "initial_state", "valid", "start"),
    larger={"B": 2, "L": 45, "D": 19, "W": 4},
    largest={"B": 1, "L": 300, "D": 70, "W": 4},
    edges=({"L": 0}, {"B": 0}, {"L": 1}, {"D": 1, "W": 1}, {"D": 0}, {"W": 20}),
    splits=(0, 1, 2, 21, 43, 45),
    begins=(0, 1, 3, 13, 40, 45),
    plain="shifted",
    sizing="weight",
    narrow_states=("initial_state",),
)
# `test_gated_delta` has its tests.
GATED_DELTA = Op(
    "gated_delta",
    gated_delta_rule,
    GATED_DELTA_BACKENDS,
    draw_gated_delta,
    "",
    events=("q", "k", "v", "log_decay", "beta"),
    optional=("initial_state", "valid", "start"),
    larger={"B": 2, "L": 75, "H": 2, "K": 5, "V": 3},
    largest={"B": 1, "L": 300, "H": 2, "K": 32, "V": 64},
    edges=({"L": 0}, {"B": 0}, {"L": 1}, {"L": 32}, {"K": 0}, {"V": 0}, {"H": 1, "K": 1, "V": 1}),
    splits=(0, 1, 31, 32, 74, 75),
    begins=(0, 1, 13, 32, 50, 75),
    plain="chunked",
    sizing="v",
    terms={"log_decay": "q"},
)
OPS = (SCAN, SSD, CONVOLUTION)
SCANS = (SCAN, SSD)


def cases(ops, leave_out=()):
    """Pairs of an op and a backend as parameters; those that Triton interprets are slow."""
    interpreted = [pytest.mark.kernels, pytest.mark.slow]
    return [
        pytest.param((op, name), marks=interpreted if name == "triton" else [], id=f"{op.name}-{name}")
        for op in ops
        for name in op.on_cpu
        if name not in leave_out
    ]
