"""The least that a training step must do, and the rates of a device that bound it.

B histories, L events, D width, V rows of the item table. A floor is a time that no step of the same arithmetic
undercuts: the bytes of an ideal step at the speed of a copy, or the products of matrices at the speed of a large one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seqrec.benchmark.measurement import timed
from seqrec.encoders.layers import MIXERS, CausalSelfAttention, FeedForward, PointwiseAttention
from seqrec.models import SequentialRecommender

# Layers with one input and one output (B, L, D) each.
LAYERS = (CausalSelfAttention, FeedForward, PointwiseAttention, *MIXERS.values(), nn.GRU)
# Bytes of weights, and of what optimizers keep of them.
FLOAT = 4
# A gradient is written; an update reads it, the weight and two moments, and writes the latter three.
UPDATE_PASSES = 8
# History, targets and one negative of each event.
LOOKUPS = 3
# A backward pass has two products for each one of the forward pass.
PASSES = 3
# Sizes of what is timed: megabytes of a copy, and rows of square matrices.
COPIED = {"cuda": 1024, "cpu": 256}
MATRIX_ROWS = {"cuda": 8192, "cpu": 1024}
LAUNCHES = 1000


@dataclass(frozen=True)
class Rates:
    """Rates of a device.

    Attributes:
        copy: Bytes per second, read and written together, of a plain copy.
        matmul: FLOP per second of a product of large square matrices, by type: fp32, tf32 and bf16 on CUDA, fp32 and
            bf16 on a CPU.
        launch_seconds: Time between two launches of a tiny operation from Python.
        graph_seconds: Time between two such operations in a CUDA graph; None on a CPU.
    """

    copy: float
    matmul: dict[str, float]
    launch_seconds: float
    graph_seconds: float | None


@dataclass(frozen=True)
class Work:
    """The least bytes and FLOP of a training step; see `work_of`."""

    bytes: int
    flop: int


def work_of(model: SequentialRecommender, batch_size: int, length: int, *, activation_bytes: int = FLOAT) -> Work:
    """Count what a training step of a model with full histories, one negative per event and Adam must do at least.

    Bytes, each moved once by an ideal step in which every layer is one kernel: each layer reads its input and writes
    its output, and backward reads its input and the gradient of its output, and writes that of its input; the vectors
    of items, targets and negatives are read; gradients of weights, and of the rows of a sparse table that the batch
    has, are written, and the update reads and writes these weights with two moments. FLOP are those of the products
    with weights and of causal attention, forward and backward; scans and what is elementwise are not counted.
    """
    events, width = batch_size * length, model.encoder.d_model
    modules = list(model.encoder.modules())
    layers = sum(isinstance(module, LAYERS) for module in modules)
    tables = [table for table in model.modules() if isinstance(table, nn.Embedding) and table.sparse]
    sparse = sum(table.weight.numel() for table in tables)
    dense = sum(weight.numel() for weight in model.parameters()) - sparse
    touched = min(LOOKUPS * events * width, sparse)
    bytes_moved = activation_bytes * 5 * layers * events * width
    bytes_moved += FLOAT * (LOOKUPS * events * width + UPDATE_PASSES * (dense + touched))
    weights = [m.weight for m in modules if isinstance(m, nn.Linear)]
    weights += [w for m in modules if isinstance(m, nn.GRU) for name, w in m.named_parameters() if "weight" in name]
    flop = events * sum(2 * weight.numel() for weight in weights)
    # Scores and mixtures, of which the causal half is needed.
    flop += sum(isinstance(m, CausalSelfAttention) for m in modules) * 2 * events * length * width
    return Work(bytes_moved, PASSES * flop)


def floor_seconds(work: Work, rates: Rates, precision: str) -> dict[str, float]:
    """Return the seconds of `bytes` and `flop`, whose products run in the precision "fp32" or "bf16"."""
    return {"bytes": work.bytes / rates.copy, "flop": work.flop / rates.matmul[precision]}


def measure_rates(*, device: str, scale: int = 1) -> dict[str, Any]:
    """Measure the rates of a device; returns the fields of `Rates`. `scale` divides the sizes, for a trial."""
    place = torch.device(device)
    matmul = {}
    for name in ("fp32", "tf32", "bf16") if device == "cuda" else ("fp32", "bf16"):
        matmul[name] = _matmul_rate(place, name, MATRIX_ROWS[device] // scale)
    rates = Rates(
        copy=time_copy(device=device, megabytes=COPIED[device] // scale),
        matmul=matmul,
        launch_seconds=_launch_seconds(place),
        graph_seconds=_graph_seconds(place) if device == "cuda" else None,
    )
    return asdict(rates)


def time_copy(*, device: str, megabytes: int = 1024) -> float:
    """Return bytes per second, read and written together, of a plain copy on a device."""
    place = torch.device(device)
    source = torch.ones(megabytes << 20, dtype=torch.uint8, device=place)
    target = torch.empty_like(source)
    best = min(timed(lambda: target.copy_(source), place) for _ in range(10))
    return 2 * source.numel() / best


def _matmul_rate(device: torch.device, precision: str, rows: int) -> float:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    # On zeros the product is faster than on data.
    left, right = (torch.randn(rows, rows, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        best = min(timed(lambda: torch.mm(left, right, out=product), device) for _ in range(6))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return 2 * rows**3 / best


def _launch_seconds(device: torch.device) -> float:
    value = torch.zeros(1, device=device)
    return _fastest(lambda: _launch(value), device) / LAUNCHES


def _graph_seconds(device: torch.device) -> float:
    value = torch.zeros(1, device=device)
    _launch(value)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _launch(value)
    return _fastest(graph.replay, device) / LAUNCHES


def _launch(value: Tensor) -> None:
    for _ in range(LAUNCHES):
        value.add_(1)


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    timed(call, device)
    return min(timed(call, device) for _ in range(3))
