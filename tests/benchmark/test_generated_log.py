from __future__ import annotations

import json
from pathlib import Path

import measured_functions
import numpy as np
import polars as pl
import pytest

from seqrec.benchmark import generated_log
from seqrec.benchmark.generated_log import PROFILES, Profile, blocks, ensure_log, log_bytes, parse_events
from seqrec.benchmark.measurement import run_measured
from seqrec.data.progress import Progress
from seqrec.errors import InputError

EVENTS = 200_000
SMALL = Profile("small", 200, 10, 0.9, 0.9, start=1_000_000, span=500_000)


@pytest.fixture
def many_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(generated_log, "BLOCK_EVENTS", 1 << 14)
    monkeypatch.setattr(generated_log, "BLOCKS_IN_FILE", 5)


def read(log: Path) -> pl.DataFrame:
    return pl.concat([pl.read_csv(file) for file in sorted(log.glob("*.csv"))])


@pytest.mark.usefixtures("many_blocks")
def test_a_log_has_its_events_in_the_order_of_time(tmp_path: Path):
    log = ensure_log(tmp_path, SMALL, EVENTS)
    assert sorted(file.name for file in log.iterdir()) == [
        "generated.json",
        "part-000.csv",
        "part-001.csv",
        "part-002.csv",
    ]
    frame = read(log)
    assert frame.columns == ["user_id", "item_id", "timestamp", "is_click"]
    assert len(frame) == EVENTS
    times = frame["timestamp"]
    assert times.is_sorted()
    # All of the span is used, and evenly.
    quarters = (times - 1_000_000).hist(bins=[0, 125_000, 250_000, 375_000, 500_000])["count"]
    assert quarters.sum() == EVENTS
    assert quarters.to_numpy() == pytest.approx(EVENTS / 4, rel=0.01)
    assert set(frame["is_click"].unique()) == {0, 1}
    assert sum(file.stat().st_size for file in log.glob("*.csv")) <= log_bytes(SMALL, EVENTS) + 3 * 40


@pytest.mark.usefixtures("many_blocks")
def test_users_interleave_and_their_lengths_have_the_long_tail_asked_for(tmp_path: Path):
    users = read(ensure_log(tmp_path, SMALL, EVENTS))["user_id"]
    lengths = users.value_counts()["count"].to_numpy()
    assert len(lengths) == pytest.approx(1000, rel=0.01)
    assert lengths.mean() == pytest.approx(200, rel=0.01)
    assert np.log(lengths).std() == pytest.approx(0.9, rel=0.1)
    assert np.median(lengths) == pytest.approx(200 * np.exp(-(0.9**2) / 2), rel=0.1)
    assert np.percentile(lengths, 95) == pytest.approx(np.median(lengths) * np.exp(1.645 * 0.9), rel=0.15)
    # Neighbouring rows rarely are of one user: a user with share p follows himself with probability p.
    assert (users == users.shift(1)).mean() == pytest.approx(((lengths / EVENTS) ** 2).sum(), rel=0.3)


@pytest.mark.parametrize("exponent", [0.5, 0.9])
def test_items_are_as_many_and_as_unevenly_popular_as_asked_for(exponent: float):
    profile = Profile("small", 200, 10, 0.9, exponent, start=0, span=500_000)
    items = pl.concat(blocks(profile, EVENTS, seed=3))["item_id"]
    counts = np.sort(items.value_counts()["count"].to_numpy())[::-1]
    assert len(counts) == pytest.approx(EVENTS / 10, rel=0.02)
    size = profile.catalogue(EVENTS)
    assert items.max() < size
    assert items.min() >= 0
    # The first k ranks have ((k + 1) ** (1 - s) - 1) / ((V + 1) ** (1 - s) - 1) of the events.
    for share in (0.001, 0.01, 0.1):
        rank = int(size * share)
        expected = ((rank + 1) ** (1 - exponent) - 1) / ((size + 1) ** (1 - exponent) - 1)
        assert counts[:rank].sum() / EVENTS == pytest.approx(expected, rel=0.1)
    # Popular items lie anywhere among the ids.
    popular = items.value_counts().sort("count", descending=True)["item_id"].head(100).to_numpy()
    assert 0.3 * size < np.median(popular) < 0.7 * size


