"""What is in an event store: lengths, skew, times, files, settings, and whether the files are whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec.data.store import REMEDY, EventStore
from seqrec.errors import StoreError

# Read at a time, so that a billion events take no more memory than a few.
CHUNK_EVENTS = 1 << 20
# Ticks a second of the units that times since 1970 come in.
_UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
# A time is taken for one since 1970 if that puts it between 1990 and 2100.
_EARLIEST, _LATEST = 631_152_000, 4_102_444_800


@dataclass(frozen=True)
class Lengths:
    """Events a user. Percentiles lie between two users' lengths where they fall between two users.

    Attributes:
        minimum: Events of the shortest history.
        mean: Mean.
        median: Median.
        p95: 95th percentile.
        maximum: Events of the longest history.
        histogram: (least, most, users) of each bin; bins are as wide as 1, 2, 4, ... events.
    """

    minimum: int
    mean: float
    median: float
    p95: float
    maximum: int
    histogram: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Popularity:
    """How unevenly events fall on items.

    Attributes:
        top_1_percent: Share of all events that are on the most popular 1 % of items, rounded up to whole items.
        top_10_percent: Likewise of 10 %.
        gini: Gini coefficient of events an item: 0 where all have equally many, near 1 where one has all.
        maximum: Events of the most popular item.
        once: Items that have one event.
    """

    top_1_percent: float
    top_10_percent: float
    gini: float
    maximum: int
    once: int


@dataclass(frozen=True)
class Times:
    """First and last time.

    Attributes:
        first: The earliest, in the log's unit.
        last: The latest.
        unit: Unit that the log probably counts in since 1970, told from the size of both; None where it
            cannot be told.
        first_utc: `first` as a date, if `unit` is right; None without one.
        last_utc: Likewise.
    """

    first: int
    last: int
    unit: str | None
    first_utc: str | None
    last_utc: str | None


@dataclass(frozen=True)
class StoreReport:
    """All that `describe` tells of a store.

    Attributes:
        directory: Its folder.
        counts: By name, as the manifest has them: users, items, events and what else preparation counted.
        damage: What `verify` found wrong; None where nothing is, or nobody looked.
        verified: Whether every file was hashed.
        lengths: Events a user; None for a damaged store, whose numbers mean nothing, as those below.
        popularity: Events an item.
        times: First and last time; None also where the log has none.
        columns: Type of each array with one value an event, by name.
        files: Bytes of each file, by name.
        settings: The manifest's source, filters, order and source files.
        malformed: The manifest's account of rows that were left out; empty where there were none.
    """

    directory: str
    counts: dict[str, int | None]
    damage: str | None
    verified: bool
    lengths: Lengths | None
    popularity: Popularity | None
    times: Times | None
    columns: dict[str, str]
    files: dict[str, int]
    settings: dict[str, Any]
    malformed: list[dict[str, Any]]

    def as_json(self) -> str:
        """Return the report for programs; the attributes are the keys."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)


def describe(store: EventStore, *, verify: bool = True) -> StoreReport:
    """Return what a store holds, from its manifest and one pass over its arrays.

    Memory is some 8 bytes a user and 8 an item, whatever the number of events.

    Args:
        store: The store.
        verify: Whether every file is hashed, which takes as long as reading them. A store that is found
            damaged is described by its manifest alone.

    Raises:
        StoreError: an item id is out of range, which `verify` would have found.
    """
    damage = None
    if verify:
        try:
            store.verify()
        except StoreError as error:
            damage = str(error)
    manifest, intact = store.manifest, damage is None
    features = {f"feature {name}": column for name, column in sorted(store.features.items())}
    columns = {"item_ids": store.item_ids, "timestamps": store.timestamps, **features}
    return StoreReport(
        directory=str(store.directory),
        counts=manifest["counts"],
        damage=damage,
        verified=verify,
        lengths=_lengths(np.diff(store.offsets)) if intact else None,
        popularity=_popularity(_item_counts(store)) if intact else None,
        times=_times(store.timestamps) if intact and store.timestamps is not None else None,
        columns={name: str(column.dtype) for name, column in columns.items() if column is not None},
        files={name: file["bytes"] for name, file in manifest["files"].items()},
        settings={
            name: manifest[name]
            for name in ("source", "filters", "order", "source_files")
            if name in manifest
        },
        malformed=manifest.get("malformed", []),
    )


def _chunks(column: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for begin in range(0, len(column), CHUNK_EVENTS):
        yield np.asarray(column[begin : begin + CHUNK_EVENTS])


def _item_counts(store: EventStore) -> NDArray[np.int64]:
    # (num_items,) events of each item.
    counts = np.zeros(store.num_items + 1, np.int64)
    for chunk in _chunks(store.item_ids):
        if chunk.max() > store.num_items:
            raise StoreError(
                f"{store.directory / 'item_ids.npy'} is damaged: it has item id {chunk.max()}, "
                f"the store has {store.num_items} items; {REMEDY}"
            )
        # Unlike bincount, this costs nothing for the items that are not in the chunk.
        np.add.at(counts, chunk.astype(np.intp), 1)
    return counts[1:]


def _lengths(lengths: NDArray[np.int64]) -> Lengths:
    median, p95 = np.percentile(lengths, [50, 95])
    # The number of binary digits of a length is the number of its bin, counted from 1.
    users = np.bincount(np.frexp(lengths.astype(np.float64))[1])[1:]
    bins = [(1 << k, (2 << k) - 1, int(count)) for k, count in enumerate(users)]
    first = next(k for k, (_, _, count) in enumerate(bins) if count)
    return Lengths(
        minimum=int(lengths.min()),
        mean=float(lengths.mean()),
        median=float(median),
        p95=float(p95),
        maximum=int(lengths.max()),
        histogram=tuple(bins[first:]),
    )


def _popularity(counts: NDArray[np.int64]) -> Popularity:
    counts.sort()
    size, total = len(counts), int(counts.sum())
    ranked = sum(
        int(np.arange(begin + 1, begin + 1 + len(chunk)) @ chunk)
        for begin, chunk in zip(range(0, size, CHUNK_EVENTS), _chunks(counts), strict=True)
    )
    return Popularity(
        top_1_percent=_top_share(counts, 100),
        top_10_percent=_top_share(counts, 10),
        gini=2 * ranked / (size * total) - (size + 1) / size,
        maximum=int(counts[-1]),
        once=int(np.searchsorted(counts, 2) - np.searchsorted(counts, 1)),
    )


def _top_share(ascending: NDArray[np.int64], parts: int) -> float:
    # Share of the events on the last of so many equally large parts of the items.
    first = len(ascending) - -(-len(ascending) // parts)
    return int(ascending[first:].sum()) / int(ascending.sum())


def _times(timestamps: NDArray[np.int64]) -> Times:
    ends = [(int(chunk.min()), int(chunk.max())) for chunk in _chunks(timestamps)]
    first, last = min(low for low, _ in ends), max(high for _, high in ends)
    for unit, ticks in _UNITS.items():
        if _EARLIEST * ticks <= first and last <= _LATEST * ticks:
            return Times(first, last, unit, _utc(first, ticks), _utc(last, ticks))
    return Times(first, last, None, None, None)


def _utc(time: int, ticks: int) -> str:
    moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=time // ticks)
    return moment.strftime("%Y-%m-%d %H:%M:%S")
