from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from seqrec.benchmark import data
from seqrec.benchmark.harness import Benchmark

MIB = 1 << 20


def stage(name: str, seconds: float | None, peak_anonymous: int | None = None, **known: Any) -> dict[str, Any]:
    peaks = {"peak_anonymous": peak_anonymous, "peak_resident": peak_anonymous and peak_anonymous + 50 * MIB}
    return {"name": name, "seconds": seconds, **peaks, "failure": None, **known}


FIGURES: dict[str, Any] = {
    "settings": {"profile": "kuairand", "events": 1_000_000, "memory_limit": 1 << 30},
    "machine": {"cores": 2, "memory": 8 << 30, "polars": "2.1.0"},
    "log_bytes": 27 * MIB,
    "limited_by": "RLIMIT_DATA",
    "generated": stage("generate the log", 0.25),
    "plain": [
        stage("polars sort, streaming", 2.0, 300 * MIB),
        stage("polars sort, in memory", 1.0, 400 * MIB),
    ],
    "prepared": [stage("prepare, 1.0 GiB", 1.25, 200 * MIB)],
    "same_bytes": None,
    "appended": None,
    "loaders": [
        {
            "name": "16 windows a batch",
            "events": 9_000_000,
            "batches": 200,
            "bytes": 4 * 10**8,
            "padding": 0.1,
            "seconds": 0.5,
            "copy_seconds": 0.2,
            "memory": 5 * MIB,
        }
    ],
}


def report(**changes: Any) -> str:
    return "\n\n".join(map(str, data.report(FIGURES | changes)))


def test_the_table_compares_with_the_faster_pipeline_and_with_the_copy():
    assert report().splitlines() == [
        "kuairand-like log, 1,000,000 events, 27 MiB of CSV; 2 cores, 8.0 GiB, polars 2.1.0",
        "",
        "preparation               seconds     rows/s    of plain polars    anonymous    resident",
        "generate the log              0.2  4,000,000",
        "polars sort, streaming        2.0    500,000               0.50      300 MiB     350 MiB",
        "polars sort, in memory        1.0  1,000,000               1.00      400 MiB     450 MiB",
        "prepare, 1.0 GiB              1.2    800,000               0.80      200 MiB     250 MiB",
        "",
        "1.00 is polars sort, in memory, which had no limit",
        "1.0 GiB enforced by RLIMIT_DATA on the whole process, imports included",
        "",
        "loader                events/s    padding    GB/s    of a bare copy    memory    batches",
        "16 windows a batch  18,000,000      10.0%    0.80              0.40     5 MiB        200",
    ]


def test_a_pipeline_that_failed_is_told_and_is_no_yardstick():
    failed = stage("polars sort, in memory", None, failure="not enough memory")
    text = report(plain=[FIGURES["plain"][0], failed])
    assert "polars sort, in memory: not enough memory" in text
    assert "1.00 is polars sort, streaming" in text
    assert text.splitlines()[5].split() == ["polars", "sort,", "in", "memory", "failed"]
    assert text.splitlines()[6].split()[-5] == "1.60"


def test_without_a_yardstick_no_ratio_is_shown():
    failed = [{**each, "seconds": None, "failure": "not enough memory"} for each in FIGURES["plain"]]
    text = report(plain=failed, generated=None)
    assert "1.00 is" not in text
    assert " ".join(text.splitlines()[5].split()) == "prepare, 1.0 GiB 1.2 800,000 200 MiB 250 MiB"


@pytest.mark.parametrize(("same", "word"), [(True, "the same"), (False, "OTHER")])
def test_whether_the_stores_are_equal_is_told(same: bool, word: str):
    assert f"without the limit the store has {word} bytes" in report(same_bytes=same)


def test_programs_get_every_figure(tmp_path: Path):
    file = tmp_path / "figures.json"
    Benchmark(str(file), **FIGURES).write()
    figures = json.loads(file.read_text())
    assert figures["prepared"] == [
        {
            "name": "prepare, 1.0 GiB",
            "seconds": 1.25,
            "peak_anonymous": 200 * MIB,
            "peak_resident": 250 * MIB,
            "failure": None,
        }
    ]
    assert figures["loaders"][0]["padding"] == 0.1
    assert figures["limited_by"] == "RLIMIT_DATA"
