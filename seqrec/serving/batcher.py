"""Batches of concurrent requests, which run one at a time in their own thread."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

# Places in a batch with their outcomes: a value, or the exception to answer with.
Outcomes = Sequence[tuple[int, Any]]


class Waiting(NamedTuple):
    """A piece of work, its size, and the future of its outcome."""

    work: Any
    size: int
    future: asyncio.Future[Any]


class Batcher:
    """Gathers work while the previous batch runs: batches grow with the load, and a single request is not delayed.

    If more is waiting than a batch may have, the batch takes the piece that came first, then small pieces before large
    ones. A client with many large pieces thus delays the small ones of others by one of its pieces at a time.

    Args:
        run: Does a batch of work in order of arrival, and yields outcomes as they are ready, each place once.
        max_batch: Most pieces of work per batch.
        size_of: Returns the size of a piece of work; None counts 1 for each.
        max_size: Most size of a batch, unless its first piece has more.
        wait_seconds: Longest time that work waits for more. It starts sooner if a turn of the event loop, which reads
            every request that has arrived, brings no more.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Any]], Iterable[Outcomes]],
        *,
        max_batch: int,
        wait_seconds: float,
        size_of: Callable[[Any], int] | None = None,
        max_size: float = math.inf,
    ) -> None:
        self.run = run
        self.max_batch = max_batch
        self.wait_seconds = wait_seconds
        self._size_of = size_of or (lambda work: 1)
        self._max_size = max_size
        self._waiting: list[Waiting] = []
        self._arrived = asyncio.Event()
        self._closing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="seqrec-model")
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start working, on the running event loop."""
        self._worker = asyncio.get_running_loop().create_task(self._work())

    async def submit(self, work: Any) -> Any:
        """Return the outcome of a piece of work; raises it if it is an exception."""
        assert self._worker is not None
        assert not self._closing
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(Waiting(work, self._size_of(work), future))
        self._arrived.set()
        return await future

    async def close(self) -> None:
        """Stop after all submitted work is done."""
        self._closing = True
        self._arrived.set()
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while not (self._closing and not self._waiting):
            await self._arrived.wait()
            await self._gather()
            batch = self._next_batch()
            if not self._waiting and not self._closing:
                self._arrived.clear()
            if batch:
                await loop.run_in_executor(self._thread, self._run, loop, batch)

    async def _gather(self) -> None:
        deadline, before = time.monotonic() + self.wait_seconds, 0
        while before < len(self._waiting) < self.max_batch and time.monotonic() < deadline:
            before = len(self._waiting)
            # One turn to read what has arrived, one for the tasks that this starts.
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    def _next_batch(self) -> list[Waiting]:
        """Take the next batch out of the waiting work, in order of arrival."""
        waiting = self._waiting
        chosen, size = [0], waiting[0].size if waiting else 0
        for place in sorted(range(1, len(waiting)), key=lambda place: waiting[place].size):
            size += waiting[place].size
            if len(chosen) == self.max_batch or size > self._max_size:
                break
            chosen.append(place)
        taken = set(chosen)
        self._waiting = [piece for place, piece in enumerate(waiting) if place not in taken]
        return [piece for place, piece in enumerate(waiting) if place in taken]

    def _run(self, loop: asyncio.AbstractEventLoop, batch: Sequence[Waiting]) -> None:
        """Run one batch, in the thread."""
        left = dict(enumerate(piece.future for piece in batch))
        try:
            for outcomes in self.run([piece.work for piece in batch]):
                loop.call_soon_threadsafe(_answer, [(left.pop(place), outcome) for place, outcome in outcomes])
        except Exception as error:
            loop.call_soon_threadsafe(_answer, [(future, error) for future in left.values()])


def _answer(outcomes: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, outcome in outcomes:
        if future.done():  # the request was cancelled
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
