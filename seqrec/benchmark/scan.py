"""`seqrec benchmark scan`: all backends of the selective scan side by side, and a Mamba block beside attention."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from seqrec.benchmark.measured_child import MemoryLimitError, machine_bytes, run_measured
from seqrec.benchmark.scan_stages import PSCAN, time_blocks, time_copy, time_scans
from seqrec.benchmark.scan_tables import YARDSTICK, BlockRow, Figures, ScanFigures, ScanRow
from seqrec.data.progress import Progress, print_line
from seqrec.errors import InputError
from seqrec.ops.selective_scan import SCAN_BACKENDS

# How many tensors of (B, L, D, N) floats those hold, about, who keep all states; left out where memory is short.
_HELD_TENSORS = {"reference": 4, PSCAN: 13}
# The share of free memory that these may take.
_MEMORY_SHARE = 0.6


def benchmark_scan(
    lengths: Sequence[int] = (200, 1000, 5000, 10000),
    *,
    states: Sequence[int] = (16, 32, 64),
    channels: Sequence[int] = (64, 128, 512),
    batch_size: int = 4,
    block_lengths: Sequence[int] = (200, 500, 1000, 2000, 5000, 10000),
    d_model: int = 64,
    d_state: int = 32,
    device: str = "auto",
    seconds: float = 2.0,
    json_file: str | None = None,
) -> None:
    """Time forward and backward of the selective scan by each backend, and of a Mamba block beside attention.

    Each size runs in a process of its own, in which the backends take turns. The parallel scan of the package
    mambapy joins where it is installed. The default takes a quarter of an hour on two cores.

    Args:
        lengths: Events of each history, for the scan; none leaves the scan out.
        states: States N a channel.
        channels: Channels D.
        batch_size: Histories.
        block_lengths: Events of each history, for the blocks; none leaves the blocks out.
        d_model: Width of the blocks.
        d_state: States of each inner channel of the Mamba blocks.
        device: cpu, cuda, or auto: cuda where there is one.
        seconds: Time to spend on each backend and size, about; it runs twice at least.
        json_file: File that the figures are written to, as JSON.

    Raises:
        InputError: an argument is out of range, or memory cannot be measured on this system.
    """
    for name, values in (("lengths", lengths), ("states", states), ("channels", channels)):
        if any(value < 1 for value in values):
            raise InputError(f"{name}={list(values)} must all be at least 1")
    for name, value in (("batch_size", batch_size), ("d_model", d_model), ("d_state", d_state)):
        if value < 1:
            raise InputError(f"{name}={value} must be at least 1")
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device={device!r} must be auto, cpu or cuda")
    if json_file is not None and not Path(json_file).absolute().parent.is_dir():
        raise InputError(f"json_file={json_file!r} lies in a folder that does not exist; make it first")
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    figures = measure_scan(
        sizes=list(itertools.product(lengths, channels, states)),
        batch_size=batch_size,
        block_lengths=sorted(block_lengths),
        d_model=d_model,
        d_state=d_state,
        device=place,
        seconds=seconds,
        progress=Progress(print_line),
    )
    print(f"\n{figures.as_text()}")
    if json_file is not None:
        Path(json_file).write_text(figures.as_json() + "\n", encoding="utf-8")


def measure_scan(
    *,
    sizes: Sequence[tuple[int, int, int]],
    batch_size: int,
    block_lengths: Sequence[int],
    d_model: int,
    d_state: int,
    device: str,
    seconds: float,
    progress: Progress,
) -> ScanFigures:
    """Measure all sizes of the scan, then all lengths of the blocks.

    Args:
        sizes: (L, D, N).
        batch_size: Histories.
        block_lengths: Events, ascending.
        d_model: Width of the blocks.
        d_state: States of each inner channel of the Mamba blocks.
        device: "cpu" or "cuda".
        seconds: Time to spend on each backend and size, about.
        progress: Told what is being done.
    """
    shared = {"batch_size": batch_size, "device": device, "seconds": seconds}
    backends, left_out = _backends(device)
    speed = run_measured(time_copy, {"device": device}).value if device == "cuda" and sizes else None
    scans = []
    for length, channels, states in sizes:
        size = {"length": length, "channels": channels, "states": states}
        progress.note(f"scan, L {length}, D {channels}, N {states} ...")
        there, too_large = _that_fit(backends, batch_size * length * channels * states * 4, device)
        left_out |= {
            f"{name} at L {length}, D {channels}, N {states}": why for name, why in too_large.items()
        }
        figures = run_measured(time_scans, {"backends": there, **shared, **size}).value
        floor = None if speed is None else _bytes_moved(batch_size, length, channels, states) / speed
        scans.append(ScanRow(length, channels, states, figures, floor))
    blocks = []
    for length in block_lengths:
        progress.note(f"blocks, L {length} ...")
        size = {"length": length, "d_model": d_model, "d_state": d_state}
        blocks.append(BlockRow(length, _measured_blocks({**shared, **size})))
    settings = {**shared, "d_model": d_model, "d_state": d_state}
    return ScanFigures(settings, _machine(device), left_out, scans, blocks)


def _measured_blocks(arguments: dict[str, Any]) -> Figures:
    try:
        figures: Figures = run_measured(time_blocks, arguments).value
    except MemoryLimitError as error:
        raise MemoryLimitError(f"blocks of {arguments['length']} events: {error}") from error
    return figures


def _backends(device: str) -> tuple[list[str], dict[str, str]]:
    # Those that run here, the yardstick first; the others with the reason.
    left_out = {
        name: reason
        for name in SCAN_BACKENDS.names
        if (reason := SCAN_BACKENDS[name].why_unusable(device, torch.float32)) is not None
    }
    there = [name for name in SCAN_BACKENDS.names if name not in left_out and name != YARDSTICK]
    if importlib.util.find_spec("mambapy") is None:
        left_out[PSCAN] = "not installed; pip install mambapy sets its parallel scan beside ours"
    else:
        there.append(PSCAN)
    return [YARDSTICK, *there], left_out


def _that_fit(backends: Sequence[str], state_bytes: int, device: str) -> tuple[list[str], dict[str, str]]:
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else machine_bytes("MemAvailable")
    too_large = {
        name: f"left out, as it would hold about {_HELD_TENSORS[name] * state_bytes / 2**30:.0f} GiB"
        for name in backends
        if _HELD_TENSORS.get(name, 0) * state_bytes > _MEMORY_SHARE * free
    }
    return [name for name in backends if name not in too_large], too_large


def _bytes_moved(batch_size: int, length: int, channels: int, states: int) -> int:
    # Forward reads u, delta, z, B, C and writes y; backward reads these and dy again, and writes five gradients.
    wide, narrow = batch_size * length * channels, batch_size * length * states
    return 4 * ((4 * wide + 2 * narrow) + (7 * wide + 4 * narrow))


def _machine(device: str) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
