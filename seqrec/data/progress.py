"""Show the progress of long work: rows or users done, how many a second, time left."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
Show = Callable[[str], None]
# Seconds between two lines of a stage: on a terminal, elsewhere, and for a function of the caller.
ON_TERMINAL, ELSEWHERE, OF_CALLER = 0.5, 60.0, 5.0


class Status:
    """Shows lines of progress on standard error, where they are never among results.

    On a terminal a line of progress replaces the one before. Elsewhere, and if the environment variable `CI` is set, a
    stage shows at most one line a minute, and one at its end.
    """

    def __init__(self) -> None:
        # Whether the terminal shows a line that the next one replaces.
        self._is_open = False

    @property
    def is_live(self) -> bool:
        """Whether people watch: standard error is a terminal, and `CI` is not set."""
        is_quiet = os.environ.get("CI", "").lower() not in ("", "0", "false")
        return sys.stderr is not None and sys.stderr.isatty() and not is_quiet

    @property
    def interval(self) -> float:
        """Seconds between two lines of a stage."""
        return ON_TERMINAL if self.is_live else ELSEWHERE

    def __call__(self, line: str) -> None:
        """Show a line that stays."""
        self.clear()
        print(line, file=sys.stderr, flush=True)

    def overwrite(self, line: str) -> None:
        """Show a line that the next one replaces on a terminal."""
        if not self.is_live:
            self(line)
            return
        # A line that wraps could not be replaced.
        sys.stderr.write(f"\r{line[: shutil.get_terminal_size().columns - 1]}\x1b[K")
        sys.stderr.flush()
        self._is_open = True

    def clear(self) -> None:
        """Remove a line that was to be replaced."""
        if self._is_open:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._is_open = False


# The progress of commands.
STATUS = Status()


class _Caller:
    """A function of the caller, which is called with every line."""

    interval, is_live = OF_CALLER, True

    def __init__(self, show: Show) -> None:
        self._show = show

    def __call__(self, line: str) -> None:
        self._show(line)

    overwrite = __call__


class Progress:
    """Shows one stage after the other, and its progress every `interval` seconds; without `show` it shows nothing.

    Without an `interval`, a function of the caller is called every 5 seconds, and `STATUS` as the terminal allows.

    Example:
        >>> progress = Progress(lambda line: print(line.split(",")[0]))
        >>> for part in progress.track("adding up", [[1, 2], [3]]):
        ...     print(sum(part))
        adding up ...
        3
        3
        adding up: 3 rows
    """

    def __init__(self, show: Show | None = None, interval: float | None = None, unit: str = "rows") -> None:
        self.show = show if isinstance(show, Status) else _Caller(show or (lambda _: None))
        self.unit = unit
        self._interval = interval
        self._shown = time.monotonic()

    def __reduce__(self) -> tuple[type[Progress], tuple[()]]:
        """Pickle a copy that shows nothing: other processes leave that to this one."""
        return Progress, ()

    @property
    def interval(self) -> float:
        """Seconds between two lines of a stage."""
        return self.show.interval if self._interval is None else self._interval

    def stage(self, name: str, total: float | None = None, *, done: int = 0, unit: str | None = None) -> Stage:
        """Start a stage; see `Stage`."""
        return Stage(self, name, total, done, unit or self.unit)

    def track(
        self,
        name: str,
        parts: Iterable[T],
        rows: Callable[[Any], int] = len,
        total: float | None = None,
        *,
        done: int = 0,
        unit: str | None = None,
    ) -> Iterator[T]:
        """Yield the parts of some work, as one stage that advances with each and is summed up after the last.

        `rows` returns the number of rows, or of other units, of a part. `total` is that of all, which may be an
        estimate; None if unknown. `done` is as for `Stage`.
        """
        stage = self.stage(name, total, done=done, unit=unit)
        for part in parts:
            yield part
            stage.advance(rows(part))
        stage.end()

    def each(self, name: str, parts: Collection[T], unit: str) -> Iterator[T]:
        """Yield the parts of some work, as one stage that counts them."""
        return self.track(name, parts, lambda _: 1, len(parts), unit=unit)

    def note(self, text: str) -> None:
        """Show a line that belongs to no stage, such as the number of rows left out."""
        self.show(text)

    def update(self, text: str) -> None:
        """Show a line that the next one may replace, if the interval has passed; the others are left out."""
        if time.monotonic() - self._shown >= self.interval:
            self._shown = time.monotonic()
            self.overwrite(text)

    def overwrite(self, text: str) -> None:
        """Show a line that the next one may replace."""
        self.show.overwrite(text)


class Stage:
    """One kind of work: how much is done, at which rate, and how long the rest will take.

    Args:
        progress: Shows its lines.
        name: What is done.
        total: Units of all work, also an attribute; None if unknown.
        done: Units that were done before, which do not count for the rate.
        unit: Name of the units.

    Example:
        >>> stage = Progress(print, interval=0).stage("counting", 4, unit="users")
        counting ...
        >>> stage.advance(1)  # doctest: +ELLIPSIS
        counting: 1 users, ... users/s, 25%, about 0 s left
    """

    def __init__(self, progress: Progress, name: str, total: float | None, done: int, unit: str) -> None:
        self._progress, self._name, self.total, self._unit = progress, name, total, unit
        self._before = self._done = done
        self._began = self._shown = self._advanced = time.monotonic()
        if progress.show.is_live:
            progress.overwrite(f"{name} ...")

    def advance(self, count: int, about: str = "") -> None:
        """Count units, and show the state, with further words about it, if the interval has passed."""
        self._count(count)
        self.refresh(about)

    def complete(self, count: int, about: str = "") -> None:
        """Count units that took long, and show the state with words about them in a line that stays on a terminal.

        Elsewhere the line is shown if the interval has passed, as with `advance`.
        """
        if self._progress.show.is_live:
            self._count(count)
            self._progress.show(self._line(about))
        else:
            self.advance(count, about)

    def advance_to(self, done: int, about: str = "") -> None:
        """Set the number of units that are done, and show the state as `advance` does."""
        self.advance(done - self._done, about)

    def refresh(self, about: str = "") -> None:
        """Show the state, if the interval has passed and there is anything to show."""
        if self.is_due and (about or self._done > self._before):
            self._shown = time.monotonic()
            self._progress.overwrite(self._line(about))

    @property
    def is_due(self) -> bool:
        """Whether the interval has passed since the last line."""
        return time.monotonic() - self._shown >= self._progress.interval

    def state(self) -> str:
        """Return how much is done, the rate, and if the total is known, the share and the time left.

        The rate is that of the units that are done. The time since then belongs to the next one.
        """
        done, seconds = self._done, self._advanced - self._began
        new = done - self._before
        line = f"{self._name}: {done:,} {self._unit}"
        if new:
            line += f", {_rate(new, seconds, self._unit)}"
        if self.total is None or not done < self.total < float("inf"):
            return line
        line += f", {done / self.total:.0%}"
        if not new:
            return line
        left, each = self.total - done, seconds / new
        waited = time.monotonic() - self._advanced
        return f"{line}, about {duration(max(left * each - waited, (left - 1) * each, 0))} left"

    def end(self) -> None:
        """Show what was done, and the rate."""
        seconds, new = time.monotonic() - self._began, self._done - self._before
        rate = _rate(new, seconds, self._unit)
        self._progress.show(f"{self._name}: {self._done:,} {self._unit}, {seconds:.1f} s, {rate}")

    def _count(self, count: int) -> None:
        if count:
            self._done += count
            self._advanced = time.monotonic()

    def _line(self, about: str) -> str:
        return ", ".join(filter(None, [self.state(), about]))


def print_line(line: str) -> None:
    """Print one line of a result, or a note, at once, even if the output goes to a file."""
    STATUS.clear()
    print(line, flush=True)


def _rate(count: int, seconds: float, unit: str) -> str:
    rate = count / max(seconds, 1e-3)
    if 0 < rate < 1:
        return f"{1 / rate:,.0f} s each"
    return f"{rate:,.0f} {unit}/s" if rate >= 100 else f"{rate:.3g} {unit}/s"


def duration(seconds: float) -> str:
    """Return a time for people.

    Example:
        >>> duration(80), duration(600), duration(9000)
        ('80 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{round(seconds / 60)} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
