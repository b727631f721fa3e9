"""`seqrec benchmark scan`: all backends of the selective scan side by side, and a Mamba block next to attention."""

from __future__ import annotations

import importlib.util
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.benchmark import harness
from seqrec.benchmark.floors import time_copy
from seqrec.benchmark.harness import Benchmark, Row
from seqrec.benchmark.measurement import MemoryLimitError, peak_bytes, run_measured, timed
from seqrec.data.prepare.memory import spoken_bytes
from seqrec.data.progress import Show
from seqrec.data.report_table import Part, ReportTable
from seqrec.encoders import MambaRec, SASRec, SequenceEncoder
from seqrec.encoders.layers import MIXERS
from seqrec.ops import selective_scan
from seqrec.ops.dropout import check_share
from seqrec.ops.selective_scan import SCAN_BACKENDS
from seqrec.types import History

# mambapy's parallel scan, the fastest other one in plain torch.
PSCAN = "mambapy"
YARDSTICK = "chunked"
ATTENTION = "SASRec"
# Approximate number of (B, L, D, N) float tensors of backends that keep all states; left out if memory is short.
_HELD_TENSORS = {"reference": 4, PSCAN: 13}
# Share of free memory that these may take.
_MEMORY_SHARE = 0.6
_MAX_ROUNDS = 30

Step = Callable[[], object]


def benchmark_scan(
    lengths: Sequence[int] = (200, 1000, 5000, 10000),
    *,
    states: Sequence[int] = (16, 32, 64),
    channels: Sequence[int] = (64, 128, 512),
    batch_size: int = 4,
    block_lengths: Sequence[int] = (200, 500, 1000, 2000, 5000, 10000),
    d_model: int = 64,
    d_state: int = 32,
    dropout: float = 0.0,
    device: str = "auto",
    seconds: float = 2.0,
    json_file: str | None = None,
) -> None:
    """Time forward and backward of the selective scan by each backend, and of a Mamba block next to attention.

    Each size runs in a process of its own, in which the backends take turns. The parallel scan of the package
    mambapy is included if it is installed. The default takes a quarter of an hour on two cores.

    Args:
        lengths: Events per history, for the scan; an empty list leaves the scan out.
        states: States N per channel.
        channels: Channels D.
        batch_size: Histories.
        block_lengths: Events per history, for the blocks; an empty list leaves the blocks out.
        d_model: Width of the blocks.
        d_state: States per inner channel of the Mamba blocks.
        dropout: Dropout of the blocks in training, that of attention's weights among them.
        device: cpu, cuda, or auto: cuda if available.
        seconds: Approximate time to spend on each backend and size; each runs at least twice.
        json_file: File for the figures, as JSON.

    Raises:
        InputError: if an argument is out of range, or memory cannot be measured on this system.
    """
    harness.check_numbers(1, lengths=lengths, states=states, channels=channels)
    harness.check_numbers(1, batch_size=batch_size, d_model=d_model, d_state=d_state)
    check_share(dropout)
    harness.check_device(device, "auto")
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    shared = {"batch_size": batch_size, "device": place, "seconds": seconds}
    blocks = {"d_model": d_model, "d_state": d_state, "dropout": dropout}
    backends, left_out = _backends(place)
    settings = {**shared, **blocks}
    content = {"machine": harness.machine(place), "left_out": left_out, "scans": [], "blocks": []}
    sizes = list(itertools.product(lengths, channels, states))
    benchmark = Benchmark(json_file, len(sizes) + len(block_lengths), settings=settings, **content)
    speed = run_measured(time_copy, {"device": place}).value if place == "cuda" and sizes else None
    for size in sizes:
        name = "L {}, D {}, N {}".format(*size)
        there, too_large = _that_fit(backends, batch_size * math.prod(size) * 4, place)
        left_out |= {f"{backend} at {name}": why for backend, why in too_large.items()}
        row: Row = dict(zip(("length", "channels", "states"), size, strict=True))
        with benchmark.cell(f"scan, {name}"):
            arguments = {"backends": there, "size": size, **shared}
            figures = run_measured(time_scans, arguments, show=benchmark.show).value
        floor = None if speed is None else _bytes_moved(batch_size, *size) / speed
        benchmark["scans"].append({**row, "figures": figures, "floor_seconds": floor})
    for length in sorted(block_lengths):
        with benchmark.cell(f"blocks, L {length}"):
            figures = _measured_blocks({**shared, **blocks, "length": length}, benchmark.show)
        benchmark["blocks"].append({"length": length, "figures": figures})
    benchmark.finish(*report(benchmark))


