"""The benchmark of inference from end to end on small sizes, and how its figures read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from in_process import in_this_process

from seqrec.benchmark import inference
from seqrec.benchmark.inference import (
    benchmark_inference,
    event_table,
    session_table,
    time_events,
    time_sessions,
)
from seqrec.benchmark.measurement import run_measured
from seqrec.encoders import ENCODERS
from seqrec.errors import InputError

SMALL = {"num_items": 30, "d_model": 8, "rounds": 2, "seed": 0, "device": "cpu"}


def test_small_sizes_are_measured_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(inference, "run_measured", in_this_process)
    written = tmp_path / "figures.json"
    benchmark_inference(
        ["GRU4Rec"], lengths=[9, 4], batch_sizes=[1, 3], session_encoder="GRU4Rec", num_items=30, d_model=8,
        rounds=2, folder=str(tmp_path), json_file=str(written),
    )  # fmt: skip
    out = capsys.readouterr().out
    assert re.search(r"width 8, 30 items, cpu, \d+ threads", out)
    assert re.search(r"GRU4Rec +4 +[\d,]+ +1\.00 +", out)
    figures = json.loads(written.read_text())
    assert [row["length"] for row in figures["events"]] == [4, 9]
    cells = [(row["store"], row["batch_size"]) for row in figures["sessions"]]
    assert cells == [("InMemoryStore", 1), ("InMemoryStore", 3), ("SQLiteStore", 1), ("SQLiteStore", 3)]
    assert list(tmp_path.iterdir()) == [written]


@pytest.mark.parametrize("encoder", [name for name in ENCODERS if not ENCODERS[name].bidirectional])
def test_every_encoder_steps_and_encodes_again(encoder: str):
    found = time_events([3, 7], {**SMALL, "encoder": encoder})
    assert [(row["encoder"], row["length"]) for row in found] == [(encoder, 3), (encoder, 7)]
    for row in found:
        assert row["state_bytes"] > 0
        assert all(0 < row[name] < 10 for name in ("step_seconds", "again_seconds"))


def test_sessions_are_timed_in_each_store():
    found = time_sessions([2], None, {**SMALL, "encoder": "GRU4Rec"})
    assert [cell["store"] for cell in found] == ["InMemoryStore", "SQLiteStore"]
    assert all(0 < cell[name] < 10 for cell in found for name in ("step", "observe", "recommend"))


def test_ratios_are_to_the_shortest_history_and_to_encoding_again():
    def event(length: int, step: float, again: float) -> dict:
        figures = {"step_seconds": step, "again_seconds": again, "state_bytes": 36_000}
        return {"encoder": "MambaRec", "length": length, **figures}

    session = {"store": "InMemoryStore", "batch_size": 32, "step": 0.01, "observe": 0.02, "recommend": 0.004}
    events = event_table([event(200, 5e-4, 2e-3), event(5000, 5.5e-4, 5.5e-2)], 15)
    tables = f"{events}\n{session_table([session], 'MambaRec', 15)}"
    lines = [line.split() for line in tables.splitlines()]
    assert ["MambaRec", "200", "500", "1.00", "2,000", "4.0", "x", "35", "KiB"] in lines
    assert ["MambaRec", "5,000", "550", "1.10", "55,000", "100.0", "x", "35", "KiB"] in lines
    assert ["InMemoryStore", "32", "1,600", "0.50", "8,000", "20.00", "+", "4.00"] in lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoders": ["BERT"]}, "unknown encoder 'BERT'; known: BERT4Rec, GRU4Rec"),
        ({"encoders": ["BERT4Rec"]}, "encoders: BERT4Rec sees newer events and cannot be streamed"),
        ({"session_encoder": "Mamba"}, "unknown encoder 'Mamba'"),
        ({"lengths": []}, r"lengths=\[\] must be one or more, and all at least 1"),
        ({"lengths": [5, 0]}, r"lengths=\[5, 0\] must be one or more, and all at least 1"),
        ({"batch_sizes": [0]}, r"batch_sizes=\[0\] must be all at least 1"),
        ({"rounds": 0}, "rounds=0 must be at least 1"),
        ({"d_model": 0}, "d_model=0 must be at least 1"),
        ({"num_items": 0}, "num_items=0 must be at least 1"),
        ({"device": "tpu"}, "device='tpu' must be cpu or cuda"),
        ({"folder": "/no/such/folder"}, "folder='/no/such/folder' does not exist; make it first"),
        ({"json_file": "/no/such/folder/f.json"}, "is in a folder that does not exist"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict, message: str):
    with pytest.raises(InputError, match=message):
        benchmark_inference(**arguments)


@pytest.mark.slow
def test_a_step_of_mamba_costs_the_same_behind_any_number_of_events():
    settings = {**SMALL, "encoder": "MambaRec", "num_items": 10_000, "d_model": 64, "rounds": 15}
    found = run_measured(time_events, {"lengths": [200, 1000, 5000], "settings": settings}).value
    short, _, long = (row["step_seconds"] for row in found)
    assert long < 1.2 * short
