"""What long work on a log tells people while it runs: rows done, rows per second, time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Show = Callable[[str], None]


class Stage:
    """One pass over a log, from `Progress.stage`.

    Args:
        name: What is being done.
        total: Rows that the pass will see; an estimate where they are not counted yet, None where nobody knows.
        show: Takes each line.
        interval: Seconds between lines.
    """

    def __init__(self, name: str, total: int | None, show: Show, interval: float) -> None:
        self.name = name
        self.total = total
        self.rows = 0
        self._show = show
        self._interval = interval
        self._began = self._shown = time.monotonic()

    def advance(self, rows: int) -> None:
        """Count `rows` more as done; says so when the last line is `interval` seconds old."""
        self.rows += rows
        now = time.monotonic()
        if now - self._shown >= self._interval and self.rows:
            self._shown = now
            self._show(self._line(now - self._began))

    def end(self) -> None:
        """Say what was done, and in what time."""
        seconds = time.monotonic() - self._began
        self._show(f"{self.name}: {self.rows:,} rows, {seconds:.1f} s, {_rate(self.rows, seconds):,} rows/s")

    def _line(self, seconds: float) -> str:
        rate = _rate(self.rows, seconds)
        line = f"{self.name}: {self.rows:,} rows, {rate:,} rows/s"
        if self.total is None or self.total <= self.rows:
            return line
        left = (self.total - self.rows) / max(rate, 1)
        return f"{line}, {self.rows / self.total:.0%}, about {_duration(left)} left"


class Progress:
    """Tells stage after stage.

    Args:
        show: Takes each line; None says nothing.
        interval: Seconds between the lines of a stage.
    """

    def __init__(self, show: Show | None = None, interval: float = 5.0) -> None:
        self._show = show or _silent
        self._interval = interval

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Stage]:
        """Announce a stage, and sum it up when the block ends without an error."""
        self._show(f"{name} ...")
        stage = Stage(name, total, self._show, self._interval)
        yield stage
        stage.end()

    def note(self, text: str) -> None:
        """Say something that is no stage, such as rows left out."""
        self._show(text)


def print_line(line: str) -> None:
    """Show one line of progress at once, also where nobody sits at a terminal."""
    print(line, flush=True)


def _rate(rows: int, seconds: float) -> int:
    return round(rows / max(seconds, 1e-3))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if seconds >= 90 else f"{seconds:.0f} s"


def _silent(_: str) -> None:
    pass
