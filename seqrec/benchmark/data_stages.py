"""Stages that `benchmark data` times, each in a process of its own: plain values in, plain values out.

This module does not import torch, which the process that prepares must not hold.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import polars
from numpy.typing import NDArray

from seqrec.benchmark.measurement import anonymous_bytes
from seqrec.data.prepare import Filters, prepare
from seqrec.data.progress import print_line
from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID
from seqrec.data.sources.table import Table

if TYPE_CHECKING:
    from torch import Tensor

    from seqrec.data.datamodule import SequenceDataModule
    from seqrec.types import SequenceBatch, TensorRecord

# Most events of a timed pass over the loader; enough to make the plan of the first batch negligible.
PASS_EVENTS = 50_000_000
# Larger than the processor's caches, as a store is: the bare copy must read from memory, too.
_SOURCE_BYTES = 256 << 20


def sort_with_polars(log: str, output: str, *, streaming: bool) -> None:
    """Scan a log, sort it by user and time, write Parquet: polars alone, with its defaults.

    Only the three columns that an event store keeps are read.

    Args:
        log: Folder of CSV files.
        output: The Parquet file.
        streaming: Whether the sorted rows are written as they come (`sink_parquet`) or collected first.
    """
    frame = polars.scan_csv(f"{log}/*.csv").select(USER_ID, ITEM_ID, TIMESTAMP).sort(USER_ID, TIMESTAMP)
    if streaming:
        frame.sink_parquet(output)
    else:
        frame.collect().write_parquet(output)


def prepare_store(log: str, store: str, *, memory_limit: int | None) -> dict[str, Any]:
    """Prepare an event store from a log.

    Args:
        log: Folder of CSV files.
        store: Folder of the store, which is replaced if it exists.
        memory_limit: Bytes that the preparation may hold; None is its default.

    Returns:
        `counts` of the manifest, and `sha256` of each of the store's files by name.
    """
    prepared = prepare(
        Table(log), Filters(), store, memory_limit=memory_limit, progress=print_line, overwrite=True
    )
    hashes = {name: file["sha256"] for name, file in prepared.manifest["files"].items()}
    return {"counts": prepared.manifest["counts"], "sha256": hashes}


def time_loader(
    log: str, store: str, *, max_length: int, batch_size: int, max_tokens: int | None = None, passes: int = 3
) -> dict[str, Any]:
    """Time one epoch of training batches, with each event in one window, and a bare copy of as many bytes.

    A pass stops after 50 million events. The first one is not timed: it loads the store into the page cache and reads
    the memory after each batch. Then passes of loader and copy take turns; the fastest of each counts. The copy
    moves, batch by batch, as many bytes as the batch's tensors hold.

    Args:
        log: Folder of the CSV files of the store.
        store: The prepared store.
        max_length: Most events per window.
        batch_size: Windows per batch.
        max_tokens: Events per batch, padding included, instead of `batch_size`.
        passes: Timed passes.

    Returns:
        `events` (without padding), `batches` and `bytes` of a pass; `padding`, the share of positions without an
        event; `seconds` and `copy_seconds`; `memory`, the most anonymous bytes that loading added.
    """
    from seqrec.data.datamodule import SequenceDataModule
    from seqrec.data.windows import StridedWindows

    before = anonymous_bytes()
    data = SequenceDataModule(
        Table(log),
        store=store,
        train_windows=StridedWindows(),
        max_length=max_length,
        batch_size=batch_size,
        max_tokens=max_tokens,
    )
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
    return {
        "events": events,
        "batches": len(sizes),
        "bytes": sum(sizes),
        "padding": 1 - events / positions,
        "seconds": min(seconds),
        "copy_seconds": min(copy_seconds),
        "memory": memory - before,
    }


def tensor_bytes(record: TensorRecord) -> int:
    """Return the bytes of all tensors in a record, nested records included."""
    values = [getattr(record, field.name) for field in fields(record)]  # type: ignore[arg-type]  # a dataclass
    return sum(_bytes(value) for value in values if value is not None)


def _bytes(value: Tensor | TensorRecord) -> int:
    import torch

    return value.nbytes if isinstance(value, torch.Tensor) else tensor_bytes(value)


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
    for _ in steps:
        pass
    return time.perf_counter() - began
