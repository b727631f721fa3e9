"""`seqrec benchmark memory`: which encoder still finds a signal that lies so many events back, and at which cost."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqrec.benchmark.measured_child import MemoryLimitError, run_measured
from seqrec.benchmark.recall_stages import NUM_ITEMS, ROTARY, find_signal
from seqrec.benchmark.table import aligned
from seqrec.data.prepare.memory import spoken_bytes
from seqrec.data.progress import Progress, print_line
from seqrec.errors import InputError
from seqrec.experiments.grid.cells import ENCODERS

# A signal counts as found above this HR@10 of the test.
FOUND = 0.9
# Baselines that need no times, which the events of this log have but for show.
BASELINES = ("Popularity", "Markov", "ItemKNN")
IMPORTS = ["torch", "seqrec.models", "seqrec.runs.callbacks"]


def benchmark_recall(
    lags: Sequence[int] = (10, 100, 1000),
    *,
    encoders: Sequence[str] = ("Popularity", *ENCODERS),
    events: int = 2_400_000,
    minutes: float = 10.0,
    d_model: int = 64,
    num_layers: int = 1,
    lr: float = 0.003,
    batch_size: int = 8,
    seed: int = 0,
    device: str = "cpu",
    json_file: str | None = None,
) -> None:
    """Train encoders on logs whose next event follows from the one `lag` places back alone.

    Every event from the `lag`-th on is the known successor of the one `lag` places back, the events before are drawn
    evenly from 150 items, so that what lies between says nothing and popularity is chance. Attention has rotary
    positions, the other encoders have nothing but the order of events; items as input and as output have vectors of
    their own. Each cell trains in a process of its own until validation HR@10 is above .95 or its time is over; the
    test is of other targets.

    Args:
        lags: How many events back the signal lies; histories are windows of twice as many.
        encoders: Names of presets and baselines.
        events: Events of each generated log: as many at any lag, so that nothing is found or missed for lack of data.
        minutes: Most time of a cell's training.
        d_model: Width.
        num_layers: Blocks.
        lr: Step size of Adam.
        batch_size: Windows a batch.
        seed: Seed of weights and order.
        device: cpu or cuda.
        json_file: File that the figures are written to, as JSON, anew after each cell.

    Raises:
        InputError: an argument is out of range.
    """
    _check(lags, encoders, {"events": events, "minutes": minutes, "lr": lr, "num_layers": num_layers}, device)
    if json_file is not None and not Path(json_file).absolute().parent.is_dir():
        raise InputError(f"json_file={json_file!r} lies in a folder that does not exist; make it first")
    settings = {"d_model": d_model, "num_layers": num_layers, "lr": lr, "batch_size": batch_size}
    shared = {"events": events, "seconds": 60 * minutes, "seed": seed, "device": device, "settings": settings}
    progress = Progress(print_line)
    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="seqrec-memory-") as folder:
        for lag, model in itertools.product(lags, encoders):
            progress.note(f"{model}, {lag:,} events back ...")
            cells.append(_measure({"lag": lag, "model": model}, {"folder": folder, **shared}))
            progress.note(f"    {_outcome(cells[-1])}")
            if json_file is not None:
                content = json.dumps({"settings": shared, "cells": cells}, indent=2)
                Path(json_file).write_text(content + "\n", encoding="utf-8")
    print(f"\n{_table(cells, shared)}")


def _measure(cell: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    try:
        measured = run_measured(find_signal, {**cell, **shared}, imports=IMPORTS)
    except MemoryLimitError as error:
        return {**cell, "failure": str(error)}
    return {**cell, **measured.value, "peak_bytes": measured.peak_resident}


def _outcome(cell: dict[str, Any]) -> str:
    if "failure" in cell:
        return f"did not run: {cell['failure']}"
    found = "found" if cell["HR@10"] > FOUND else "not found"
    return f"{found}, HR@10 {cell['HR@10']:.4f} after {cell['train_seconds']:,.0f} s"


def _table(cells: list[dict[str, Any]], shared: dict[str, Any]) -> str:
    settings = shared["settings"]
    title = (
        f"signal so many events back, {NUM_ITEMS} items, histories of up to twice as many events; width "
        f"{settings['d_model']}, blocks {settings['num_layers']}, Adam {settings['lr']:g}, batches of "
        f"{settings['batch_size']}, {shared['events']:,} events before short histories are left out, at most "
        f"{shared['seconds'] / 60:g} min of training on {shared['device']}; found: test HR@10 > {FOUND:g}"
    )
    rows = [
        [
            "model",
            "events back",
            "found",
            "HR@10",
            "NDCG@10",
            "epochs",
            "steps",
            "train s",
            "events/s",
            "memory",
        ]
    ]
    for cell in cells:
        name = f"{cell['model']}{' (rotary)' if cell['model'] in ROTARY else ''}"
        if "failure" in cell:
            rows.append([name, f"{cell['lag']:,}", "did not run", *[""] * 7])
            continue
        seconds = cell["train_seconds"]
        rows.append(
            [
                name,
                f"{cell['lag']:,}",
                "yes" if cell["HR@10"] > FOUND else "no",
                f"{cell['HR@10']:.4f}",
                f"{cell['NDCG@10']:.4f}",
                f"{cell['epochs']:,}",
                f"{cell['steps']:,}",
                f"{seconds:,.0f}",
                f"{cell['events'] / seconds:,.0f}" if cell["steps"] else "",
                spoken_bytes(cell["peak_bytes"]),
            ]
        )
    return "\n".join([title, "", *aligned(rows)])


def _check(lags: Sequence[int], encoders: Sequence[str], positive: dict[str, float], device: str) -> None:
    if not lags or min(lags) < 1:
        raise InputError(f"lags={list(lags)} must be numbers of events from 1 on, at least one")
    known = [*ENCODERS, *BASELINES]
    if not encoders or not set(encoders) <= set(known):
        raise InputError(f"encoders={list(encoders)} must be some of {', '.join(known)}")
    for name, value in positive.items():
        if not value > 0:
            raise InputError(f"{name}={value} must be positive")
    if device not in ("cpu", "cuda"):
        raise InputError(f"device={device!r} must be cpu or cuda")
