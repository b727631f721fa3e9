"""Seconds of a run by what it was doing."""

from __future__ import annotations

import time
from collections.abc import Callable


class PhaseClock:
    """Adds up seconds by phase; a phase that starts within another stops the outer one's clock until it ends.

    Attributes:
        synchronise: Waits for the device; called when a phase starts or ends, and when seconds are read.
    """

    def __init__(self) -> None:
        self.synchronise: Callable[[], None] | None = None
        self._seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase, those of open phases up to now."""
        self._settle()
        return dict(self._seconds)

    def add(self, phase: str, seconds: float) -> None:
        """Count seconds that were measured elsewhere."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def start(self, phase: str) -> None:
        """Start a phase."""
        self._settle()
        self._open.append(phase)

    def stop(self, phase: str) -> None:
        """End a phase and those that were left open within it; nothing where it is not open."""
        if phase in self._open:
            self._settle()
            del self._open[self._open.index(phase) :]

    def stop_all(self) -> None:
        """End all phases, without asking the device, which may have failed."""
        self.synchronise = None
        self._settle()
        self._open.clear()

    def restore(self, seconds: dict[str, float]) -> None:
        """Go on from seconds of before."""
        self._settle()
        self._seconds = dict(seconds)

    def _settle(self) -> None:
        if self._open and self.synchronise is not None:
            self.synchronise()
        now = time.perf_counter()
        if self._open:
            self.add(self._open[-1], now - self._since)
        self._since = now
