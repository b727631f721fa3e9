from __future__ import annotations

import json
import tracemalloc
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from written_stores import write_store

from seqrec.data import inspect
from seqrec.data.inspect import describe, report_text
from seqrec.data.manifest import DIGEST
from seqrec.data.prepare import Filters, prepare
from seqrec.data.sources import ML1M
from seqrec.data.store import EventStore
from seqrec.errors import StoreError

# Users with 1, 2 and 5 events; items with 6, 1 and 1.
ITEM_IDS = np.array([1, 1, 2, 1, 1, 3, 1, 1])
OFFSETS = np.array([0, 1, 3, 8])


def written(folder: Path, timestamps: np.ndarray | None = None, **extra: object) -> EventStore:
    folder.mkdir(exist_ok=True)
    write_store(folder, ITEM_IDS, OFFSETS, timestamps, np.array([7, 8, 9]), ["a", "b", "c"], extra)
    return EventStore.open(folder)


def rewrite_manifest(store: EventStore, **changes: object) -> EventStore:
    path = store.directory / "manifest.json"
    content = json.loads(path.read_text()) | changes
    del content[DIGEST]
    path.write_text(json.dumps(content))
    return EventStore.open(store.directory)


def overwrite_last_byte(file: Path, value: int) -> None:
    file.write_bytes(file.read_bytes()[:-1] + bytes([value]))


@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_a_report_has_the_counts_worked_by_hand(tmp_path: Path, monkeypatch, chunk: int):
    monkeypatch.setattr(inspect, "CHUNK_EVENTS", chunk)
    report = describe(written(tmp_path, np.array([5, 4, 6, 1, 2, 3, 9, 8])))
    assert {name: report.counts[name] for name in ("users", "items", "events")} == {
        "users": 3,
        "items": 3,
        "events": 8,
    }
    assert report.lengths is not None
    assert (report.lengths.minimum, report.lengths.maximum) == (1, 5)
    assert (report.lengths.mean, report.lengths.median) == (pytest.approx(8 / 3), 2)
    assert report.lengths.p95 == pytest.approx(2 + 0.9 * 3)
    assert report.lengths.histogram == ((1, 1, 1), (2, 3, 1), (4, 7, 1))
    assert report.popularity is not None
    # One item is the top 1 % and the top 10 % of three.
    assert report.popularity.top_1_percent == report.popularity.top_10_percent == 6 / 8
    # Mean absolute difference of 6, 1, 1 over all nine pairs is 20 / 9, the mean is 8 / 3: 20/9 / (2 * 8/3).
    assert report.popularity.gini == pytest.approx(5 / 12)
    assert (report.popularity.maximum, report.popularity.once) == (6, 2)
    assert report.times is not None
    assert (report.times.first, report.times.last) == (1, 9)
    assert report.columns == {"item_ids": "uint8", "timestamps": "int64"}
    assert report.files["offsets.npy"] == (tmp_path / "offsets.npy").stat().st_size
    assert report.verified
    assert report.damage is None


def test_skew_is_that_of_the_definition(tmp_path: Path):
    counts = np.random.default_rng(0).integers(1, 60, 250)
    item_ids = np.repeat(np.arange(1, 251), counts)
    offsets = np.array([0, len(item_ids)])
    write_store(tmp_path, item_ids, offsets, None, np.array([1]), np.arange(250), {})
    popularity = describe(EventStore.open(tmp_path)).popularity
    assert popularity is not None
    differences = np.abs(counts[:, None] - counts).mean()
    assert popularity.gini == pytest.approx(differences / (2 * counts.mean()))
    descending = np.sort(counts)[::-1]
    assert popularity.top_1_percent == pytest.approx(descending[:3].sum() / counts.sum())
    assert popularity.top_10_percent == pytest.approx(descending[:25].sum() / counts.sum())
    assert popularity.once == (counts == 1).sum()


@pytest.mark.parametrize(
    ("ticks", "unit"),
    [(1, "seconds"), (10**3, "milliseconds"), (10**6, "microseconds"), (10**9, "nanoseconds")],
)
def test_the_unit_of_times_is_inferred_from_their_size(tmp_path: Path, ticks: int, unit: str):
    times = (1_600_000_000 + np.arange(8)) * ticks
    report = describe(written(tmp_path, times))
    assert report.times is not None
    assert report.times.unit == unit
    assert (report.times.first_utc, report.times.last_utc) == ("2020-09-13 12:26:40", "2020-09-13 12:26:47")
    assert f"UTC, if these are {unit} since 1970 (inferred)" in report_text(report)


@pytest.mark.parametrize("first", [-(2**63), 0, 5_000_000_000])
def test_a_unit_that_cannot_be_told_is_not_made_up(tmp_path: Path, first: int):
    times = np.full(8, 1_600_000_000)
    times[2] = first
    report = describe(written(tmp_path, times))
    assert report.times is not None
    assert report.times.unit is report.times.first_utc is report.times.last_utc is None
    assert "neither seconds, milli-, micro- nor nanoseconds since 1970" in report_text(report)


def test_a_store_without_times_or_settings_is_described(tmp_path: Path):
    report = describe(written(tmp_path))
    assert report.times is None
    assert "timestamps" not in report.columns
    text = report_text(report)
    for absent in ("time\n", "settings", "left out"):
        assert absent not in text


