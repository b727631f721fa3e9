"""Show the progress of long work on a log: rows done, rows a second, time left. Each line suits a log file as well."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
Show = Callable[[str], None]


class Stage:
    """One pass over a log, made by `Progress.stage`."""

    def __init__(self, name: str, total: int | None, show: Show, interval: float) -> None:
        self.name = name
        self.total = total
        self.rows = 0
        self._show = show
        self._interval = interval
        self._began = self._shown = time.monotonic()

    def advance(self, rows: int) -> None:
        """Count `rows` more as done, and show a line if the last one is `interval` seconds old."""
        self.rows += rows
        now = time.monotonic()
        if now - self._shown >= self._interval and self.rows:
            self._shown = now
            self._show(self._line(now - self._began))

    def end(self) -> None:
        """Show the number of rows and the time that they took."""
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
    """Shows one stage after the other.

    Args:
        show: Takes each line; None shows nothing.
        interval: Seconds between the lines of a stage.

    Example:
        >>> progress = Progress(lambda line: print(line.split(",")[0]))
        >>> for part in progress.track("adding up", [[1, 2], [3]]):
        ...     print(sum(part))
        adding up ...
        3
        3
        adding up: 3 rows
    """

    def __init__(self, show: Show | None = None, interval: float = 5.0) -> None:
        self._show = show or (lambda _: None)
        self._interval = interval

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Stage]:
        """Announce a stage, and sum it up if the block ends without an error."""
        self._show(f"{name} ...")
        stage = Stage(name, total, self._show, self._interval)
        yield stage
        stage.end()

    def track(
        self, name: str, parts: Iterable[T], rows: Callable[[Any], int] = len, total: int | None = None
    ) -> Iterator[T]:
        """Yield the parts of a log, as one stage that advances with each.

        Args:
            name: Name of the stage.
            parts: The parts.
            rows: Returns the number of rows of a part.
            total: Number of rows of all parts, which may be an estimate; None if unknown.
        """
        with self.stage(name, total) as stage:
            for part in parts:
                yield part
                stage.advance(rows(part))

    def note(self, text: str) -> None:
        """Show a line that belongs to no stage, such as the number of rows left out."""
        self._show(text)


def print_line(line: str) -> None:
    """Print one line of progress at once, even if the output goes to a file."""
    print(line, flush=True)


def _rate(rows: int, seconds: float) -> int:
    return round(rows / max(seconds, 1e-3))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if seconds >= 90 else f"{seconds:.0f} s"
