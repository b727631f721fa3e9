"""Describe an event store: lengths, skew, times, files, settings and integrity, as a report and as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec.data.manifest import REMEDY
from seqrec.data.pieces import ends_of, pieces_of
from seqrec.data.progress import Progress
from seqrec.data.store import EventStore
from seqrec.errors import StoreError

# Events to read at a time, which bounds the memory.
CHUNK_EVENTS = 1 << 20
# Units of times since 1970, in ticks a second.
_UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
# In the right unit a time since 1970 lies between 1990 and 2100.
_EARLIEST, _LATEST = 631_152_000, 4_102_444_800
# Characters of the longest bar.
_BAR = 40


@dataclass(frozen=True)
class Lengths:
    """Events a user: of the shortest history, mean, median, 95th percentile, interpolated, and of the longest.

    `histogram` has (least, most, users) of each bin. The bins are 1, 2, 4, ... events wide.
    """

    minimum: int
    mean: float
    median: float
    p95: float
    maximum: int
    histogram: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class ItemPopularity:
    """Skew of the events an item.

    Attributes:
        top_1_percent: Share of all events on the most popular 1 % of items, rounded up to whole items.
        top_10_percent: Share on the most popular 10 %.
        gini: Gini coefficient of events an item: 0 if all have equally many, near 1 if one has all.
        maximum: Events of the most popular item.
        once: Number of items with one event.
    """

    top_1_percent: float
    top_10_percent: float
    gini: float
    maximum: int
    once: int


@dataclass(frozen=True)
class Times:
    """First and last time, in the log's unit.

    Attributes:
        unit: Probable unit of the log's times since 1970, judged by the size of both; None if no unit fits.
        first_utc: `first` as a date in that unit; None without one.
        last_utc: `last` as a date.
    """

    first: int
    last: int
    unit: str | None
    first_utc: str | None
    last_utc: str | None


@dataclass(frozen=True)
class StoreReport:
    """Description of a store, in its folder; lengths, popularity and times are None if the store is damaged.

    Attributes:
        counts: Counts in the manifest, by name: users, items, events and others.
        damage: Damage that `verify` found; None if it found none or did not run.
        verified: Whether every file was hashed.
        lengths: Events a user.
        popularity: Events an item.
        times: First and last time; None if the log has none.
        columns: Type of the item ids and times, and kind, size and missing values of each further column, by name.
        files: Bytes of each file, by name.
        settings: The manifest's source, filters, schema, order and source files.
        malformed: The manifest's list of rows that were left out as malformed.
    """

    directory: str
    counts: dict[str, int | None]
    damage: str | None
    verified: bool
    lengths: Lengths | None
    popularity: ItemPopularity | None
    times: Times | None
    columns: dict[str, str]
    files: dict[str, int]
    settings: dict[str, Any]
    malformed: list[dict[str, Any]]


def describe(store: EventStore, *, verify: bool = True, progress: Progress | None = None) -> StoreReport:
    """Describe a store, from its manifest and one pass over its arrays.

    Memory is some 8 bytes a user and 8 an item, for any number of events.

    Args:
        store: The store.
        verify: Whether to hash every file, which takes as long as reading them. A damaged store is described by its
            manifest alone.
        progress: Shows how far the hashing is; None shows nothing.

    Raises:
        StoreError: if an item id is out of range, which `verify` would find.

    Example:
        >>> import tempfile
        >>> from seqrec import Filters, Synthetic, prepare
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = prepare(Synthetic(num_users=9, num_items=9, mean_events=6), Filters(), f"{folder}/store")
        ...     report = describe(store)
        ...     report.counts["users"], report.damage, report.lengths.minimum
        (9, None, 5)
    """
    damage = None
    if verify:
        try:
            store.verify(progress)
        except StoreError as error:
            damage = str(error)
    manifest, intact = store.manifest, damage is None
    columns = {"item_ids": str(store.item_ids.dtype)}
    if store.timestamps is not None:
        columns["timestamps"] = str(store.timestamps.dtype)
    return StoreReport(
        directory=str(store.directory),
        counts=manifest["counts"],
        damage=damage,
        verified=verify,
        lengths=_lengths(np.diff(store.offsets)) if intact else None,
        popularity=_popularity(_item_counts(store)) if intact else None,
        times=_times(store.timestamps) if intact and store.timestamps is not None else None,
        columns=columns | store.described_columns(),
        files={name: file["bytes"] for name, file in manifest["files"].items()},
        settings={
            name: manifest[name]
            for name in ("source", "filters", "schema", "order", "source_files")
            if name in manifest
        },
        malformed=manifest.get("malformed", []),
    )


def _item_counts(store: EventStore) -> NDArray[np.int64]:
    # (num_items,) events of each item.
    counts = np.zeros(store.num_items + 1, np.int64)
    for chunk in pieces_of(store.item_ids, CHUNK_EVENTS):
        if chunk.max() > store.num_items:
            raise StoreError(
                f"{store.directory / 'item_ids.npy'} is damaged: it has item id {chunk.max()}, "
                f"the store has {store.num_items} items; {REMEDY}"
            )
        # Unlike bincount, this costs nothing for items that are not in the chunk.
        np.add.at(counts, chunk.astype(np.intp), 1)
    return counts[1:]


def _lengths(lengths: NDArray[np.int64]) -> Lengths:
    median, p95 = np.percentile(lengths, [50, 95])
    # A length with k binary digits is in bin number k, counted from 1.
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


def _popularity(counts: NDArray[np.int64]) -> ItemPopularity:
    counts.sort()
    size, total = len(counts), int(counts.sum())
    ranked = sum(
        int(np.arange(begin + 1, begin + 1 + len(chunk)) @ chunk)
        for begin, chunk in zip(range(0, size, CHUNK_EVENTS), pieces_of(counts, CHUNK_EVENTS), strict=True)
    )
    return ItemPopularity(
        top_1_percent=_top_share(counts, 100),
        top_10_percent=_top_share(counts, 10),
        gini=2 * ranked / (size * total) - (size + 1) / size,
        maximum=int(counts[-1]),
        once=int(np.searchsorted(counts, 2) - np.searchsorted(counts, 1)),
    )


def _top_share(ascending: NDArray[np.int64], parts: int) -> float:
    # Share of the events on the last part, if the items are divided into `parts` equal parts.
    first = len(ascending) - -(-len(ascending) // parts)
    return int(ascending[first:].sum()) / int(ascending.sum())


def _times(timestamps: NDArray[np.int64]) -> Times:
    first, last = ends_of(pieces_of(timestamps, CHUNK_EVENTS))
    for unit, ticks in _UNITS.items():
        if _EARLIEST * ticks <= first and last <= _LATEST * ticks:
            return Times(first, last, unit, utc_text(first, ticks), utc_text(last, ticks))
    return Times(first, last, None, None, None)


def utc_text(time: int, ticks: int) -> str:
    """Return a time, in units of which so many are a second, as a date and time in UTC.

    Raises:
        OverflowError: if it is outside the years 1 to 9999.
    """
    moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=time // ticks)
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def report_text(report: StoreReport) -> str:
    """Return a report as text: counts, lengths with a bar a bin, skew, times, files, settings, integrity."""
    sections = [
        ("events a user", _length_lines(report.lengths) if report.lengths else []),
        ("popularity", _popularity_lines(report.popularity, report.counts) if report.popularity else []),
        ("time", _time_lines(report.times) if report.times else []),
        ("left out as malformed", _malformed_lines(report.malformed)),
        ("columns", _table(report.columns.items())),
        ("bytes on disk", _file_lines(report.files)),
        ("settings", list(_setting_lines(report.settings))),
        ("integrity", [_integrity(report)]),
    ]
    parts = ["\n".join([report.directory, *_count_lines(report.counts)])]
    parts += ["\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in sections if lines]
    return "\n\n".join(parts)


def _table(rows: Iterable[Sequence[str]], align: Sequence[str] = ("left", "left")) -> list[str]:
    # Lines of an aligned table without header. The text of the cells stays unchanged.
    from tabulate import tabulate  # a server takes times as text from this module, and no table

    text = tabulate(list(rows), tablefmt="plain", colalign=align, disable_numparse=True)
    return [line.rstrip() for line in text.splitlines()]


def _count_lines(counts: dict[str, int | None]) -> list[str]:
    ordered = {name: counts[name] for name in ("users", "items", "events")} | counts
    shown = {name: "not counted" if count is None else f"{count:,}" for name, count in ordered.items()}
    return _table((name.replace("_", " "), count) for name, count in shown.items())


def _length_lines(lengths: Lengths) -> list[str]:
    most = max(users for *_, users in lengths.histogram)
    rows = [
        (
            f"{low:,}" if low == high else f"{low:,} - {high:,}",
            f"{users:,} users",
            # A bin with any user has a bar.
            "#" * -(-users * _BAR // most),
        )
        for low, high, users in lengths.histogram
    ]
    return [
        f"mean {lengths.mean:,.1f}, median {lengths.median:,.0f}, p95 {lengths.p95:,.0f}, "
        f"min {lengths.minimum:,}, max {lengths.maximum:,}",
        *_table(rows, ("right", "right", "left")),
    ]


def _popularity_lines(popularity: ItemPopularity, counts: dict[str, int | None]) -> list[str]:
    items = counts["items"]
    assert items is not None
    return [
        f"top 1% of items: {popularity.top_1_percent:.1%} of events, top 10%: {popularity.top_10_percent:.1%}",
        f"Gini coefficient {popularity.gini:.3f} (0: all alike, 1: one item has all)",
        f"most popular item: {popularity.maximum:,} events; "
        f"{popularity.once:,} items ({popularity.once / items:.1%}) have one event",
    ]


def _time_lines(times: Times) -> list[str]:
    if times.unit is None:
        note = "neither seconds, milli-, micro- nor nanoseconds since 1970, by their size"
    else:
        note = f"{times.first_utc} to {times.last_utc} UTC, if these are {times.unit} since 1970 (inferred)"
    return [f"{times.first} to {times.last}", note]


def _malformed_lines(malformed: list[dict[str, Any]]) -> list[str]:
    return [
        f"{entry['file']}: {entry['count']:,} of {entry['rows']:,} rows ({'; '.join(entry['places'])}"
        f"{'; ...' if entry['count'] > len(entry['places']) else ''})"
        for entry in malformed
    ]


def _file_lines(files: dict[str, int]) -> list[str]:
    sizes = files | {"all": sum(files.values())}
    return _table(((name, f"{size:,}") for name, size in sizes.items()), ("left", "right"))


def _setting_lines(settings: dict[str, Any]) -> Iterator[str]:
    for name, value in settings.items():
        if name == "source":
            yield f"source: {value['name']}"
            yield from (f"  {argument}: {_plain(given)}" for argument, given in value["arguments"].items())
        elif name in ("filters", "schema"):
            yield f"{name}:"
            yield from (f"  {argument}: {_plain(given)}" for argument, given in value.items())
        elif name == "source_files":
            yield "source files:"
            yield from (f"  {file['name']}  {file['bytes']:,} bytes" for file in value)
        else:
            yield f"{name}: {_plain(value)}"


def _integrity(report: StoreReport) -> str:
    if report.damage is not None:
        return f"DAMAGED: {report.damage}"
    return "intact: every file has its SHA-256" if report.verified else "not checked"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
