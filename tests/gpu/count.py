"""Count what a training step asks of a GPU, on a machine without one: launches, waits, bytes, and Python's time.

    python -m tests.gpu.count
    python -m tests.gpu.count --encoders MambaRec SASRec --length 5000 --json_file counts.json

Models train through Lightning on a stand-in for a GPU; `stand_in_device.py` documents what it counts. `CPU ms` is the
time of the process for a step with two events and 10,000 items, in which kernels are left out. It has Python,
Lightning, and torch's own work for each operation.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils.data import DataLoader

from seqrec import models
from seqrec.benchmark.catalogue import full_batch
from seqrec.ops import ALL_BACKENDS
from seqrec.ops.backends import Backend
from seqrec.runs.callbacks import FiniteLoss
from tests.gpu.stand_in_device import CPU, GPU, Counts, StandInDevice, kernels_as

ENCODERS = ("MambaRec", "SASRec", "GRU4Rec", "RecMamba")
# The first steps allocate, and record graphs.
WARM_UP, TIMED, TIMED_ITEMS = 3, 60, 10_000
HEAD = ("encoder", "computed", "launches", "in graphs", "waits", "MB", "least MB", "CPU ms")


class _Watch(pl.Callback):
    """Counts, or times, from the end of a step to that of the next."""

    def __init__(self, device: StandInDevice | None) -> None:
        self.device = device
        self.counts: list[Counts] = []
        self.seconds: list[float] = []
        self._began = 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.process_time()
        self.seconds.append(now - self._began)
        self._began = now
        if self.device is not None:
            self.device.counts = Counts()
            self.counts.append(self.device.counts)


class _Accelerator(CPUAccelerator):
    """Accepts the stand-in."""

    def setup_device(self, device: torch.device) -> None:
        """Do nothing."""


def _train(
    model: Any, batches: list[Any], callbacks: list[pl.Callback], place: torch.device, clip: float | None
) -> None:
    switches = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = pl.Trainer(
        strategy=SingleDeviceStrategy(place, _Accelerator()),
        max_epochs=1,
        callbacks=callbacks,
        gradient_clip_val=clip,
        **dict.fromkeys(switches, False),  # type: ignore[arg-type]
    )
    trainer.fit(model, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]  # a list will do


def _callbacks(watch: _Watch, graphed: bool) -> list[pl.Callback]:
    if not graphed:
        return [watch]
    # Versions without graphs are counted too.
    from tests.gpu.stand_in_graphs import StandInGraphs

    return [watch, StandInGraphs(watch.device)]


def _tensors(record: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch, also of a version whose batches do not list them."""
    for value in vars(record).values():
        if isinstance(value, Tensor):
            yield value
        elif is_dataclass(value):
            yield from _tensors(value)


def count_step(
    encoder: str,
    *,
    graphed: bool,
    batch_size: int,
    length: int,
    num_items: int,
    clip: float | None = None,
    **settings: Any,
) -> Counts:
    """Return the counts of a training step, from the end of the step before it.

    Args:
        encoder: Name of a preset.
        graphed: Whether forward and backward pass are graphs.
        batch_size: Histories of a batch.
        length: Events of each.
        num_items: Items of the catalogue.
        clip: Norm to which gradients are clipped; None does not.
        settings: Other arguments of the preset.
    """
    device = StandInDevice()
    watch = _Watch(device)
    torch.manual_seed(0)
    model = getattr(models, encoder)(num_items, max_length=length, **settings)
    batches = [full_batch(num_items, batch_size, length) for _ in range(WARM_UP + 2)]
    with device.active():
        for batch in batches:
            device.leave(_tensors(batch))
        _train(model, batches, _callbacks(watch, graphed), GPU, clip)
    # The last one has the end of training.
    return watch.counts[-2]


def time_step(encoder: str, *, graphed: bool, clip: float | None = None, **settings: Any) -> float:
    """Return the seconds of the process of the fastest step of one history with two events, without kernels.

    Args:
        encoder: See `count_step`.
        graphed: See `count_step`.
        clip: See `count_step`.
        settings: See `count_step`.
    """
    watch = _Watch(None)
    torch.manual_seed(0)
    model = getattr(models, encoder)(TIMED_ITEMS, max_length=2, **settings)
    batches = [full_batch(TIMED_ITEMS, 1, 2) for _ in range(WARM_UP + TIMED)]
    chosen = {op.variable: op.auto("cuda", torch.float32)[0].name for op in ALL_BACKENDS}
    # What kernels do not compute may be NaN.
    check = mock.patch(f"{FiniteLoss.__module__}.math.isfinite", return_value=True)
    usable = mock.patch.object(Backend, "why_unusable", return_value=None)
    with mock.patch.dict(os.environ, chosen), check, usable, kernels_as(lambda name, arguments: None):
        _train(model, batches, _callbacks(watch, graphed), CPU, clip)
    return min(watch.seconds[WARM_UP:])


def least_bytes(encoder: str, shape: dict[str, int], **settings: Any) -> int | None:
    """Return the bytes that an ideal step moves, of `work_of`; None for versions without."""
    if importlib.util.find_spec("seqrec.benchmark.floors") is None:
        return None
    from seqrec.benchmark.floors import work_of

    with torch.device("meta"):
        model = getattr(models, encoder)(shape["num_items"], max_length=shape["length"], **settings)
    return work_of(model, shape["batch_size"], shape["length"]).bytes


def measure(
    encoders: Sequence[str], ways: Sequence[bool], shape: dict[str, int], **settings: Any
) -> Iterator[dict[str, Any]]:
    """Yield the figures of each encoder, without graphs (False) or with them (True)."""
    shown = {name: value for name, value in settings.items() if name != "clip"}
    for encoder in encoders:
        least = least_bytes(encoder, shape, **shown)
        for graphed in ways:
            counts = count_step(encoder, graphed=graphed, **shape, **settings)
            seconds = time_step(encoder, graphed=graphed, **settings)
            found = {name: dict(each) if isinstance(each, Counter) else each for name, each in vars(counts).items()}
            yield {
                "encoder": encoder,
                "graphed": graphed,
                "launches": counts.launches,
                **found,
                "least": least,
                "seconds": seconds,
            }


def cells(row: dict[str, Any]) -> list[str]:
    """Return the cells of a row under `HEAD`."""
    names = [row["encoder"], "graphs" if row["graphed"] else "eager"]
    counts = [str(row["launches"]), str(row["in_graphs"]), str(sum(row["waits"].values()))]
    least = "" if row["least"] is None else f"{row['least'] / 1e6:,.0f}"
    return [*names, *counts, f"{row['bytes'] / 1e6:,.0f}", least, f"{row['seconds'] * 1e3:.1f}"]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=ENCODERS)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--length", type=int, default=1000)
    parser.add_argument("--num_items", type=int, default=600_000, help="from 500,000 on, tables are row-sparse")
    parser.add_argument("--d_model", type=int, default=32)
    parser.add_argument("--num_layers", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--clip", type=float, help="norm of gradients")
    parser.add_argument("--eager_only", action="store_true", help="also for versions without CUDA graphs")
    parser.add_argument("--json_file", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    shape = {"batch_size": given.batch_size, "length": given.length, "num_items": given.num_items}
    settings = {name: getattr(given, name) for name in ("d_model", "num_layers", "dropout", "clip")}
    rows = []
    print("".join(f"{name:>11}" for name in HEAD))
    for row in measure(given.encoders, (False,) if given.eager_only else (False, True), shape, **settings):
        rows.append(row)
        print("".join(f"{cell:>11}" for cell in cells(row)), flush=True)
        if given.json_file is not None:
            given.json_file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
