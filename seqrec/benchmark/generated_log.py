"""Generated logs with the size and skew of published ones, as CSV files in global time order.

Letters: V items that can be drawn, s exponent of the popularity.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import polars
from numpy.typing import NDArray

from seqrec.data.progress import Progress
from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID
from seqrec.errors import InputError, check_at_least
from seqrec.files import move

MIN_EVENTS = 1000
BLOCK_EVENTS = 1 << 20
BLOCKS_IN_FILE = 48
DESCRIPTION = "generated.json"
# Increased whenever the same arguments give other bytes, to distinguish an older log from a new one.
VERSION = 1
_THOUSANDS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_CLICK_SHARE = 0.4
# A prime above every catalogue size: multiplying by it modulo V is one-to-one.
_SCATTER = 2_654_435_761


@dataclass(frozen=True)
class Profile:
    """Shape of a log. Every event is drawn independently, whatever the number of events:

    - its user, in proportion to a log-normal weight of each user. Histories therefore interleave all through the log,
      and their lengths are log-normal apart from chance;
    - its item: the probability of the k-th most popular of V items is proportional to the integral of x ** -s
      from k to k + 1. V makes the expected number of distinct items `events / events_per_item`;
    - its time, uniform within `span`; rows are in the order of time.

    Numbers of events, users and items and the span are the published ones. The laws are a model: `sigma` is near
    that of an excerpt of KuaiRand (mean / median 1.4, p95 / median 4.0), and with s = 0.9 the most popular 1 % of
    the items get about half of the events.

    Attributes:
        name: Name of the log on the command line and in file names.
        mean_events: Mean events a user.
        events_per_item: Events divided by distinct items.
        sigma: Standard deviation of the logarithm of users' weights.
        exponent: s, above 0 and below 1.
        start: First time, in ticks since 1970 UTC.
        span: Ticks between the first time and the end.
    """

    name: str
    mean_events: float
    events_per_item: float
    sigma: float
    exponent: float
    start: int
    span: int

    def num_users(self, events: int) -> int:
        """Return the number of users of `events`."""
        return max(2, round(events / self.mean_events))

    def catalogue(self, events: int) -> int:
        """Return the V for which `events` draws have `events / events_per_item` distinct items on average."""
        wanted = events / self.events_per_item
        low = high = max(2, math.ceil(wanted))
        while self._expected_distinct(high, events) < wanted:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            if self._expected_distinct(middle, events) < wanted:
                low = middle
            else:
                high = middle
        return high

    def _expected_distinct(self, num_items: int, events: int) -> float:
        # Ranks in 4,000 groups, wider further down the list, with equal probability within a group.
        edges = np.geomspace(1, num_items + 1, 4001)
        power = 1 - self.exponent
        share = np.diff(edges**power) / (edges[-1] ** power - 1)
        ranks = np.diff(edges)
        return float((ranks * -np.expm1(-events * share / ranks)).sum())


# KuaiRand-27K (arXiv 2208.08696): 322,278,385 events, 27,285 users, 32,038,725 videos, 8 April to 8 May 2022,
# milliseconds. LFM-1b (doi 10.1007/s13735-017-0118-y): 1.09 billion events, 120,322 users, 31.6 million tracks,
# seconds, most of them from 2005 to 2014.
PROFILES = {
    "kuairand": Profile("kuairand", 11_811, 10.06, 0.9, 0.9, 1_649_347_200_000, 30 * 86_400_000),
    "lfm1b": Profile("lfm1b", 9_063, 34.5, 1.0, 0.9, 1_104_537_600, 3500 * 86_400),
}


def parse_events(text: str | int) -> int:
    """Return a number of events from text such as "300M", "250k" or "1.5M"; raise InputError for other text."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]?)", str(text).strip().upper())
    events = Fraction(found[1]) * _THOUSANDS[found[2]] if found else Fraction(0)
    if events < 1 or events.denominator != 1:
        raise InputError(f"events={text!r} must be a whole number above 0, such as 250000, 100M or 1.5M")
    return int(events)


