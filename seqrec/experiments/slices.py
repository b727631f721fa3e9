"""The plan of a backtest: its settings, and the times at which its slices begin."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from seqrec.data.splits import in_units, units_a_second
from seqrec.errors import InputError, check_at_least
from seqrec.runs.config_files import find_config

# Times up to it are real numbers without a loss, as splits take them.
MOST_TIME = 1 << 53
_SECONDS = {"h": 3_600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True)
class Plan:
    """The settings of a backtest that decide its numbers.

    Attributes:
        configs: Configs of `seqrec fit`, files or names. Their split, budget and filters that count events are
            replaced, and nothing is chosen by the size of the log.
        set: Settings as arguments of `seqrec fit` without dashes, each such as data.source.path=ml-1m.zip.
        slices: Number of slices with equally many events. The first model is trained on the first one.
        every: Length of a slice instead, such as 1d, 12h or 2w.
        start: With `every`, begin of the first slice that is judged: a date, or a time in the log's unit.
        end: End of the last slice, likewise; None is the end of the log.
        updates: Updates of a training from fresh weights on the whole log, at least 1. A part of the log gets as many
            as its share of the events.
        share: Length of a warm start as a fraction of the updates of a training from fresh weights on the same events,
            above 0 and at most 1.
        replay: Share of windows without new events that a warm start is trained on; None trains on all events.
        retrain: Whether to train a second model from fresh weights before each slice, to compare with.
        judged_users: Most users of a slice that are judged, a sample; None judges all.
        seed: Seed of weights, order and sample.

    Raises:
        InputError: if settings contradict each other, or one is out of range.

    Example:
        >>> Plan(["ml_1m"], slices=4).bounds(np.arange(100))
        [25, 50, 75, 100]
    """

    configs: list[str]
    set: list[str] = field(default_factory=list)
    slices: int | None = None
    every: str | None = None
    start: str | None = None
    end: str | None = None
    updates: int = 2000
    share: float = 0.25
    replay: float | None = 0.5
    retrain: bool = False
    judged_users: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.slices is None) == (self.every is None):
            raise InputError("give either slices, such as 10, or every, such as 1d, with start")
        if self.slices is not None and (self.start, self.end) != (None, None):
            raise InputError("start and end belong to every; slices divide the whole log")
        if self.every is not None and self.start is None:
            raise InputError(f"every={self.every} needs start: the first model is trained on the events before it")
        check_at_least(1, updates=self.updates)
        if self.slices is not None:
            check_at_least(2, slices=self.slices)
        if self.judged_users is not None:
            check_at_least(1, judged_users=self.judged_users)
        if self.replay is not None and not 0 <= self.replay < 1:
            raise InputError(f"replay={self.replay} must be at least 0 and below 1; null trains on all events")
        if not 0 < self.share <= 1:
            raise InputError(f"share={self.share} must be above 0 and at most 1")

    def record(self) -> dict[str, Any]:
        """Return all settings as plain values, with the content of the configs."""
        texts = [find_config(name).read_text(encoding="utf-8") for name in self.configs]
        return {**json.loads(json.dumps(asdict(self))), "configs": [yaml.safe_load(text) for text in texts]}

    def words(self) -> str:
        """Return the command, without folders."""
        unset = {name for name, x in asdict(self).items() if x is None and name != "replay"}
        given = {name: x for name, x in asdict(self).items() if name not in {"configs", "set", *unset}}
        words = ["seqrec backtest", *(Path(name).name for name in self.configs)]
        words += [f"--{name} {shlex.quote(_word(value))}" for name, value in given.items()]
        pairs = [word.partition("=") for word in self.set]
        named = [f"{key}={Path(value).name if key.endswith('path') else value}" for key, _, value in pairs]
        return " ".join([*words, *(["--set", *map(shlex.quote, named)] if named else [])])

    def bounds(self, times: NDArray[np.int64]) -> list[int]:
        """Return the times at which the judged slices begin, and at last the end of the last one.

        `times` are those of all events, ascending. The first model is trained on the events before the first slice.

        Raises:
            InputError: if no event is before the first slice, the slices do not fit into the log, or its times are so
            large that real numbers round them, as those in nanoseconds are.
        """
        first, last = int(times[0]), int(times[-1])
        if last > MOST_TIME:
            raise InputError(f"the log's last time, {last}, has too many digits: give the log's times in milliseconds")
        if self.slices is not None:
            found = [*times[np.arange(1, self.slices) * len(times) // self.slices].tolist(), last + 1]
            if len({first, *found}) <= len(found):
                distinct = len(np.unique(times))
                raise InputError(f"slices={self.slices} are too many for {distinct:,} different times; give fewer")
            return found
        assert self.every is not None
        begin, end = (_time(name, value, last) for name, value in (("start", self.start), ("end", self.end)))
        step = _seconds(self.every) * units_a_second(last)
        if end <= begin:
            raise InputError(f"start={self.start} must lie before end={self.end}")
        if not first < begin <= last:
            raise InputError(f"start={self.start} must lie after the log's first time, {first:,}, up to {last:,}")
        end = min(end, last + 1)
        if step > end - begin:
            raise InputError(f"every={self.every} is longer than the time from start={self.start} to the end")
        return [*range(begin, end, step), end]


def _word(value: Any) -> str:
    """Return a value as the command line takes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _seconds(every: str) -> int:
    """Return the seconds of a text such as 1d."""
    number, unit = every[:-1], every[-1:]
    if not number.isdecimal() or unit not in _SECONDS or int(number) == 0:
        raise InputError(f"every={every!r} must be a number and a unit, one of {', '.join(_SECONDS)}, such as 1d")
    return int(number) * _SECONDS[unit]


def _time(name: str, value: str | None, last: int) -> int:
    """Return a time of the command line in the unit of a log with this last time; None is after it."""
    if value is None:
        return last + 1
    try:
        return math.ceil(float(value))
    except (ValueError, OverflowError):
        return math.ceil(in_units(value, last, name))
