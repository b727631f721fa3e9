"""Whether the model and the sessions answer, and how much is kept of sessions, without waiting for either."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from seqrec.errors import InputError
from seqrec.inference.sessions import StoreSizes
from seqrec.serving.answers import RefusedError
from seqrec.serving.batcher import Batcher
from seqrec.serving.work import Count, Probe

# Longest wait for a count; the last one is taken then.
COUNT_SECONDS = 0.05


class Health:
    """Asks the model's threads, at most one question of a kind at a time, and waits `ready_seconds` for an answer."""

    def __init__(self, sessions: Batcher, histories: Batcher, *, ready_seconds: float) -> None:
        self._sessions, self._histories = sessions, histories
        self._ready_seconds = ready_seconds
        self._probe: asyncio.Future[Any] | None = None
        self._count: asyncio.Future[Any] | None = None
        self._sizes = StoreSizes(0)

    async def check_ready(self) -> None:
        """Raise a `RefusedError` if a thread does not answer in time, or the sessions cannot be read.

        Its reason has no details, as clients need no token to ask.
        """
        if self._probe is None or self._probe.done():
            probes = self._sessions.submit(Probe()), self._histories.submit(Probe())
            self._probe = asyncio.gather(*probes, return_exceptions=True)
        # Another request may ask anew before this one continues.
        probe = self._probe
        await asyncio.wait([probe], timeout=self._ready_seconds)
        if not probe.done():
            raise RefusedError(503, f"the model has not answered for {self._ready_seconds:g} s", {"Retry-After": "1"})
        if any(isinstance(outcome, BaseException) for outcome in probe.result()):
            raise RefusedError(503, "the sessions cannot be read; see the server's log", {"Retry-After": "1"})

    async def sizes(self) -> StoreSizes:
        """Return how much the store of sessions keeps as last counted; a count may still be under way."""
        if self._count is None or self._count.done():
            self._count = asyncio.ensure_future(self._counted())
        await asyncio.wait([self._count], timeout=COUNT_SECONDS)
        return self._sizes

    async def _counted(self) -> None:
        # `check_ready` reports errors.
        with contextlib.suppress(InputError):
            self._sizes = await self._sessions.submit(Count())
