"""Stages that `benchmark scan` times, each in a process of its own: plain values in, plain values out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.benchmark.measurement import peak_bytes
from seqrec.encoders import MambaRec, SASRec, SequenceEncoder
from seqrec.ops import selective_scan
from seqrec.types import History

# mambapy's parallel scan, the fastest other one in plain torch.
PSCAN = "mambapy"
_MAX_ROUNDS = 30

Step = Callable[[], object]


def time_scans(
    backends: Sequence[str],
    *,
    batch_size: int,
    length: int,
    channels: int,
    states: int,
    device: str,
    seconds: float,
) -> dict[str, dict[str, float]]:
    """Measure forward and backward of one selective scan with gate, skip and softplus, float32.

    Args:
        backends: Names of backends, or `PSCAN`.
        batch_size: B.
        length: L.
        channels: D.
        states: N.
        device: Such as "cpu".
        seconds: Approximate time to spend on each backend; each runs at least twice.

    Returns:
        Backend -> `seconds` of its fastest run, `bytes`, the most that a run held without the inputs.
    """
    place = torch.device(device)
    inputs, dy = _scan_inputs(batch_size, length, channels, states, place)

    def step(backend: str) -> Step:
        def run() -> None:
            leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
            _scan(backend, leaves).backward(dy)  # type: ignore[no-untyped-call]

        return run

    return _compare({backend: step(backend) for backend in backends}, place, seconds)


def time_blocks(
    *, batch_size: int, length: int, d_model: int, d_state: int, device: str, seconds: float
) -> dict[str, dict[str, float]]:
    """Measure forward and backward of one block of the encoders, float32, weights' gradients included.

    Args:
        batch_size: Histories, all of `length` events.
        length: Events.
        d_model: Width.
        d_state: States per inner channel of Mamba.
        device: Such as "cpu".
        seconds: Approximate time to spend on each block; each runs at least twice.

    Returns:
        `SASRec` (causal attention with 2 heads and a feed-forward layer of 4 times the width) and `MambaRec`,
        `MambaRec, mamba2`: each with `seconds` of its fastest run, and `bytes`.
    """
    place = torch.device(device)
    encoders: dict[str, SequenceEncoder] = {
        "SASRec": SASRec(d_model, num_layers=1, num_heads=2, d_feedforward=4 * d_model, dropout=0.0),
        "MambaRec": MambaRec(d_model, num_layers=1, d_state=d_state, dropout=0.0),
        "MambaRec, mamba2": MambaRec(d_model, num_layers=1, d_state=d_state, dropout=0.0, mixer="mamba2"),
    }
    x = torch.randn(batch_size, length, d_model, device=place)
    direction = torch.randn_like(x)
    lengths = torch.full((batch_size,), length, device=place)
    history = History(torch.ones(batch_size, length, dtype=torch.int64, device=place), lengths)

    def step(encoder: SequenceEncoder) -> Step:
        def run() -> None:
            encoder.zero_grad()
            encoder(x.detach().requires_grad_(), history).backward(direction)

        return run

    return _compare({name: step(encoder.to(place)) for name, encoder in encoders.items()}, place, seconds)


def time_copy(*, device: str, megabytes: int = 1024) -> float:
    """Return bytes per second, read and written together, of a plain copy on a device."""
    place = torch.device(device)
    source = torch.ones(megabytes << 20, dtype=torch.uint8, device=place)
    target = torch.empty_like(source)
    best = min(_timed(lambda: target.copy_(source), place) for _ in range(10))
    return 2 * source.numel() / best


def _compare(steps: Mapping[str, Step], device: torch.device, seconds: float) -> dict[str, dict[str, float]]:
    # In turns, to expose all of them to other work of the machine. Slow ones run only twice.
    figures, spent = {}, dict.fromkeys(steps, 0.0)
    for name, step in steps.items():
        first = _timed(step, device)
        began = time.perf_counter()
        memory = peak_bytes(step, device)
        spent[name] = first + time.perf_counter() - began
        figures[name] = {"seconds": first, "bytes": float(memory)}
    for _ in range(_MAX_ROUNDS):
        for name, step in steps.items():
            if spent[name] < seconds:
                took = _timed(step, device)
                spent[name] += took
                figures[name]["seconds"] = min(figures[name]["seconds"], took)
    return figures


def _timed(step: Step, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _scan_inputs(
    batch_size: int, length: int, channels: int, states: int, device: torch.device
) -> tuple[dict[str, Tensor], Tensor]:
    # Step sizes and A as at Mamba's initialisation.
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    inputs = {
        "u": normal(batch_size, length, channels),
        "delta": normal(batch_size, length, channels) - 4,
        "A": -torch.arange(1.0, states + 1, device=device).repeat(channels, 1),
        "B": normal(batch_size, length, states),
        "C": normal(batch_size, length, states),
        "D": normal(channels),
        "z": normal(batch_size, length, channels),
        "delta_bias": normal(channels),
    }
    return inputs, normal(batch_size, length, channels)


def _scan(backend: str, inputs: dict[str, Any]) -> Tensor:
    if backend != PSCAN:
        y = selective_scan(**inputs, delta_softplus=True, backend=backend)
        assert isinstance(y, Tensor)
        return y
    from mambapy.pscan import pscan

    u, z = inputs["u"], inputs["z"]
    step = F.softplus(inputs["delta"] + inputs["delta_bias"])
    decay = torch.exp(step.unsqueeze(-1) * inputs["A"])
    states = pscan(decay, (step * u).unsqueeze(-1) * inputs["B"].unsqueeze(2))
    mixed: Tensor = (states @ inputs["C"].unsqueeze(-1)).squeeze(-1) + inputs["D"] * u
    return mixed * F.silu(z)
