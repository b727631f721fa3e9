"""`seqrec benchmark catalogue`: the cost of a training step as the catalogue grows, by objective and optimizer."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqrec.benchmark import harness
from seqrec.benchmark.harness import Benchmark, Row
from seqrec.benchmark.measurement import run_measured
from seqrec.catalogue.table import ItemTable
from seqrec.data.columns import Column
from seqrec.data.prepare.memory import spoken_bytes
from seqrec.experiments import MODELS
from seqrec.models import SequentialRecommender
from seqrec.training.losses import LOSSES, Loss
from seqrec.training.negatives import UniformNegatives
from seqrec.training.optim import Adam, RowwiseAdagrad
from seqrec.types import History, RaggedItems, SequenceBatch

OPTIMIZERS = ("dense_adam", "lazy_adam", "rowwise_adagrad")
OBJECTIVES = ("BCE", "GBCE", "SampledSoftmax", "InBatchSoftmax", "FullSoftmax")
# Negatives per event if each event draws its own, and if all events share them.
OWN_NEGATIVES, SHARED_NEGATIVES = 1, 1024
# Most scores of a step for which the whole catalogue is scored: a step of 2^32 takes about ten seconds on two cores.
MAX_SCORES = 1 << 32
# Items whose content is written at a time.
ROWS_WRITTEN = 1 << 18


def benchmark_catalogue(
    items: Sequence[int] = (10_000, 100_000, 1_000_000, 30_000_000),
    *,
    objectives: Sequence[str] = OBJECTIVES,
    optimizers: Sequence[str] = OPTIMIZERS,
    encoder: str = "MambaRec",
    d_model: int = 32,
    batch_size: int = 16,
    length: int = 1000,
    content: int = 0,
    steps: int = 5,
    seed: int = 0,
    device: str = "cpu",
    json_file: str | None = None,
) -> None:
    """Time training steps and their memory for catalogues of several sizes.

    Each combination runs in a process of its own. The first objective is measured with every optimizer. The others
    are measured with the last optimizer only, because the update does not depend on them. `FullSoftmax`, with its dense
    gradients, is measured with dense Adam. With `content`, each row-sparse combination is measured once more, with a
    column of vectors in float16 as `ItemTable.content`; the pages of its file are part of the peak.

    Args:
        items: Sizes of the catalogue, ascending.
        objectives: Of BCE, GBCE, SampledSoftmax, InBatchSoftmax, FullSoftmax.
        optimizers: Of dense_adam, lazy_adam, rowwise_adagrad: the update of the item table. Everything else uses Adam.
        encoder: Name of a preset.
        d_model: Width.
        batch_size: Histories per batch.
        length: Events per history.
        content: Numbers of content of each item; 0 measures none. They are written to a temporary file.
        steps: Timed steps; the fastest counts.
        seed: Seed of weights, items and draws.
        device: cpu or cuda.
        json_file: File for the figures, as JSON.

    Raises:
        InputError: if an argument is out of range.
    """
    harness.check_names(OBJECTIVES, objectives=objectives)
    harness.check_names(OPTIMIZERS, optimizers=optimizers)
    harness.check_numbers(2, items=items, empty=False)
    harness.check_numbers(1, steps=steps)
    harness.check_numbers(0, content=content)
    MODELS[encoder]  # raises with the known ones
    settings = {"encoder": encoder, "d_model": d_model, "batch_size": batch_size, "length": length}
    settings |= {"steps": steps, "seed": seed, "device": device}
    benchmark = Benchmark(json_file, settings=settings, figures=[])

    def measure(cell: Row) -> Row:
        scores = cell["num_items"] * batch_size * length
        if cell["objective"] == "FullSoftmax" and scores > MAX_SCORES:
            return {"failure": f"{scores:.0e} scores a step are left out; use a sampled objective"}
        arguments = {name: cell[name] for name in ("num_items", "objective", "optimizer", "content")}
        measured = run_measured(time_steps, {**arguments, "settings": settings}, show=benchmark.show)
        on_device = measured.value["device_bytes"]
        peak = measured.peak_resident if on_device is None else on_device
        return {"seconds": min(measured.value["step_seconds"]), "peak_bytes": peak}

    empty = {"seconds": None, "peak_bytes": None, "failure": None}
    cells = [
        {**combination, "num_items": num_items, **empty}
        for combination in _combinations(objectives, optimizers, content)
        for num_items in items
    ]
    name = "{objective}, {optimizer}, {content} numbers of content, {num_items:,} items"
    benchmark.run("figures", cells, measure, name, lambda row: f"{row['seconds'] * 1e3:,.0f} ms a step")
    title = f"training step, {encoder} width {d_model}, batch {batch_size} x {length}, fastest of {steps} on {device}"
    head = "objective, optimizer | items | ms a step | of the smallest | peak memory"
    rows = harness.with_first(benchmark["figures"], "objective", "optimizer", "content")
    table = harness.table(head, (_cells(row, smallest) for row, smallest in rows))
    notes = harness.failures(benchmark["figures"], "{objective}, {optimizer}, {num_items:,}")
    benchmark.finish(title, table, notes)


def _combinations(objectives: Sequence[str], optimizers: Sequence[str], content: int) -> list[Row]:
    sampled = [objective for objective in objectives if objective != "FullSoftmax"]
    pairs = [(sampled[0], optimizer) for optimizer in optimizers] if sampled else []
    pairs += [(objective, optimizers[-1]) for objective in sampled[1:]]
    pairs += [("FullSoftmax", "dense_adam")] * ("FullSoftmax" in objectives)
    return [
        {"objective": objective, "optimizer": optimizer, "content": width}
        for objective, optimizer in pairs
        for width in ([0, content] if content and optimizer != "dense_adam" else [0])
    ]


def _cells(row: Row, smallest: Row) -> list[str]:
    content = f", {row['content']} numbers of content" if row["content"] else ""
    name = [f"{row['objective']}, {row['optimizer']}{content}", f"{row['num_items']:,}"]
    if harness.failed(row):
        return [*name, harness.DID_NOT_RUN]
    ratio = row["seconds"] / smallest["seconds"]
    return [*name, f"{row['seconds'] * 1e3:,.0f}", f"{ratio:.2f}", spoken_bytes(row["peak_bytes"])]


def time_steps(
    num_items: int, objective: str, optimizer: str, content: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Time training steps of a model with a catalogue of `num_items`; see `benchmark_catalogue` for the arguments.

    A step is forward pass, objective, backward pass and update. The rows of the batch are full, and their items are
    uniform over the catalogue. Rows of the item table are touched twice only by chance, which is the worst case for
    row-sparse updates. The first two steps, in which optimizers create their state, are not timed.

    Returns:
        `step_seconds`, of each timed step, and `device_bytes`, the most memory of tensors on a CUDA device, None on
        CPU.
    """
    torch.manual_seed(settings["seed"])
    preset: Any = MODELS[settings["encoder"]]
    with tempfile.TemporaryDirectory() as folder:
        columns = {"vector": _random_vectors(Path(folder, "vectors.npy"), num_items, content)} if content else {}
        model: SequentialRecommender = preset(
            num_items,
            d_model=settings["d_model"],
            max_length=settings["length"],
            item_table=ItemTable(sparse=optimizer != "dense_adam", content=tuple(columns)),
            item_columns={name: column.sizes for name, column in columns.items()},
            loss=_loss(objective),
            optimizer=Adam(table=RowwiseAdagrad()) if optimizer == "rowwise_adagrad" else Adam(),
        )
        if model.items.content is not None:
            model.items.content.read(columns)
        return _time_steps(model, settings)