def test_the_text_shows_counts_bars_settings_and_what_was_left_out(tmp_path: Path):
    store = written(
        tmp_path,
        source={"name": "table", "arguments": {"path": "log.csv", "features": None}},
        filters={"min_user_events": 1},
        order="log order",
        source_files=[{"name": "log.csv", "bytes": 12345}],
        malformed=[{"file": "log.csv", "count": 3, "rows": 1011, "places": ["line 7: no id"]}],
    )
    counts = {"users": 3, "items": 3, "events": 8, "rows_read": 12_345, "duplicates": None}
    lines = report_text(describe(rewrite_manifest(store, counts=counts))).splitlines()
    assert lines[0] == str(tmp_path)
    for line in (
        "users       3",
        "rows read   12,345",
        "duplicates  not counted",
        "  mean 2.7, median 2, p95 5, min 1, max 5",
        "      1  1 users  " + "#" * 40,
        "  2 - 3  1 users  " + "#" * 40,
        "  top 1% of items: 75.0% of events, top 10%: 75.0%",
        "  Gini coefficient 0.417 (0: all alike, 1: one item has all)",
        "  most popular item: 6 events; 2 items (66.7%) have one event",
        "  log.csv: 3 of 1,011 rows (line 7: no id; ...)",
        "  item_ids  uint8",
        "  source: table",
        "    path: log.csv",
        "    features: null",
        "  order: log order",
        "    log.csv  12,345 bytes",
        "  intact: every file has its SHA-256",
    ):
        assert line in lines
    total = sum(file.stat().st_size for file in tmp_path.iterdir() if file.name != "manifest.json")
    assert any(line.split() == ["all", f"{total:,}"] for line in lines)


def test_bars_are_in_proportion_and_whoever_is_there_shows(tmp_path: Path):
    lengths = np.array([1] * 200 + [3] * 100 + [16])
    item_ids = np.ones(lengths.sum(), np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    write_store(tmp_path, item_ids, offsets, None, np.arange(len(lengths)), ["a"], {})
    lines = report_text(describe(EventStore.open(tmp_path))).splitlines()
    bars = [line for line in lines if " users" in line and line.startswith("  ")]
    assert bars == [
        "        1  200 users  " + "#" * 40,
        "    2 - 3  100 users  " + "#" * 20,
        "    4 - 7    0 users",
        "   8 - 15    0 users",
        "  16 - 31    1 users  #",
    ]


def test_a_damaged_store_is_described_by_its_manifest_alone(tmp_path: Path):
    store = written(tmp_path)
    overwrite_last_byte(tmp_path / "item_ids.npy", 3)
    report = describe(store)
    assert report.damage is not None
    assert "item_ids.npy is damaged: its SHA-256 differs" in report.damage
    assert report.lengths is report.popularity is report.times is None
    assert report.counts["events"] == 8
    assert report_text(report).splitlines()[-1] == f"  DAMAGED: {report.damage}"


def test_without_verification_nothing_is_hashed_and_this_is_said(tmp_path: Path, monkeypatch):
    store = written(tmp_path)
    monkeypatch.setattr(EventStore, "verify", lambda _: pytest.fail("hashed"))
    report = describe(store, verify=False)
    assert not report.verified
    assert report.lengths is not None
    assert report_text(report).splitlines()[-1] == "  not checked"


def test_an_item_id_out_of_range_is_found_without_verification(tmp_path: Path):
    store = written(tmp_path)
    overwrite_last_byte(tmp_path / "item_ids.npy", 200)
    with pytest.raises(StoreError, match=r"item_ids\.npy is damaged: it has item id 200, the store has 3 items"):
        describe(store, verify=False)


def test_programs_get_the_whole_report(tmp_path: Path):
    report = json.loads(json.dumps(asdict(describe(written(tmp_path, order="log order")))))
    assert report["directory"] == str(tmp_path)
    assert report["lengths"]["histogram"] == [[1, 1, 1], [2, 3, 1], [4, 7, 1]]
    assert report["popularity"]["top_1_percent"] == 0.75
    assert report["times"] is None
    assert report["settings"] == {"order": "log order"}
    assert report["damage"] is None


def test_memory_is_that_of_users_and_items_not_of_events(tmp_path: Path):
    events = 4_000_000
    item_ids = np.tile(np.arange(1, 101, dtype=np.uint8), events // 100)
    offsets = np.array([0, events])
    write_store(tmp_path, item_ids, offsets, np.arange(events), np.array([1]), np.arange(100), {})
    store = EventStore.open(tmp_path)
    tracemalloc.start()
    try:
        describe(store)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A chunk as indices is 8 MiB; as much of every event would be 30.
    assert peak < 20 << 20


def test_a_real_log_is_described(tmp_path: Path, real_data):
    path = real_data("ml-1m/ml-1m.zip")
    report = describe(prepare(ML1M(str(path)), Filters(), tmp_path / "store"))
    assert {name: report.counts[name] for name in ("users", "items", "events")} == {
        "users": 6040,
        "items": 3706,
        "events": 1_000_209,
    }
    assert report.lengths is not None
    assert (round(report.lengths.mean), report.lengths.median, report.lengths.p95) == (166, 96, 556)
    assert report.lengths.maximum == 2314
    assert report.lengths.histogram[0] == (16, 31, 860)
    assert sum(users for *_, users in report.lengths.histogram) == 6040
    assert report.times is not None
    assert report.times.unit == "seconds"
