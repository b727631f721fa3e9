"""`seqrec benchmark columns`: what times and columns of events cost in training, loading and streaming."""

from __future__ import annotations

import copy
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars
import torch

from seqrec.benchmark import harness
from seqrec.benchmark.data import tensor_bytes
from seqrec.benchmark.harness import Benchmark, Row
from seqrec.benchmark.measurement import run_measured, timed
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.progress import Progress, print_line
from seqrec.data.report_table import ReportTable
from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID, Schema
from seqrec.data.sources import Table
from seqrec.data.windows import StridedWindows
from seqrec.encoders import ENCODERS
from seqrec.encoders.event_time import EventTime
from seqrec.experiments import MODELS
from seqrec.models import SequentialRecommender
from seqrec.types import History, SequenceBatch

# Categorical columns of the generated log, and the values of each.
COLUMNS = {"tab": 15, "device": 100}
# What the second of two models reads besides items.
TIME = EventTime(gap="buckets", hour=True)
BATCHES = 8
# Calls of a round; the fastest counts. They are so short that other work of the machine often misses one.
STEPS = 20


def benchmark_columns(
    encoders: Sequence[str] = ("MambaRec",),
    *,
    length: int = 1000,
    batch_size: int = 16,
    num_items: int = 10_000,
    d_model: int = 32,
    num_layers: int = 2,
    rounds: int = 10,
    seed: int = 0,
    device: str = "cpu",
    json_file: str | None = None,
) -> None:
    """Time a model of items alone, and one that also reads gaps, hours and two categorical columns.

    Both train on the same batches, which take turns, as do the loaders of a log with times and columns and of one
    without, and steps that continue a stream. Each encoder runs in a process of its own.

    Args:
        encoders: Names of presets.
        length: Events per window.
        batch_size: Windows per batch; users of the streamed step are 1 and this many.
        num_items: Items of the catalogue.
        d_model: Width.
        num_layers: Blocks.
        rounds: Rounds. The fastest counts.
        seed: Seed of weights and of the log.
        device: cpu or cuda.
        json_file: File for the figures, as JSON.

    Raises:
        InputError: if an argument is out of range.
    """
    harness.check_names(ENCODERS, encoders=encoders)
    harness.check_numbers(1, length=length, batch_size=batch_size, num_items=num_items, d_model=d_model)
    harness.check_numbers(1, num_layers=num_layers, rounds=rounds)
    harness.check_device(device)
    settings: dict[str, Any] = {"length": length, "batch_size": batch_size, "num_items": num_items, "d_model": d_model}
    settings |= {"num_layers": num_layers, "rounds": rounds, "seed": seed, "device": device}
    on = harness.machine(device)
    benchmark = Benchmark(json_file, settings=settings, machine=on, figures=[])
    cells = [{"encoder": encoder} for encoder in encoders]

    def measure(cell: Row) -> Row:
        measured: Row = run_measured(time_columns, {**cell, "settings": settings}, show=benchmark.show).value
        return measured

    benchmark.run("figures", cells, measure, "{encoder}")
    sizes = f"{batch_size} x {length:,} events, width {d_model}, {num_layers} blocks, {num_items:,} items"
    title = f"{sizes}, {on['device']}, {on['threads']} threads, torch {on['torch']}, fastest of {rounds} rounds"
    benchmark.finish(title, table(benchmark["figures"]))


def table(rows: Sequence[Row]) -> ReportTable:
    """Return the table of rows as `time_columns` returns them, each with its encoder."""
    head = "encoder | figure | items alone | gap, hour, two columns | ratio"
    cells = []
    for row in rows:
        for name in ("training step", "batch loaded", "streamed step of 1", f"streamed step of {row['users']}"):
            plain, columns = row["seconds"][name]
            times = [f"{plain * 1e3:,.3f} ms", f"{columns * 1e3:,.3f} ms", f"{columns / plain:.2f}"]
            cells.append([row["encoder"], name, *times])
        plain, columns = row["bytes"]
        cells.append([row["encoder"], "bytes of a batch", f"{plain:,}", f"{columns:,}", f"{columns / plain:.2f}"])
        plain, columns = (
            size / seconds for size, seconds in zip(row["bytes"], row["seconds"]["batch loaded"], strict=True)
        )
        rates = [f"{plain / 1e9:.2f} GB/s", f"{columns / 1e9:.2f} GB/s", f"{columns / plain:.2f}"]
        cells.append([row["encoder"], "bytes loaded a second", *rates])
    return harness.table(head, cells)