def report(figures: Benchmark | Mapping[str, Any]) -> list[Part]:
    """Return the parts of the report; ratios are to the first backend or block of their row, below 1 is better.

    Args:
        figures: By key. `settings`; `machine`; `left_out`: backend, or backend and sizes, -> why it was not measured.
            `scans`: rows of `length`, `channels`, `states`, `figures`, and `floor_seconds`, the time to move each
            input, output and gradient once at the speed of a copy, None if no copy was measured. `blocks`: rows of
            `length` and `figures`. Figures are backend or block -> `seconds` and `bytes` of forward and backward.
    """
    settings, on = figures["settings"], figures["machine"]
    title = f"forward and backward, float32, {settings['batch_size']} histories, {on['device']}"
    title += f", {on['threads']} threads, torch {on['torch']}"
    scans = [_scan_table(figures["scans"])] if figures["scans"] else []
    parts: list[Part] = [title, *scans, "\n".join(f"{name}: {why}" for name, why in figures["left_out"].items())]
    if blocks := figures["blocks"]:
        parts += [_block_table(blocks, settings), "\n".join(_crossings(blocks))]
    return parts


def _scan_table(rows: Sequence[Row]) -> ReportTable:
    others = list(dict.fromkeys(name for row in rows for name in row["figures"] if name != YARDSTICK))
    has_floor = rows[0]["floor_seconds"] is not None
    head = ["selective scan", "D", "N", f"{YARDSTICK} ms", "memory"]
    head += [part for name in others for part in (f"{name} time", "memory")]
    lines = []
    for row in rows:
        figures = row["figures"]
        name = [f"L {row['length']}", str(row["channels"]), str(row["states"])]
        cells = [*name, *_absolute(figures[YARDSTICK])]
        for other in others:
            cells += _relative(figures.get(other), figures[YARDSTICK])
        if has_floor:
            fastest = min(each["seconds"] for each in figures.values())
            cells.append(f"{fastest / row['floor_seconds']:.1f}")
        lines.append(cells)
    return harness.table([*head, "fastest / bytes moved"] if has_floor else head, lines)


def _block_table(rows: Sequence[Row], settings: Mapping[str, Any]) -> ReportTable:
    others = _mamba_blocks(rows)
    dropout = f", dropout {settings['dropout']}" if settings["dropout"] else ""
    head = [f"one block, width {settings['d_model']}{dropout}", f"{ATTENTION} ms", "memory"]
    head += [part for name in others for part in (f"{name} time", "memory")]
    lines = []
    for row in rows:
        base = row["figures"][ATTENTION]
        ratios = [cell for name in others for cell in _relative(row["figures"][name], base)]
        lines.append([f"L {row['length']}", *_absolute(base), *ratios])
    return harness.table(head, lines)


def _mamba_blocks(rows: Sequence[Row]) -> list[str]:
    return [name for name in rows[0]["figures"] if name != ATTENTION]


def _crossings(rows: Sequence[Row]) -> list[str]:
    lengths = [row["length"] for row in rows]
    lines = []
    for name in _mamba_blocks(rows):
        ratios = [row["figures"][name]["seconds"] / row["figures"][ATTENTION]["seconds"] for row in rows]
        lines.append(f"{name} {crossing_text(lengths, ratios)}")
    return lines


def crossing_text(lengths: Sequence[int], ratios: Sequence[float]) -> str:
    """Return from which length on a block takes less time than attention, given the ratios of both at ascending
    lengths.
    """
    if ratios[-1] >= 1:
        return f"does not overtake {ATTENTION} up to {lengths[-1]:,} events"
    last_slower = max((i for i, ratio in enumerate(ratios) if ratio >= 1), default=None)
    if last_slower is None:
        return f"is faster than {ATTENTION} at every length measured"
    # Both axes are logarithmic: times are powers of the length.
    low, high = last_slower, last_slower + 1
    share = math.log(ratios[low]) / (math.log(ratios[low]) - math.log(ratios[high]))
    length = math.exp(math.log(lengths[low]) + share * math.log(lengths[high] / lengths[low]))
    return f"is faster than {ATTENTION} from about {round(length, -1):,.0f} events on"


def _absolute(figures: Row) -> list[str]:
    return [f"{1000 * figures['seconds']:,.1f}", spoken_bytes(int(figures["bytes"]))]


def _relative(figures: Row | None, base: Row) -> list[str]:
    if figures is None:
        return ["", ""]
    memory = f"{figures['bytes'] / base['bytes']:.2f}" if base["bytes"] else ""
    return [f"{figures['seconds'] / base['seconds']:.3f}", memory]


