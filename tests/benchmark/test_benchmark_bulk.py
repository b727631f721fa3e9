"""The benchmark of lists for many users from end to end on small sizes, and what it estimates."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from seqrec.benchmark.bulk import benchmark_bulk, estimated_seconds, list_table, time_lists
from seqrec.errors import InputError

SMALL = {"users": 9, "length": 6, "top_k": 4, "d_model": 8, "rounds": 1, "seed": 0, "device": "cpu"}


@pytest.mark.process
def test_small_sizes_are_measured_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    written = tmp_path / "figures.json"
    benchmark_bulk(
        [20, 50], encoders=["GRU4Rec"], users=9, of_users=1800, length=6, top_k=15, d_model=8, rounds=1,
        json_file=str(written),
    )  # fmt: skip
    out = capsys.readouterr().out
    assert "the time for 1,800 users is estimated from 9" in out
    assert "may exceed 100%" in out
    assert re.search(r"GRU4Rec +20 +[\d,]+ +\d+% +[\d,]+ +[\d.]+ MiB", out)
    rows = json.loads(written.read_text())["figures"]
    assert [(row["num_items"], row["users"], row["events"]) for row in rows] == [(20, 9, 27), (50, 9, 27)]
    for row in rows:
        assert row["estimated_seconds"] == pytest.approx(200 * row["seconds"])


def test_an_estimate_is_in_proportion_to_users():
    assert estimated_seconds({"users": 500, "seconds": 2.0}, 1_000_000) == 4000


def test_all_users_are_timed():
    found = time_lists("GRU4Rec", 30, SMALL)
    assert (found["users"], found["events"], found["device_bytes"]) == (9, 27, None)
    assert 0 < found["search_seconds"] < 10
    assert 0 < found["seconds"] < 10


def test_the_table_by_hand():
    row = {"encoder": "SASRec", "num_items": 1000, "users": 500, "events": 9000, "seconds": 2.0}
    row |= {"search_seconds": 0.5, "peak_bytes": 3 << 20, "estimated_seconds": 4000.0}
    table = str(list_table([row, {"encoder": "GRU4Rec", "num_items": 5, "failure": "no memory"}], 10**6))
    assert re.search(r"SASRec +1,000 +250 +25% +4,500 +3 MiB +", table)
    assert "estimated, 1,000,000 users" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"items": [1]}, r"items=\[1\] must be one or more, and all at least 2"),
        ({"users": 0}, "users=0 must be at least 1"),
        ({"of_users": 0}, "of_users=0 must be at least 1"),
        ({"encoders": ["Nothing"]}, "Nothing"),
        ({"device": "tpu"}, "device"),
        ({"items": [200, 20], "top_k": 21}, "top_k=21 is more than the 20 items of the smallest catalogue; lower it"),
    ],
)
def test_values_out_of_range_are_refused(arguments: dict, message: str):
    with pytest.raises(InputError, match=message):
        benchmark_bulk(**arguments)