@pytest.mark.parametrize(("name", "users", "items"), [("kuairand", 27_285, 32_038_725), ("lfm1b", 120_322, 31_600_000)])
def test_published_sizes_come_out_at_the_published_number_of_events(name: str, users: int, items: int):
    profile, events = PROFILES[name], {"kuairand": 322_278_385, "lfm1b": 1_090_000_000}[name]
    assert profile.num_users(events) == pytest.approx(users, rel=0.002)
    assert events / profile.events_per_item == pytest.approx(items, rel=0.002)
    assert profile.catalogue(events) > items


@pytest.mark.usefixtures("many_blocks")
def test_the_same_arguments_give_the_same_bytes_and_others_other_ones(tmp_path: Path):
    def content(folder: str, **arguments: int) -> list[bytes]:
        log = ensure_log(tmp_path / folder, SMALL, arguments.pop("events", 30_000), **arguments)
        return [file.read_bytes() for file in sorted(log.glob("*.csv"))]

    assert content("a", seed=1) == content("b", seed=1)
    assert content("a", seed=1) != content("a", seed=2)
    assert content("a", events=30_001) != content("a", seed=0)


def test_a_log_that_is_there_is_taken_and_a_broken_one_refused(tmp_path: Path):
    log = ensure_log(tmp_path, SMALL, 2000)
    lines: list[str] = []
    assert ensure_log(tmp_path, SMALL, 2000, progress=Progress(lines.append)) == log
    assert lines == []
    part = log / "part-000.csv"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"small-2000-seed0 exists and is no complete log of these arguments; delete"):
        ensure_log(tmp_path, SMALL, 2000)


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"version": 0, "files": {}})])
def test_a_folder_with_another_description_is_refused(tmp_path: Path, text: str):
    log = ensure_log(tmp_path, SMALL, 2000)
    (log / "generated.json").write_text(text)
    with pytest.raises(InputError, match="is no complete log of these arguments"):
        ensure_log(tmp_path, SMALL, 2000)


@pytest.mark.usefixtures("many_blocks")
def test_an_interrupted_log_leaves_nothing(tmp_path: Path):
    def stop(line: str) -> None:
        if "rows" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_log(tmp_path, SMALL, 50_000, progress=Progress(stop, interval=0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_memory_does_not_grow_with_the_log(tmp_path: Path):
    peaks = [
        run_measured(measured_functions.generate, {"folder": str(tmp_path), "events": events}).peak_anonymous
        for events in (1 << 20, 4 << 20)
    ]
    assert peaks[1] - peaks[0] < 64 << 20  # Three more blocks of four int64 columns are 96 MiB.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"events": 999}, "events=999 must be at least 1000"), ({"seed": -1}, "seed=-1 must be at least 0")],
)
def test_what_is_too_small_is_refused(tmp_path: Path, arguments: dict, message: str):
    with pytest.raises(InputError, match=message):
        ensure_log(tmp_path, SMALL, **{"events": 2000, **arguments})


@pytest.mark.parametrize(
    ("text", "events"),
    [
        ("250000", 250_000),
        (7, 7),
        ("1M", 10**6),
        ("1.1m", 1_100_000),
        ("250 k", 250_000),
        ("0.3G", 3 * 10**8),
    ],
)
def test_numbers_of_events_are_read(text: str | int, events: int):
    assert parse_events(text) == events


@pytest.mark.parametrize("text", ["", "M", "0", "-3", "1.5", "0.1k5", "3X", "1..2M", 0, "nan", "1e6"])
def test_what_is_no_number_of_events_is_refused(text: str | int):
    with pytest.raises(InputError, match=r"^events=.* must be a whole number above 0, such as 250000, 100M"):
        parse_events(text)