def time_columns(encoder: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Time the two models; see `benchmark_columns` for the arguments.

    Returns:
        `users`, of the larger streamed step; `seconds`, by what is timed the fastest of the model of items alone and
        of the other; `bytes` of a batch in both logs.
    """
    length, batch_size, device = settings["length"], settings["batch_size"], settings["device"]
    torch.manual_seed(settings["seed"])
    with tempfile.TemporaryDirectory() as folder:
        models: list[SequentialRecommender] = []
        loaders, batches = [], []
        for schema in (Schema(), Schema(events=dict.fromkeys(COLUMNS, "categorical"))):
            log = _log(Path(folder) / "log.parquet", settings)
            data = SequenceDataModule(
                log, schema=schema, store=f"{folder}/{len(models)}", max_length=length, batch_size=batch_size,
                train_windows=StridedWindows(),
            )  # fmt: skip
            reads = {"time": TIME, "event_columns": list(COLUMNS), "log_columns": data.event_columns}
            preset: Any = MODELS[encoder]
            widths = {name: settings[name] for name in ("d_model", "num_layers")}
            model = preset(
                data.num_items, **widths, max_length=length, positions=False, **(reads if models else {})
            ).to(device)
            models.append(model)
            loaders.append(data)
            batches.append(next(iter(data.train_dataloader())))
        ways: dict[str, list[Callable[[], object]]] = {
            "training step": [_trained(model, batch.to(device)) for model, batch in zip(models, batches, strict=True)],
            "batch loaded": [partial(_load, data) for data in loaders],
            "streamed step of 1": [_streamed(model, batch, 1) for model, batch in zip(models, batches, strict=True)],
            f"streamed step of {batch_size}": [
                _streamed(m, batch, batch_size) for m, batch in zip(models, batches, strict=True)
            ],
        }
        seconds: dict[str, list[float]] = {}
        for round_ in Progress(print_line).each("timing", range(settings["rounds"] + 1), "rounds"):
            for name, calls in ways.items():
                repeats = STEPS if name.startswith("streamed") else 1
                found = [min(timed(call, device) for _ in range(repeats)) for call in calls]
                # The first round builds objects that are built only once.
                seconds[name] = found if round_ < 2 else list(map(min, found, seconds[name]))
    seconds["batch loaded"] = [each / BATCHES for each in seconds["batch loaded"]]
    return {"users": batch_size, "seconds": seconds, "bytes": [tensor_bytes(batch) for batch in batches]}


def _log(file: Path, settings: Mapping[str, Any]) -> Table:
    """Write so many events that an epoch has `BATCHES` batches of full windows, and return their table."""
    users, events = settings["batch_size"], BATCHES * settings["length"] + 3
    rng = np.random.default_rng(settings["seed"])
    size = users * events
    # Gaps of seconds to weeks.
    gaps = np.exp(rng.uniform(0, np.log(14 * 86_400), (users, events))).astype(np.int64)
    frame = {USER_ID: np.repeat(np.arange(users), events), ITEM_ID: rng.integers(1, settings["num_items"] + 1, size)}
    frame[TIMESTAMP] = 1_600_000_000 + gaps.cumsum(1).reshape(-1)
    for name, values in COLUMNS.items():
        frame[name] = rng.integers(0, values, size)
    polars.DataFrame(frame).write_parquet(file)
    return Table(str(file))


def _trained(model: SequentialRecommender, batch: SequenceBatch) -> Callable[[], object]:
    """Return a training step of a batch, without a trainer."""
    optimizer = model.optimizer.build(model)

    def step() -> None:
        optimizer.zero_grad()
        model.training_step(batch, 0).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _load(data: SequenceDataModule) -> None:
    """Load an epoch."""
    deque(data.train_dataloader(), maxlen=0)


def _streamed(model: SequentialRecommender, batch: SequenceBatch, users: int) -> Callable[[], object]:
    """Return a step of so many users that have had all events of a batch but the newest."""
    model = copy.deepcopy(model).eval()
    history = batch.to(model.device).history
    columns = {name: values[:users] for name, values in (history.features or {}).items()}
    times = None if history.timestamps is None else history.timestamps[:users]
    before = History(
        history.item_ids[:users, :-1],
        history.lengths[:users] - 1,
        None if times is None else times[:, :-1],
        features={name: values[:, :-1] for name, values in columns.items()} or None,
    )
    items, now = history.item_ids[:users, -1], {name: values[:, -1] for name, values in columns.items()} or None
    at = None if times is None else times[:, -1]
    with torch.no_grad():
        state = model.extend(before, model.init_state(users))[1]

    @torch.no_grad()
    def step() -> None:
        model.step(items, state, None, at, now)

    return step
