"""Show the progress of long work: rows or users done, how many a second, time left. Each line suits a log file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
Show = Callable[[str], None]


class Progress:
    """Shows one stage after the other, and its progress every `interval` seconds; without `show` it shows nothing.

    Example:
        >>> progress = Progress(lambda line: print(line.split(",")[0]))
        >>> for part in progress.track("adding up", [[1, 2], [3]]):
        ...     print(sum(part))
        adding up ...
        3
        3
        adding up: 3 rows
    """

    def __init__(self, show: Show | None = None, interval: float = 5.0, unit: str = "rows") -> None:
        self._show = show or (lambda _: None)
        self._interval = interval
        self._unit = unit

    def track(
        self, name: str, parts: Iterable[T], rows: Callable[[Any], int] = len, total: int | None = None
    ) -> Iterator[T]:
        """Yield the parts of some work, as one stage that advances with each and is summed up after the last.

        `rows` returns the number of rows, or of other units, of a part. `total` is that of all, which may be an
        estimate; None if unknown.
        """
        self._show(f"{name} ...")
        began = shown = time.monotonic()
        done = 0
        for part in parts:
            yield part
            done += rows(part)
            now = time.monotonic()
            if now - shown >= self._interval and done:
                shown = now
                self._show(self._line(name, done, total, now - began))
        seconds = time.monotonic() - began
        self._show(f"{name}: {done:,} {self._unit}, {seconds:.1f} s, {_rate(done, seconds):,} {self._unit}/s")

    def note(self, text: str) -> None:
        """Show a line that belongs to no stage, such as the number of rows left out."""
        self._show(text)

    def _line(self, name: str, done: int, total: int | None, seconds: float) -> str:
        rate = _rate(done, seconds)
        line = f"{name}: {done:,} {self._unit}, {rate:,} {self._unit}/s"
        if total is None or total <= done:
            return line
        return f"{line}, {done / total:.0%}, about {_duration((total - done) / max(rate, 1))} left"


def print_line(line: str) -> None:
    """Print one line of progress at once, even if the output goes to a file."""
    print(line, flush=True)


def _rate(rows: int, seconds: float) -> int:
    return round(rows / max(seconds, 1e-3))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if seconds >= 90 else f"{seconds:.0f} s"
