"""A store's report for people to read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from seqrec.data.inspect import Lengths, Popularity, StoreReport, Times

_BAR = 40


def report_text(report: StoreReport) -> str:
    """Return a report as lines: counts, lengths with a bar a bin, skew, times, files, settings, integrity."""
    parts = [
        _section("", [report.directory, *_counts(report)]),
        _section("events a user", _lengths(report.lengths) if report.lengths else []),
        _section("popularity", _popularity(report.popularity, report.counts) if report.popularity else []),
        _section("time", _times(report.times) if report.times else []),
        _section("left out as malformed", _malformed(report.malformed)),
        _section("columns", [f"{name}  {kind}" for name, kind in _padded(report.columns)]),
        _section("bytes on disk", _files(report.files)),
        _section("settings", list(_settings(report.settings))),
        _section("integrity", [_integrity(report)]),
    ]
    return "\n\n".join(part for part in parts if part)


def _section(title: str, lines: list[str]) -> str:
    # Nothing where there are no lines; indented below the title where there is one.
    return "\n".join([title, *(f"  {line}" for line in lines)] if title and lines else lines)


def _counts(report: StoreReport) -> list[str]:
    known = {name: report.counts[name] for name in ("users", "items", "events")}
    told = {name.replace("_", " "): count for name, count in (known | report.counts).items()}
    return [f"{name}  {'not counted' if count is None else f'{count:,}'}" for name, count in _padded(told)]


def _lengths(lengths: Lengths) -> list[str]:
    labels = [f"{low:,}" if low == high else f"{low:,} - {high:,}" for low, high, _ in lengths.histogram]
    label_width = max(map(len, labels))
    count_width = max(len(f"{users:,}") for *_, users in lengths.histogram)
    most = max(users for *_, users in lengths.histogram)
    bars = [
        # Whoever is there shows, however few.
        f"{label:>{label_width}}  {users:>{count_width},} users  {'#' * -(-users * _BAR // most)}".rstrip()
        for label, (_, _, users) in zip(labels, lengths.histogram, strict=True)
    ]
    return [
        f"mean {lengths.mean:,.1f}, median {lengths.median:,.0f}, p95 {lengths.p95:,.0f}, "
        f"min {lengths.minimum:,}, max {lengths.maximum:,}",
        *bars,
    ]


def _popularity(popularity: Popularity, counts: dict[str, int | None]) -> list[str]:
    items = counts["items"]
    assert items is not None
    return [
        f"top 1% of items: {popularity.top_1_percent:.1%} of events, top 10%: {popularity.top_10_percent:.1%}",
        f"Gini coefficient {popularity.gini:.3f} (0: all alike, 1: one item has all)",
        f"most popular item: {popularity.maximum:,} events; "
        f"{popularity.once:,} items ({popularity.once / items:.1%}) have one event",
    ]


def _times(times: Times) -> list[str]:
    lines = [f"{times.first} to {times.last}"]
    if times.unit is None:
        return [*lines, "neither seconds, milli-, micro- nor nanoseconds since 1970, by their size"]
    return [
        *lines,
        f"{times.first_utc} to {times.last_utc} UTC, if these are {times.unit} since 1970 (inferred)",
    ]


def _malformed(malformed: list[dict[str, Any]]) -> list[str]:
    return [
        f"{entry['file']}: {entry['count']:,} of {entry['rows']:,} rows ({'; '.join(entry['places'])}"
        f"{'; ...' if entry['count'] > len(entry['places']) else ''})"
        for entry in malformed
    ]


def _files(files: dict[str, int]) -> list[str]:
    sizes = {name: f"{size:,}" for name, size in (files | {"all": sum(files.values())}).items()}
    width = max(map(len, sizes.values()))
    return [f"{name}  {size:>{width}}" for name, size in _padded(sizes)]


def _settings(settings: dict[str, Any]) -> Iterator[str]:
    for name, value in settings.items():
        if name == "source":
            yield f"source: {value['name']}"
            yield from (f"  {argument}: {_plain(given)}" for argument, given in value["arguments"].items())
        elif name == "filters":
            yield "filters:"
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


def _padded(values: dict[str, Any]) -> list[tuple[str, Any]]:
    width = max(map(len, values))
    return [(name.ljust(width), value) for name, value in values.items()]