def _measured_blocks(arguments: dict[str, Any], show: Show) -> Row:
    try:
        figures: Row = run_measured(time_blocks, arguments, show=show).value
    except MemoryLimitError as error:
        raise MemoryLimitError(f"blocks of {arguments['length']} events: {error}") from error
    return figures


def _backends(device: str) -> tuple[list[str], dict[str, str]]:
    # Return the usable ones, the yardstick first, and the others with the reason.
    left_out = {
        name: reason
        for name in SCAN_BACKENDS.names
        if (reason := SCAN_BACKENDS[name].why_unusable(device, torch.float32)) is not None
    }
    there = [name for name in SCAN_BACKENDS.names if name not in left_out and name != YARDSTICK]
    if importlib.util.find_spec("mambapy") is None:
        left_out[PSCAN] = "not installed; pip install mambapy adds its parallel scan to the comparison"
    else:
        there.append(PSCAN)
    return [YARDSTICK, *there], left_out


def _that_fit(backends: Sequence[str], state_bytes: int, device: str) -> tuple[list[str], dict[str, str]]:
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
    too_large = {
        name: f"left out, as it would hold about {_HELD_TENSORS[name] * state_bytes / 2**30:.0f} GiB"
        for name in backends
        if _HELD_TENSORS.get(name, 0) * state_bytes > _MEMORY_SHARE * free
    }
    return [name for name in backends if name not in too_large], too_large


def _bytes_moved(batch_size: int, length: int, channels: int, states: int) -> int:
    # Forward reads u, delta, z, B, C and writes y. Backward reads these and dy again, and writes five gradients.
    wide, narrow = batch_size * length * channels, batch_size * length * states
    return 4 * ((4 * wide + 2 * narrow) + (7 * wide + 4 * narrow))


def time_scans(
    backends: Sequence[str], size: Sequence[int], *, batch_size: int, device: str, seconds: float
) -> dict[str, dict[str, float]]:
    """Measure forward and backward of one selective scan with gate, skip and softplus, float32.

    See `benchmark_scan` for the arguments; a backend may also be `PSCAN`, a size is L, D, N.

    Returns:
        Backend -> `seconds` of its fastest run, `bytes`, the most that a run held without the inputs.
    """
    place = torch.device(device)
    inputs, dy = _scan_inputs(batch_size, size, place)

    def step(backend: str) -> Step:
        def run() -> None:
            leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
            _scan(backend, leaves).backward(dy)  # type: ignore[no-untyped-call]

        return run

    return _compare({backend: step(backend) for backend in backends}, place, seconds)


def time_blocks(
    length: int, *, batch_size: int, d_model: int, d_state: int, dropout: float, device: str, seconds: float
) -> dict[str, dict[str, float]]:
    """Measure forward and backward of one block of the encoders, float32, weights' gradients included.

    See `benchmark_scan` for the arguments. All histories have `length` events.

    Returns:
        `SASRec` (causal attention with 2 heads and a feed-forward layer of 4 times the width), and `MambaRec` with each
        mixer, such as `MambaRec, mamba2`: each with `seconds` of its fastest run, and `bytes`.
    """
    place = torch.device(device)
    encoders: dict[str, SequenceEncoder] = {
        "SASRec": SASRec(d_model, num_layers=1, num_heads=2, d_feedforward=4 * d_model, dropout=dropout),
    }
    for mixer in MIXERS:
        name = "MambaRec" if mixer == "mamba" else f"MambaRec, {mixer}"
        chosen: Any = {"mixer": mixer}
        encoders[name] = MambaRec(d_model, num_layers=1, d_state=d_state, dropout=dropout, **chosen)
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


def _compare(steps: Mapping[str, Step], device: torch.device, seconds: float) -> dict[str, dict[str, float]]:
    # In turns, to expose all of them to other work of the machine. Slow ones run only twice.
    figures, spent = {}, dict.fromkeys(steps, 0.0)
    for name, step in steps.items():
        first = timed(step, device)
        began = time.perf_counter()
        memory = peak_bytes(step, device)
        spent[name] = first + time.perf_counter() - began
        figures[name] = {"seconds": first, "bytes": float(memory)}
    for _ in range(_MAX_ROUNDS):
        for name, step in steps.items():
            if spent[name] < seconds:
                took = timed(step, device)
                spent[name] += took
                figures[name]["seconds"] = min(figures[name]["seconds"], took)
    return figures


def _scan_inputs(batch_size: int, size: Sequence[int], device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    length, channels, states = size
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
