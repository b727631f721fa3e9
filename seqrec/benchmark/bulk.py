"""`seqrec benchmark bulk`: lists for some users of a large catalogue, and an estimate of the time for many users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from seqrec.benchmark import harness
from seqrec.benchmark.harness import Benchmark, Row
from seqrec.benchmark.measurement import run_measured, timed
from seqrec.catalogue.recommend import RecommendOptions, recommend_block
from seqrec.data.event_block import EventBlock
from seqrec.data.prepare.memory import spoken_bytes
from seqrec.data.progress import duration
from seqrec.data.report_table import ReportTable
from seqrec.errors import InputError, check_at_least
from seqrec.experiments import MODELS
from seqrec.inference.bulk.job import tokens_for
from seqrec.models import SequentialRecommender


def benchmark_bulk(
    items: Sequence[int] = (10_000, 100_000, 1_000_000),
    *,
    encoders: Sequence[str] = ("MambaRec", "SASRec"),
    users: int = 256,
    of_users: int = 1_000_000,
    length: int = 200,
    top_k: int = 100,
    d_model: int = 64,
    rounds: int = 3,
    seed: int = 0,
    device: str = "cpu",
    json_file: str | None = None,
) -> None:
    """Time lists for some users as `seqrec recommend` makes them, and estimate the time for many users.

    Users have 1 to `length` events, all lengths equally often. Reading a log and writing files is not included. The
    time for many users is that of the measured ones times their number, which is an estimate: it was not measured.
    Each combination runs in a process of its own.

    Args:
        items: Sizes of the catalogue.
        encoders: Names of presets.
        users: Users to time lists for.
        of_users: Users for whom the time is estimated.
        length: Most events of a user.
        top_k: Items of a list, without those of the history; at most the items of the smallest catalogue.
        d_model: Width.
        rounds: Rounds; the fastest counts.
        seed: Seed of weights and histories.
        device: cpu or cuda.
        json_file: File for the figures, as JSON.

    Raises:
        InputError: if an argument is out of range.
    """
    harness.check_numbers(2, items=items, empty=False)
    sizes = {"users": users, "length": length, "top_k": top_k, "d_model": d_model, "rounds": rounds}
    check_at_least(1, of_users=of_users, **sizes)
    if top_k > min(items):
        raise InputError(f"top_k={top_k} is more than the {min(items)} items of the smallest catalogue; lower it")
    for encoder in encoders:
        MODELS[encoder]  # raises with the known ones
    harness.check_device(device)
    settings = {**sizes, "seed": seed, "device": device}
    on = harness.machine(device)
    benchmark = Benchmark(json_file, settings={**settings, "of_users": of_users}, machine=on, figures=[])
    cells = [{"encoder": encoder, "num_items": each, "failure": None} for encoder in encoders for each in items]

    def measure(cell: Row) -> Row:
        arguments = {"encoder": cell["encoder"], "num_items": cell["num_items"], "settings": settings}
        measured = run_measured(time_lists, arguments, show=benchmark.show)
        on_device = measured.value["device_bytes"]
        row = {**measured.value, "peak_bytes": measured.peak_resident if on_device is None else on_device}
        return {**row, "estimated_seconds": estimated_seconds(row, of_users)}

    benchmark.run("figures", cells, measure, "{encoder}, {num_items:,} items")
    title = (
        f"the best {top_k} items for users with up to {length} events, width {d_model}, {on['device']}, "
        f"{on['threads']} threads, torch {on['torch']}\nthe time for {of_users:,} users is estimated from {users:,}\n"
        '"searching" is one call for all users in parts of the time of their lists, which are made in batches on '
        "threads: it may exceed 100%"
    )
    notes = harness.failures(benchmark["figures"], "{encoder}, {num_items:,} items")
    benchmark.finish(title, list_table(benchmark["figures"], of_users), notes)


def list_table(rows: Sequence[Row], of_users: int) -> ReportTable:
    """Return the table of rows as `time_lists` returns them, with `peak_bytes` and `estimated_seconds`."""
    head = f"encoder | items | lists/s | searching | events/s | peak memory | estimated, {of_users:,} users"
    cells = []
    for row in rows:
        cell = [row["encoder"], f"{row['num_items']:,}"]
        if not harness.failed(row):
            seconds = row["seconds"]
            cell += [f"{row['users'] / seconds:,.0f}", f"{row['search_seconds'] / seconds:.0%}"]
            cell += [f"{row['events'] / seconds:,.0f}", spoken_bytes(row["peak_bytes"])]
            cell.append(duration(row["estimated_seconds"]))
        cells.append(cell)
    return harness.table(head, cells)


def estimated_seconds(row: Mapping[str, Any], users: int) -> float:
    """Return the seconds that lists for many users would take, in proportion to those that were timed.

    Args:
        row: `users` and `seconds` of a measurement, as of `time_lists`.
        users: Users for whom the time is estimated.
    """
    return float(row["seconds"]) * users / int(row["users"])


def time_lists(encoder: str, num_items: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Time lists for users with random histories, as `benchmark_bulk` describes; see there for the settings.

    Returns:
        `users`, `events`, `seconds` of the fastest round, `search_seconds`, of the same users' search of the catalogue
        alone, and `device_bytes`, the most memory of tensors on a GPU, None on a CPU.
    """
    users, device = settings["users"], settings["device"]
    torch.manual_seed(settings["seed"])
    with torch.device(device):
        preset: Any = MODELS[encoder]
        model: SequentialRecommender = preset(num_items, d_model=settings["d_model"], max_length=settings["length"])
    model.eval()
    draws = np.random.default_rng(settings["seed"])
    lengths = 1 + np.arange(users) % settings["length"]
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
    item_ids = draws.integers(1, num_items + 1, int(offsets[-1]))
    block = EventBlock(item_ids, offsets, np.zeros(users, np.int64), num_items)
    options, tokens = RecommendOptions(settings["top_k"]), tokens_for(device)
    lists = partial(recommend_block, model, block, options, max_tokens=tokens)
    states, ids = torch.randn(users, settings["d_model"], device=device), torch.zeros(users, dtype=torch.int64)
    search = partial(model.search.top_k, model.scorer(), states, options.top_k, ids)
    on_cuda = torch.device(device).type == "cuda"
    with torch.no_grad():
        # Kernels are loaded, and the memory of a batch is allocated.
        lists()
        if on_cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = min(timed(lists, device) for _ in range(settings["rounds"]))
        device_bytes = torch.cuda.max_memory_allocated() if on_cuda else None
        search_seconds = min(timed(search, device) for _ in range(settings["rounds"]))
    found = {"users": users, "events": int(lengths.sum()), "seconds": seconds, "search_seconds": search_seconds}
    return {**found, "device_bytes": device_bytes}
