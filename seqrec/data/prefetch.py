"""Batches that are made and copied to a GPU while it computes the step before."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from seqrec.types import SequenceBatch

# Batches on the device that no step has asked for yet.
AHEAD = 2

Moved = tuple[SequenceBatch, torch.cuda.Event | None] | None
Key = TypeVar("Key")


class PrefetchedBatches(Iterator[SequenceBatch]):
    """An iterator's batches on a device, in the same order, made and copied ahead by one thread.

    Nothing is read before the first batch is asked for. An error of the iterator is raised instead of its batch. Copies
    to a GPU run on a stream of their own, and the stream that asks for a batch waits for its copy.

    Args:
        batches: Batches in memory, page-locked for copies that do not stop the thread.
        device: Where the batches are used.
    """

    def __init__(self, batches: Iterator[SequenceBatch], device: torch.device) -> None:
        self._batches = batches
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._coming: deque[Future[Moved]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        # The thread ends with the epoch, also if the epoch is left early.
        weakref.finalize(self, self._thread.shutdown, wait=False, cancel_futures=True)

    def close(self) -> None:
        """Stop reading, after the batch that is being read."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def __next__(self) -> SequenceBatch:
        while len(self._coming) <= AHEAD:
            self._coming.append(self._thread.submit(_moved, self._batches, self._device, self._stream))
        found = self._coming.popleft().result()
        if found is None:
            raise StopIteration
        batch, copied = found
        if copied is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(copied)
            for tensor in batch.tensors():
                tensor.record_stream(current)
        return batch


def prefetched(
    batches: Iterable[tuple[Key, SequenceBatch]], device: torch.device
) -> Iterator[tuple[Key, SequenceBatch]]:
    """Yield pairs with their batches on a device, in the same order, made and copied ahead as `PrefetchedBatches` does.

    For a GPU, batches are copied into page-locked memory first.

    Args:
        batches: Pairs of anything and a batch in memory.
        device: Where the batches are used.
    """
    keys: deque[Key] = deque()

    def locked() -> Iterator[SequenceBatch]:
        for key, batch in batches:
            keys.append(key)
            yield batch.pin_memory() if device.type == "cuda" else batch

    ahead = PrefetchedBatches(locked(), device)
    try:
        for batch in ahead:
            yield keys.popleft(), batch
    finally:
        ahead.close()


def _moved(batches: Iterator[SequenceBatch], device: torch.device, stream: torch.cuda.Stream | None) -> Moved:
    """Return the next batch on the device and the event of its copy; None after the last one."""
    batch = next(batches, None)
    if batch is None or stream is None:
        return None if batch is None else (batch.to(device), None)
    with torch.cuda.stream(stream):
        return batch.to(device), stream.record_event()
