"""`seqrec benchmark data`: preparation next to plain polars, the loader next to a bare copy, and the append of a day.

Importing this module does not import torch, which the process that prepares must not hold.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars
import psutil
from numpy.typing import NDArray

from seqrec.benchmark import harness
from seqrec.benchmark.generated_log import (
    PROFILES,
    Profile,
    ensure_day,
    ensure_log,
    log_bytes,
    log_folder,
    parse_events,
)
from seqrec.benchmark.harness import Benchmark, Row
from seqrec.benchmark.measurement import LIMITED_BY, MemoryLimitError, anonymous_bytes, run_measured
from seqrec.data.prepare import Filters, append, prepare
from seqrec.data.prepare.memory import MemoryLimit, spoken_bytes
from seqrec.data.progress import print_line
from seqrec.data.report_table import Part
from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID
from seqrec.data.sources.table import Table
from seqrec.errors import InputError

if TYPE_CHECKING:
    from seqrec.data.datamodule import SequenceDataModule
    from seqrec.types import SequenceBatch, TensorRecord

# Up to so many events a second preparation, without the limit, runs unless `compare_bytes` is False.
COMPARED_EVENTS = 20_000_000
# Approximate bytes per row: sorted Parquet, event store, and temporary files of preparation.
_PARQUET_BYTES, _STORE_BYTES, _SPOOL_BYTES = 24, 16, 32

# Most events of a timed pass over the loader; enough to make the plan of the first batch negligible.
PASS_EVENTS = 50_000_000
# Larger than the processor's caches, as a store is: the bare copy must read from memory, too.
_SOURCE_BYTES = 256 << 20


def benchmark_data(
    events: str = "1M",
    *,
    memory_limit: str = "3GiB",
    folder: str | None = None,
    profile: str = "kuairand",
    seed: int = 0,
    max_length: int = 5000,
    batch_size: int = 16,
    compare_bytes: bool | None = None,
    day: str | None = None,
    json_file: str | None = None,
) -> None:
    """Time preparation and loader on a generated log, next to plain polars and a bare memory copy.

    Each stage runs in a process of its own, one after the other, and a table shows all of them.

    Args:
        events: Rows of the log: a number, or one with K, M or G, such as 100M.
        memory_limit: Memory for the preparation, such as 3GiB, at least 1 GiB. Its process is limited from outside.
        folder: Folder of the log and the store, which stay there: a later run with the same events, profile and seed
            reuses the log. None is a temporary folder that is deleted at the end.
        profile: Model of the log's size and skew: kuairand or lfm1b.
        seed: Seed of the log.
        max_length: Most events per window, in the loader.
        batch_size: Windows per batch, in the loader; its token budget is batch_size * max_length.
        compare_bytes: Whether to prepare without the limit, too, and compare the stores byte for byte. None
            does so up to 20 million events.
        day: Rows of a further day, such as 1M, which are appended to the store at the end. None appends nothing.
        json_file: File for the figures, as JSON.

    Raises:
        MemoryLimitError: if the preparation exceeds its limit.
        InputError: if an argument is out of range, or the disk is too small.
    """
    if profile not in PROFILES:
        raise InputError(f"profile={profile!r} must be one of {', '.join(PROFILES)}")
    harness.check_numbers(1, max_length=max_length, batch_size=batch_size)
    number, limit = parse_events(events), MemoryLimit(memory_limit).bytes
    rows = None if day is None else parse_events(day)
    if compare_bytes is None:
        compare_bytes = number <= COMPARED_EVENTS
    settings = {"profile": profile, "events": number, "memory_limit": limit, "seed": seed}
    settings |= {"max_length": max_length, "batch_size": batch_size, "day": rows}
    figures = {"settings": settings, "machine": _machine(), "log_bytes": 0, "limited_by": LIMITED_BY}
    figures |= {"generated": None, "plain": [], "prepared": [], "same_bytes": None, "loaders": [], "appended": None}
    benchmark = Benchmark(json_file, 6 + compare_bytes + (rows is not None), **figures)
    temporary = tempfile.TemporaryDirectory(prefix="seqrec-benchmark-") if folder is None else None
    with temporary or nullcontext(folder) as place:
        log = log_folder(Path(str(place)), PROFILES[profile], number, seed)
        _check_disk(log, PROFILES[profile], number, stores=1 + compare_bytes)
        _measure(benchmark, log, compare_bytes)
    benchmark.finish(*report(benchmark))


def _measure(benchmark: Benchmark, log: Path, compare_bytes: bool) -> None:
    # Generate, sort, prepare and load.
    settings = benchmark["settings"]
    with benchmark.cell("the log"):
        benchmark["generated"] = _generate(log, benchmark)
    benchmark["log_bytes"] = sum(file.stat().st_size for file in log.glob("*.csv"))
    for streaming in (True, False):
        benchmark["plain"].append(_sort_plainly(log, streaming, benchmark))
    benchmark["same_bytes"] = _prepare(log, settings["memory_limit"], compare_bytes, benchmark)
    windows, max_length = settings["batch_size"], settings["max_length"]
    tokens = windows * max_length
    for batches, name in (
        ({"batch_size": windows}, f"{windows} windows a batch"),
        ({"batch_size": windows, "max_tokens": tokens}, f"{tokens:,} tokens a batch"),
    ):
        arguments = {"log": str(log), "store": str(_store(log)), "max_length": max_length, **batches}
        with benchmark.cell(f"loader, {name}"):
            found = run_measured(time_loader, arguments, show=benchmark.show).value
        benchmark["loaders"].append({"name": name, **found})
    if settings["day"] is not None:
        benchmark["appended"] = _append(log, benchmark)


def yardstick(plain: Sequence[Row]) -> Row | None:
    """Return the fastest plain pipeline; None if all of them failed."""
    done = [stage for stage in plain if not harness.failed(stage)]
    return min(done, key=lambda stage: stage["seconds"], default=None)


def report(figures: Benchmark | Mapping[str, Any]) -> list[Part]:
    """Return the parts of the report; ratios are to the yardstick, 2.00 is twice as fast.

    Args:
        figures: By key. `settings`; `machine`: cores, memory in bytes, versions; `log_bytes`: size of the CSV files;
            `limited_by`: the mechanism of the memory limit. `generated`, of writing the log, None if it existed,
            `plain`, of the polars pipelines, and `prepared`, with the limit and without, are stages: `name`,
            `seconds`, `peak_anonymous`, `peak_resident` and `failure`, None for unknown. `same_bytes`: whether both
            stores are equal, None if only one was made. `loaders`: see `time_loader`; with a `name`. `appended`: the
            stage of the day, with its `cpu_seconds`, None without a day.
    """
    settings, on = figures["settings"], figures["machine"]
    stages = [*figures["plain"], *figures["prepared"]]
    best = yardstick(figures["plain"])
    csv = f"{settings['profile']}-like log, {settings['events']:,} events, {spoken_bytes(figures['log_bytes'])} of CSV"
    title = f"{csv}; {on['cores']} cores, {spoken_bytes(on['memory'])}, polars {on['polars']}"
    events = settings["events"]
    rows = [_stage_cells(stage, None, events) for stage in [figures["generated"]] if stage is not None]
    rows += [_stage_cells(stage, best, events) for stage in stages]
    if (appended := figures["appended"]) is not None:
        rows.append(_stage_cells(appended, None, settings["day"]))
    notes = [harness.failures(stages, "{name}")]
    if best is not None:
        notes.append(f"1.00 is {best['name']}, which had no limit")
    limit = spoken_bytes(settings["memory_limit"])
    if appended is not None:
        notes.append(f"the append took {appended['cpu_seconds']:.1f} s of processor time")
    notes.append(f"{limit} enforced by {figures['limited_by']} on the whole process, imports included")
    if figures["same_bytes"] is not None:
        same = "the same" if figures["same_bytes"] else "OTHER"
        notes.append(f"without the limit the store has {same} bytes")
    passes = "preparation | seconds | rows/s | of plain polars | anonymous | resident"
    loading = "loader | events/s | padding | GB/s | of a bare copy | memory | batches"
    loaders = harness.table(loading, map(_loader_cells, figures["loaders"]))
    return [title, harness.table(passes, rows), "\n".join(filter(None, notes)), loaders]


def _stage_cells(stage: Row, best: Row | None, events: int) -> list[str]:
    peaks = (stage["peak_anonymous"], stage["peak_resident"])
    memory = ["" if size is None else spoken_bytes(size) for size in peaks]
    if harness.failed(stage):
        return [stage["name"], "failed", "", "", *memory]
    ratio = "" if best is None else f"{best['seconds'] / stage['seconds']:.2f}"
    rate = events / stage["seconds"]
    return [stage["name"], f"{stage['seconds']:.1f}", f"{rate:,.0f}", ratio, *memory]


def _loader_cells(row: Row) -> list[str]:
    seconds = row["seconds"]
    name = [row["name"], f"{row['events'] / seconds:,.0f}", f"{row['padding']:.1%}"]
    rates = [f"{row['bytes'] / seconds / 1e9:.2f}", f"{row['copy_seconds'] / seconds:.2f}"]
    return [*name, *rates, spoken_bytes(row["memory"]), f"{row['batches']:,}"]


def _generate(log: Path, benchmark: Benchmark) -> Row | None:
    settings = benchmark["settings"]
    existed = log.exists()
    began = time.perf_counter()
    profile, events = PROFILES[settings["profile"]], settings["events"]
    ensure_log(log.parent, profile, events, seed=settings["seed"], progress=benchmark.progress)
    if existed:
        benchmark.progress.note(f"the log exists: {log}")
        return None
    return _stage("generate the log", seconds=time.perf_counter() - began)


def _sort_plainly(log: Path, streaming: bool, benchmark: Benchmark) -> Row:
    name = f"polars sort, {'streaming' if streaming else 'in memory'}"
    output = log.with_name(f"{log.name}.parquet")
    arguments = {"log": str(log), "output": str(output), "streaming": streaming}
    with benchmark.cell(name):
        try:
            return _stage(name, run_measured(sort_with_polars, arguments, show=benchmark.show))
        except MemoryLimitError as error:
            return _stage(name, failure=str(error))
        finally:
            output.unlink(missing_ok=True)


def _prepare(log: Path, memory_limit: int, compare_bytes: bool, benchmark: Benchmark) -> bool | None:
    # With the limit and, if wanted, without. Return whether the stores are equal.
    hashes = []
    for limit in [memory_limit, None] if compare_bytes else [memory_limit]:
        name = "prepare, no limit" if limit is None else f"prepare, {spoken_bytes(limit)}"
        store = _store(log) if limit else log.with_name(f"{log.name}.unlimited-store")
        arguments = {"log": str(log), "store": str(store), "memory_limit": limit}
        try:
            with benchmark.cell(name):
                measured = run_measured(prepare_store, arguments, memory_limit=limit, show=benchmark.show)
        except MemoryLimitError as error:
            raise MemoryLimitError(f"{name}: {error}") from error
        benchmark["prepared"].append(_stage(name, measured))
        hashes.append(measured.value["sha256"])
        if limit is None:
            shutil.rmtree(store)
            store.with_name(f"{store.name}.lock").unlink(missing_ok=True)
    return hashes[0] == hashes[1] if compare_bytes else None


def _append(log: Path, benchmark: Benchmark) -> Row:
    settings = benchmark["settings"]
    name, limit = f"append a day, {spoken_bytes(settings['memory_limit'])}", settings["memory_limit"]
    profile, events, rows = PROFILES[settings["profile"]], settings["events"], settings["day"]
    day = ensure_day(log, profile, events, rows, seed=settings["seed"])
    arguments = {"log": str(log), "store": str(_store(log)), "day": str(day), "memory_limit": limit}
    with benchmark.cell(name):
        measured = run_measured(append_day, arguments, memory_limit=limit, show=benchmark.show)
    shutil.rmtree(day)
    return _stage(name, measured, **measured.value)


def _stage(name: str, measured: object = None, **known: Any) -> Row:
    keys = ("seconds", "peak_anonymous", "peak_resident", "failure")
    return {"name": name, **{key: getattr(measured, key, None) for key in keys}, **known}


def _store(log: Path) -> Path:
    return log.with_name(f"{log.name}.store")


def _check_disk(log: Path, profile: Profile, events: int, stores: int) -> None:
    while_preparing = _SPOOL_BYTES + stores * _STORE_BYTES
    needed = events * max(_PARQUET_BYTES, while_preparing)
    if not log.exists():
        needed += log_bytes(profile, events)
    log.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(log.parent).free
    if free < needed:
        need = f"events={events} needs about {spoken_bytes(needed)} of disk in {log.parent}"
        raise InputError(f"{need}, {spoken_bytes(free)} are free; choose another folder or fewer events")


def _machine() -> dict[str, Any]:
    packages = {name: version(name) for name in ("polars", "numpy", "torch")}
    memory = psutil.virtual_memory().total
    return {"cores": os.cpu_count(), "memory": memory, "python": platform.python_version(), **packages}


def sort_with_polars(log: str, output: str, *, streaming: bool) -> None:
    """Scan a log's folder, sort by user and time, write a Parquet file: polars alone, with its defaults.

    Only the three columns that an event store keeps are read. The sorted rows are written as they come
    (`sink_parquet`) if `streaming`, else collected first.
    """
    frame = polars.scan_csv(f"{log}/*.csv").select(USER_ID, ITEM_ID, TIMESTAMP).sort(USER_ID, TIMESTAMP)
    if streaming:
        frame.sink_parquet(output)
    else:
        frame.collect().write_parquet(output)


def prepare_store(log: str, store: str, *, memory_limit: int | None) -> dict[str, Any]:
    """Prepare an event store, which is replaced if it exists, from a log's folder with a limit in bytes.

    Returns:
        `counts` of the manifest, and `sha256` of each of the store's files by name.
    """
    log_table = Table(log)
    prepared = prepare(log_table, Filters(), store, memory_limit=memory_limit, progress=print_line, overwrite=True)
    hashes = {name: file["sha256"] for name, file in prepared.manifest["files"].items()}
    return {"counts": prepared.manifest["counts"], "sha256": hashes}


def append_day(log: str, store: str, day: str, *, memory_limit: int) -> dict[str, Any]:
    """Append the files of a day to the store of a log, and return `cpu_seconds` and the `counts` of the grown store."""
    began = time.process_time()
    grown = append(Table(log), Filters(), store, day, memory_limit=memory_limit, progress=print_line)
    return {"cpu_seconds": time.process_time() - began, "counts": grown.manifest["counts"]}


def time_loader(
    log: str, store: str, *, max_length: int, batch_size: int, max_tokens: int | None = None, passes: int = 3
) -> dict[str, Any]:
    """Time one epoch of training batches, with each event in one window, and a bare copy of as many bytes.

    A pass stops after 50 million events. The first one is not timed: it loads the store into the page cache and reads
    the memory after each batch. Then passes of loader and copy take turns; the fastest of each counts. The copy
    moves, batch by batch, as many bytes as the batch's tensors hold.

    A batch has `batch_size` windows, or if it is given, `max_tokens` events, padding included.

    Returns:
        `events` (without padding), `batches` and `bytes` of a pass; `padding`, the share of positions without an
        event; `seconds` and `copy_seconds`; `memory`, the most anonymous bytes that loading added.
    """
    from seqrec.data.datamodule import SequenceDataModule
    from seqrec.data.windows import StridedWindows

    before = anonymous_bytes()
    size = {"max_length": max_length, "batch_size": batch_size, "max_tokens": max_tokens}
    data = SequenceDataModule(Table(log), store=store, train_windows=StridedWindows(), **size)  # type: ignore[arg-type]
    events, positions, memory = 0, 0, before
    sizes: list[int] = []
    for batch in _one_pass(data):
        events += int(batch.history.lengths.sum())
        positions += batch.history.item_ids.numel()
        sizes.append(tensor_bytes(batch))
        memory = max(memory, anonymous_bytes())
    source, target = np.ones(max(_SOURCE_BYTES, *sizes), np.uint8), np.ones(max(sizes), np.uint8)
    seconds, copy_seconds = [], []
    for _ in range(passes):
        seconds.append(_timed(_one_pass(data)))
        copy_seconds.append(_timed(_copies(source, target, sizes)))
    counts = {"events": events, "batches": len(sizes), "bytes": sum(sizes), "padding": 1 - events / positions}
    times = {"seconds": min(seconds), "copy_seconds": min(copy_seconds)}
    return {**counts, **times, "memory": memory - before}


def tensor_bytes(record: TensorRecord) -> int:
    """Return the bytes of all tensors in a record, nested records included."""
    values = [getattr(record, field.name) for field in fields(record)]  # type: ignore[arg-type]  # a dataclass
    values += [tensor for value in values if isinstance(value, dict) for tensor in value.values()]
    values = [value for value in values if not isinstance(value, dict)]
    return sum(v.nbytes if hasattr(v, "nbytes") else tensor_bytes(v) for v in values if v is not None)


def _one_pass(data: SequenceDataModule) -> Iterator[SequenceBatch]:
    events = 0
    for batch in data.train_dataloader():
        yield batch
        events += int(batch.history.lengths.sum())
        if events >= PASS_EVENTS:
            return


def _copies(source: NDArray[np.uint8], target: NDArray[np.uint8], sizes: list[int]) -> Iterator[None]:
    start = 0
    for size in sizes:
        if start + size > len(source):
            start = 0
        np.copyto(target[:size], source[start : start + size])
        start += size
        yield


def _timed(steps: Iterable[object]) -> float:
    began = time.perf_counter()
    deque(steps, maxlen=0)
    return time.perf_counter() - began
