from __future__ import annotations

import json
from dataclasses import replace

import pytest

from seqrec.benchmark.data_tables import DataFigures, LoaderFigures, StageFigures

MIB = 1 << 20
FIGURES = DataFigures(
    settings={"profile": "kuairand", "events": 1_000_000, "memory_limit": 1 << 30},
    machine={"cores": 2, "memory": 8 << 30, "polars": "2.1.0"},
    log_bytes=27 * MIB,
    limited_by="RLIMIT_DATA",
    generated=StageFigures("generate the log", 0.25),
    plain=[
        StageFigures("polars sort, streaming", 2.0, 300 * MIB, 350 * MIB),
        StageFigures("polars sort, in memory", 1.0, 400 * MIB, 450 * MIB),
    ],
    prepared=[StageFigures("prepare, 1.0 GiB", 1.25, 200 * MIB, 250 * MIB)],
    same_bytes=None,
    loaders=[LoaderFigures("16 windows a batch", 9_000_000, 200, 4 * 10**8, 0.1, 0.5, 0.2, 5 * MIB)],
)


def test_the_table_compares_with_the_faster_pipeline_and_with_the_copy():
    assert FIGURES.as_text().splitlines() == [
        "kuairand-like log, 1,000,000 events, 27 MiB of CSV; 2 cores, 8.0 GiB, polars 2.1.0",
        "",
        "preparation             seconds     rows/s  of plain polars  anonymous  resident",
        "generate the log            0.2  4,000,000",
        "polars sort, streaming      2.0    500,000             0.50    300 MiB   350 MiB",
        "polars sort, in memory      1.0  1,000,000             1.00    400 MiB   450 MiB",
        "prepare, 1.0 GiB            1.2    800,000             0.80    200 MiB   250 MiB",
        "",
        "1.00 is polars sort, in memory, which had no limit",
        "1.0 GiB enforced by RLIMIT_DATA on the whole process, imports included",
        "",
        "loader                events/s  padding  GB/s  of a bare copy  memory  batches",
        "16 windows a batch  18,000,000    10.0%  0.80            0.40   5 MiB      200",
    ]


def test_a_pipeline_that_failed_is_told_and_is_no_yardstick():
    failed = StageFigures("polars sort, in memory", None, failure="not enough memory")
    text = replace(FIGURES, plain=[FIGURES.plain[0], failed]).as_text()
    assert "polars sort, in memory: not enough memory" in text
    assert "1.00 is polars sort, streaming" in text
    assert text.splitlines()[5].split() == ["polars", "sort,", "in", "memory", "failed"]
    assert text.splitlines()[6].split()[-5] == "1.60"


def test_without_a_yardstick_no_ratio_is_shown():
    failed = [replace(stage, seconds=None, failure="not enough memory") for stage in FIGURES.plain]
    text = replace(FIGURES, plain=failed, generated=None).as_text()
    assert "1.00 is" not in text
    assert " ".join(text.splitlines()[5].split()) == "prepare, 1.0 GiB 1.2 800,000 200 MiB 250 MiB"


@pytest.mark.parametrize(("same", "word"), [(True, "the same"), (False, "OTHER")])
def test_whether_the_stores_are_equal_is_told(same: bool, word: str):
    assert f"without the limit the store has {word} bytes" in replace(FIGURES, same_bytes=same).as_text()


def test_programs_get_every_figure():
    figures = json.loads(FIGURES.as_json())
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
