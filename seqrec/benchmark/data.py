"""`seqrec benchmark data`: preparation beside plain polars, the loader beside a bare copy, on a generated log."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from seqrec.benchmark.data_stages import prepare_store, sort_with_polars, time_loader
from seqrec.benchmark.data_tables import DataFigures, LoaderFigures, StageFigures
from seqrec.benchmark.generated_log import PROFILES, Profile, ensure_log, log_bytes, log_folder, parse_events
from seqrec.benchmark.measured_child import (
    LIMITED_BY,
    Measurement,
    MemoryLimitError,
    machine_bytes,
    run_measured,
)
from seqrec.data.prepare.memory import MemoryLimit, spoken_bytes
from seqrec.data.progress import Progress, print_line
from seqrec.errors import InputError

# Above so many events a second preparation, without the limit, is left out unless it is asked for.
COMPARED_EVENTS = 20_000_000
# Bytes a row, about: sorted Parquet, event store, and what lies beside a store while it is prepared.
_PARQUET_BYTES, _STORE_BYTES, _SPOOL_BYTES = 24, 16, 32


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
    json_file: str | None = None,
) -> None:
    """Time preparation and loader on a generated log, beside plain polars and a bare memory copy.

    Each stage runs in a process of its own, one after the other, and a table shows all of them.

    Args:
        events: Rows of the log: a number, or one with K, M or G, such as 100M.
        memory_limit: What the preparation may hold, such as 3GiB, 1 GiB or more; its process is limited from
            outside.
        folder: Where the log and the store go, and stay: a later run with the same events, profile and seed
            takes the log as it is. None is a temporary folder that is deleted at the end.
        profile: Whose size and skew the log has: kuairand or lfm1b.
        seed: Seed of the log.
        max_length: Events a window, at most, in the loader.
        batch_size: Windows a batch, in the loader; its token budget is batch_size * max_length.
        compare_bytes: Whether to prepare without the limit too, and compare the stores byte for byte. None
            does so up to 20 million events.
        json_file: File that the figures are written to, as JSON.

    Raises:
        MemoryLimitError: the preparation did not stay within its limit.
        InputError: an argument is out of range, or the disk is too small.
    """
    if profile not in PROFILES:
        raise InputError(f"profile={profile!r} must be one of {', '.join(PROFILES)}")
    number, limit = parse_events(events), MemoryLimit(memory_limit).bytes
    # Now rather than after an hour.
    if json_file is not None and not Path(json_file).absolute().parent.is_dir():
        raise InputError(f"json_file={json_file!r} lies in a folder that does not exist; make it first")
    with _place(folder) as place:
        figures = measure_data(
            place,
            PROFILES[profile],
            number,
            memory_limit=limit,
            seed=seed,
            max_length=max_length,
            batch_size=batch_size,
            compare_bytes=number <= COMPARED_EVENTS if compare_bytes is None else compare_bytes,
            progress=Progress(print_line),
        )
    print(f"\n{figures.as_text()}")
    if json_file is not None:
        Path(json_file).write_text(figures.as_json() + "\n", encoding="utf-8")


def measure_data(
    folder: Path,
    profile: Profile,
    events: int,
    *,
    memory_limit: int,
    seed: int = 0,
    max_length: int = 5000,
    batch_size: int = 16,
    compare_bytes: bool = True,
    progress: Progress | None = None,
) -> DataFigures:
    """Generate, sort, prepare and load; the log and the store stay in `folder`.

    Args:
        folder: Where everything goes.
        profile: Shape of the log.
        events: Its rows.
        memory_limit: Bytes that the preparation may hold.
        seed: Seed of the log.
        max_length: Events a window, at most.
        batch_size: Windows a batch.
        compare_bytes: Whether to prepare without the limit too.
        progress: Told what is being done.

    Raises:
        MemoryLimitError: the preparation did not stay within its limit.
        InputError: an argument is out of range, or the disk is too small.
    """
    for name, value in (("max_length", max_length), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name}={value} must be at least 1")
    progress = progress or Progress()
    settings = {
        "profile": profile.name,
        "events": events,
        "memory_limit": memory_limit,
        "seed": seed,
        "max_length": max_length,
        "batch_size": batch_size,
    }
    tokens = batch_size * max_length
    log = log_folder(folder, profile, events, seed)
    _check_disk(log, profile, events, stores=1 + compare_bytes)
    generated = _generate(log, profile, events, seed, progress)
    plain = [_sort_plainly(log, streaming, progress) for streaming in (True, False)]
    prepared, same_bytes = _prepare(log, memory_limit, compare_bytes, progress)
    loaders = [
        _load(log, max_length, {"batch_size": batch_size}, f"{batch_size} windows", progress),
        _load(
            log, max_length, {"batch_size": batch_size, "max_tokens": tokens}, f"{tokens:,} tokens", progress
        ),
    ]
    size = sum(file.stat().st_size for file in log.glob("*.csv"))
    return DataFigures(
        settings, _machine(), size, LIMITED_BY, generated, plain, prepared, same_bytes, loaders
    )


def _generate(log: Path, profile: Profile, events: int, seed: int, progress: Progress) -> StageFigures | None:
    was_there = log.exists()
    began = time.perf_counter()
    ensure_log(log.parent, profile, events, seed=seed, progress=progress)
    if was_there:
        progress.note(f"the log is there already: {log}")
        return None
    return StageFigures("generate the log", time.perf_counter() - began)


def _sort_plainly(log: Path, streaming: bool, progress: Progress) -> StageFigures:
    name = f"polars sort, {'streaming' if streaming else 'in memory'}"
    progress.note(f"{name} ...")
    output = log.with_name(f"{log.name}.parquet")
    arguments = {"log": str(log), "output": str(output), "streaming": streaming}
    try:
        return _stage(name, run_measured(sort_with_polars, arguments, imports=["polars"]))
    except MemoryLimitError as error:
        return StageFigures(name, None, failure=str(error))
    finally:
        output.unlink(missing_ok=True)


def _prepare(
    log: Path, memory_limit: int, compare_bytes: bool, progress: Progress
) -> tuple[list[StageFigures], bool | None]:
    # Within the limit, and, if wanted, without; whether the stores are the same.
    stages, hashes = [], []
    for limit in [memory_limit, None] if compare_bytes else [memory_limit]:
        name = "prepare, no limit" if limit is None else f"prepare, {spoken_bytes(limit)}"
        progress.note(f"{name} ...")
        store = _store(log) if limit else log.with_name(f"{log.name}.unlimited-store")
        arguments = {"log": str(log), "store": str(store), "memory_limit": limit}
        try:
            measured = run_measured(
                prepare_store, arguments, memory_limit=limit, imports=["polars"], show=progress.note
            )
        except MemoryLimitError as error:
            raise MemoryLimitError(f"{name}: {error}") from error
        stages.append(_stage(name, measured))
        hashes.append(measured.value["sha256"])
        if limit is None:
            shutil.rmtree(store)
            store.with_name(f"{store.name}.lock").unlink(missing_ok=True)
    return stages, hashes[0] == hashes[1] if compare_bytes else None


def _load(
    log: Path, max_length: int, batches: dict[str, int], size: str, progress: Progress
) -> LoaderFigures:
    progress.note(f"loader, {size} a batch ...")
    arguments = {"log": str(log), "store": str(_store(log)), "max_length": max_length, **batches}
    return LoaderFigures(f"{size} a batch", **run_measured(time_loader, arguments).value)


def _stage(name: str, measured: Measurement) -> StageFigures:
    return StageFigures(name, measured.seconds, measured.peak_anonymous, measured.peak_resident)


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
        raise InputError(
            f"events={events} needs about {spoken_bytes(needed)} of disk in {log.parent}, "
            f"{spoken_bytes(free)} are free; give another folder or fewer events"
        )


def _machine() -> dict[str, Any]:
    packages = {name: version(name) for name in ("polars", "numpy", "torch")}
    return {
        "cores": os.cpu_count(),
        "memory": machine_bytes("MemTotal"),
        "python": platform.python_version(),
        **packages,
    }


@contextmanager
def _place(folder: str | None) -> Iterator[Path]:
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="seqrec-benchmark-") as temporary:
        yield Path(temporary)
