"""`seqrec benchmark scan` from end to end on small sizes, and how its figures read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from seqrec.benchmark import scan
from seqrec.benchmark.measurement import MemoryLimitError
from seqrec.benchmark.scan import benchmark_scan, crossing_text
from seqrec.errors import InputError
from seqrec.ops.selective_scan import SCAN_BACKENDS

pytestmark = pytest.mark.process


@pytest.mark.slow
def test_small_sizes_are_measured_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    written = tmp_path / "figures.json"
    benchmark_scan(
        [40],
        states=[4],
        channels=[8],
        batch_size=2,
        block_lengths=[60, 30],
        d_model=16,
        d_state=4,
        device="cpu",
        seconds=0.01,
        json_file=str(written),
    )
    out = capsys.readouterr().out
    assert re.search(r"forward and backward, float32, 2 histories, cpu", out)
    assert re.search(r"L 40 +8 +4 ", out)
    assert re.search(r"MambaRec (is faster|does not overtake)", out)
    figures = json.loads(written.read_text())
    (row,) = figures["scans"]
    here = {name for name in SCAN_BACKENDS.names if SCAN_BACKENDS[name].why_unusable("cpu", torch.float32) is None}
    assert {"chunked", "reference", "cpp"} & here <= set(row["figures"])
    # Nothing is left out in silence.
    assert set(SCAN_BACKENDS.names) <= {*row["figures"], *figures["left_out"]}
    assert [block["length"] for block in figures["blocks"]] == [30, 60]
    for entry in (row, *figures["blocks"]):
        assert all(0 < each["seconds"] < 60 for each in entry["figures"].values())
        assert all(each["bytes"] >= 0 for each in entry["figures"].values())


# In a process of its own, as threads that other tests leave behind may free memory meanwhile.
PEAKS = """
import json
import torch
from seqrec.benchmark.measurement import peak_bytes

def holds(megabytes):
    return lambda: torch.ones(megabytes << 18).sum()

print(json.dumps([(each, peak_bytes(holds(each), torch.device("cpu")) / 2**20) for each in (32, 256, 64)]))
"""


def test_peak_memory_is_what_a_call_holds_and_not_what_it_returns_to_the_system():
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert len(found) == 3
    for megabytes, peak in found:
        assert megabytes - 1 < peak < megabytes + 16


def report(**changes) -> str:
    chunked, cpp = {"seconds": 0.5, "bytes": 200 << 20}, {"seconds": 0.05, "bytes": 50 << 20}
    attention, mamba = {"seconds": 2.0, "bytes": 1 << 30}, {"seconds": 0.5, "bytes": 1 << 29}
    values = {
        "settings": {"batch_size": 4, "d_model": 64, "dropout": 0.0},
        "machine": {"device": "cpu", "threads": 2, "torch": "2"},
        "left_out": {"mamba_ssm": "runs float32 on cuda"},
        "scans": [
            scan_row(5000, 128, 32, {"chunked": chunked, "cpp": cpp}),
            scan_row(9, 8, 4, {"chunked": chunked}),
        ],
        "blocks": [{"length": 5000, "figures": {"SASRec": attention, "MambaRec": mamba}}],
    }
    return "\n\n".join(map(str, scan.report(values | changes)))


def scan_row(length: int, channels: int, states: int, figures: dict, floor: float | None = None) -> dict:
    size = {"length": length, "channels": channels, "states": states}
    return {**size, "figures": figures, "floor_seconds": floor}


def test_ratios_are_to_the_yardstick_of_the_row():
    lines = [line.split() for line in report().splitlines()]
    assert ["L", "5000", "128", "32", "500.0", "200", "MiB", "0.100", "0.25"] in lines
    assert ["L", "9", "8", "4", "500.0", "200", "MiB"] in lines
    assert ["L", "5000", "2,000.0", "1.0", "GiB", "0.250", "0.50"] in lines
    assert ["mamba_ssm:", "runs", "float32", "on", "cuda"] in lines


def test_time_beside_that_of_moving_the_bytes_is_the_fastest_backends():
    cpp = {"seconds": 0.05, "bytes": 1.0}
    row = scan_row(5, 8, 4, {"chunked": {"seconds": 0.5, "bytes": 1.0}, "triton": cpp}, floor=0.01)
    text = report(scans=[row], blocks=[])
    assert "fastest / bytes moved" in text
    assert re.search(r"L 5 .* 5\.0$", text, re.MULTILINE)
    # u, delta, z, y twice, dy and three gradients of (B, L, D); B, C twice and two gradients of (B, L, N).
    assert scan._bytes_moved(2, 3, 5, 7) == 4 * (11 * 2 * 3 * 5 + 6 * 2 * 3 * 7)


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([2.0, 1.0, 0.5], "is faster than SASRec from about 1,000 events on"),
        ([4.0, 2.0, 0.5], "is faster than SASRec from about 3,160 events on"),
        ([0.5, 1.5, 0.5], "from about 2,340 events on"),
        ([0.9, 0.8, 0.7], "is faster than SASRec at every length measured"),
        ([3.0, 2.0, 1.0], "does not overtake SASRec up to 10,000 events"),
    ],
)
def test_the_crossing_is_where_the_ratio_passes_one_for_the_last_time(ratios, expected):
    assert expected in crossing_text([100, 1000, 10_000], ratios)


def test_backends_that_would_not_fit_into_memory_are_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10 << 30))
    there, why = scan._that_fit(["chunked", "reference", "mambapy"], 1 << 30, "cpu")
    assert there == ["chunked", "reference"]
    assert why == {"mambapy": "left out, as it would hold about 13 GiB"}


def test_blocks_that_do_not_fit_are_refused_with_their_length(monkeypatch: pytest.MonkeyPatch):
    def refuse(*args, **options):
        raise MemoryLimitError("not enough memory")

    monkeypatch.setattr(scan, "run_measured", refuse)
    with pytest.raises(MemoryLimitError, match=r"^blocks of 9 events: not enough memory"):
        scan._measured_blocks({"length": 9}, print)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": [0]}, r"lengths=\[0\] must be all at least 1"),
        ({"states": [4, -1]}, r"states=\[4, -1\] must be all at least 1"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"device": "tpu"}, "device='tpu' must be auto, cpu or cuda"),
        ({"json_file": "/no/such/folder/f.json"}, "is in a folder that does not exist"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        benchmark_scan(**{"lengths": [], "block_lengths": [], **arguments})