def _time_steps(model: SequentialRecommender, settings: Mapping[str, Any]) -> dict[str, Any]:
    device, num_items = settings["device"], model.items.num_items
    if model.loss.needs_item_counts:
        counts = torch.ones(num_items + 1, dtype=torch.int64)
        counts[0] = 0
        model.loss.use_item_counts(counts)
    updates = model.to(device).optimizer.build(model)
    batch = full_batch(num_items, settings["batch_size"], settings["length"]).to(device)
    seconds = []
    for _ in range(settings["steps"] + 2):
        began = time.perf_counter()
        states = model.to_scoring_space(model(batch.history, batch.user_ids))
        model.loss(states, batch, model.scorer()).backward()
        updates.step()
        updates.zero_grad()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    memory = None if device == "cpu" else torch.cuda.max_memory_allocated()
    return {"step_seconds": seconds[2:], "device_bytes": memory}


def _random_vectors(file: Path, num_items: int, width: int) -> Column:
    """Write vectors of items to a file, a part at a time, and map it."""
    written = np.lib.format.open_memmap(file, "w+", np.float16, (num_items + 1, width))
    random = np.random.default_rng(0)
    for first in range(0, len(written), ROWS_WRITTEN):
        rows = written[first : first + ROWS_WRITTEN]
        rows[:] = random.standard_normal(rows.shape, np.float32)
    written[0] = 0
    written.flush()
    del written
    return Column("vector", np.load(file, mmap_mode="r"))


def _loss(objective: str) -> Loss:
    make: Any = LOSSES[objective]
    if objective in ("BCE", "GBCE"):
        loss: Loss = make(UniformNegatives(OWN_NEGATIVES, exclude_seen=objective == "BCE"))
    elif objective == "SampledSoftmax":
        loss = make(UniformNegatives(SHARED_NEGATIVES, exclude_seen=False, shared=True))
    else:
        loss = make()
    return loss


def full_batch(num_items: int, batch_size: int, length: int) -> SequenceBatch:
    """Return a batch of full histories with items that are uniform over the catalogue."""
    events = torch.randint(1, num_items + 1, (batch_size, length + 1))
    history = History(events[:, :-1].contiguous(), torch.full((batch_size,), length))
    seen = RaggedItems(events.flatten(), torch.arange(batch_size + 1) * (length + 1))
    users = torch.zeros(batch_size, dtype=torch.int64)
    return SequenceBatch(history, events[:, 1:].contiguous(), users, seen)