def ensure_log(folder: Path, profile: Profile, events: int, *, seed: int = 0, progress: Progress | None = None) -> Path:
    """Write a generated log, unless it exists from the same arguments, and return its own folder in `folder`.

    The files `part-000.csv`, `part-001.csv`, ... of 50 million rows have the columns user_id, item_id, timestamp
    and is_click; ids are integers from 0. The same arguments give the same bytes. Memory is a few blocks of a
    million events, however long the log. The folder is named after the arguments, and appears when it is complete.

    Raises:
        InputError: if `events` or `seed` is too small, or the log's folder contains something else.
    """
    check_at_least(MIN_EVENTS, events=events)
    check_at_least(0, seed=seed)
    log = log_folder(folder, profile, events, seed)
    description = {"version": VERSION, "profile": asdict(profile), "events": events, "seed": seed}
    if log.exists():
        _check_same(log, description)
        return log
    partial = log.with_name(log.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write(partial, blocks(profile, events, seed), events, progress or Progress())
        files = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
        text = json.dumps({**description, "files": files}, indent=2)
        (partial / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
        move(partial, log)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return log


def log_folder(folder: Path, profile: Profile, events: int, seed: int) -> Path:
    """Return the folder of a log of these arguments."""
    return folder / f"{profile.name}-{events}-seed{seed}"


def log_bytes(profile: Profile, events: int) -> int:
    """Return an upper bound of the size of a log's CSV files, without their headers."""
    widest = (profile.num_users(events), profile.catalogue(events), profile.start + profile.span)
    # Three separators, the flag and the end of the line.
    return events * (sum(len(str(value)) for value in widest) + 5)


def ensure_day(log: Path, profile: Profile, events: int, rows: int, *, seed: int = 0) -> Path:
    """Write the rows of the day after a generated log into a folder of their own next to it, and return the folder."""
    day = log.with_name(f"{log.name}.day")
    shutil.rmtree(day, ignore_errors=True)
    day.mkdir()
    _write(day, blocks(profile, events, seed, day=rows), rows, Progress())
    return day


def blocks(profile: Profile, events: int, seed: int, *, day: int | None = None) -> Iterator[polars.DataFrame]:
    """Yield the log's rows, oldest first, a million at a time; or `day` rows of the thirtieth of its span that follows.

    The latter are of the same users and items, some of which do not occur before.
    """
    start, span, rows = profile.start, profile.span, events
    if day is not None:
        start, span, rows = start + span, span // 30, day
    weights = np.random.default_rng([seed, 0]).lognormal(0, profile.sigma, profile.num_users(events))
    cumulative = np.cumsum(weights)
    num_items = profile.catalogue(events)
    for number, first in enumerate(range(0, rows, BLOCK_EVENTS), start=1):
        size = min(BLOCK_EVENTS, rows - first)
        rng = np.random.default_rng([seed, number] if day is None else [seed, number, 1])
        users = np.searchsorted(cumulative, rng.random(size) * cumulative[-1], side="right")
        # Blocks hold equally many events, so they share the span in proportion.
        low, high = (start + span * edge // rows for edge in (first, first + size))
        yield polars.DataFrame(
            {
                USER_ID: np.minimum(users, len(cumulative) - 1),
                ITEM_ID: _items(rng, size, num_items, profile.exponent),
                TIMESTAMP: np.sort(rng.integers(low, max(high, low + 1), size)),
                "is_click": (rng.random(size) < _CLICK_SHARE).astype(np.int8),
            }
        )


def _items(rng: np.random.Generator, size: int, num_items: int, exponent: float) -> NDArray[np.int64]:
    # The rank is where the integral of x ** -s reaches a uniform share. A popular item may have any id.
    power = 1 - exponent
    top = (num_items + 1) ** power - 1
    ranks = (rng.random(size) * top + 1) ** (1 / power)
    ids: NDArray[np.int64] = np.minimum(ranks.astype(np.int64), num_items) * _SCATTER % num_items
    return ids


def _write(folder: Path, frames: Iterator[polars.DataFrame], events: int, progress: Progress) -> None:
    for number, frame in enumerate(progress.track(f"generating {events:,} events", frames, total=events)):
        part, block = divmod(number, BLOCKS_IN_FILE)
        with (folder / f"part-{part:03}.csv").open("ab") as file:
            frame.write_csv(file, include_header=block == 0)
            # Later reads must not share the disk with these bytes.
            file.flush()
            os.fsync(file.fileno())


def _check_same(log: Path, description: dict[str, Any]) -> None:
    try:
        found = json.loads((log / DESCRIPTION).read_text(encoding="utf-8"))
        sizes = {name: (log / name).stat().st_size for name in found["files"]}
        same = found == {**description, "files": sizes}
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        wrong = f"{log} exists and is no complete log of these arguments"
        raise InputError(f"{wrong}; delete it or choose another folder")
