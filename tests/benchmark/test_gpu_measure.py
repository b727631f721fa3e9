"""`tests/gpu/measure.py` at tiny sizes on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from gpu import measure

PARTS = """
import json, pathlib, sys
sys.modules["polars"] = None
from tests.gpu import measure
found = {"sizes": measure.asdict(measure.DRY), "parts": {}}
for name in sys.argv[2:]:
    reply = pathlib.Path(sys.argv[1], "reply.json")
    measure.run_part(name, measure.DRY, reply)
    found["parts"][name] = {"outcome": "passed", "seconds": 1.0, "results": json.loads(reply.read_text()), "output": ""}
pathlib.Path(sys.argv[1], "found.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_every_part_runs_without_polars(tmp_path: Path):
    # Training parts differ only in their encoders.
    names = [name for name in measure.PARTS if not name.startswith("training") or name == "training RecMamba mamba2"]
    command = [sys.executable, "-c", PARTS, str(tmp_path), *names]
    subprocess.run(command, cwd=measure.ROOT, check=True, capture_output=True)
    found = json.loads((tmp_path / "found.json").read_text())
    results = {name: part["results"] for name, part in found["parts"].items()}
    assert not [row for rows in results.values() for row in rows if "failure" in row]
    (rates,) = (row["rates"] for row in results["machine"] if "rates" in row)
    assert rates["copy"] > 0
    trained = [row for row in results["training RecMamba mamba2"] if "evaluation" not in row]
    assert [row["variant"] for row in trained] == ["fp32", "torch.nn", "bf16"] * len(measure.DRY.lengths)
    studied = [row for row in results["study"] if "study" in row]
    assert [(row["encoder"], row["length"]) for row in studied] == [
        (encoder, length) for length in measure.DRY.lengths for encoder in measure.STUDY
    ]
    assert studied[0]["study"]["GB"] == 25.42
    assert any("lists/s" in row for row in results["streaming"])
    assert results["tests"][-1] == {"status": 0}
    text = measure.report(found)
    assert "RecMamba mamba2" in text
    assert "evaluation" in text


@pytest.mark.slow
def test_a_part_that_hangs_is_stopped_and_one_that_fails_has_its_error():
    stopped = measure.watch_part("machine", measure.DRY, 0.05)
    assert stopped["outcome"] == "stopped after 0 s"
    failed = measure.watch_part("machine", replace(measure.DRY, device="abacus"), 60)
    assert failed["outcome"] == "ended with status 1"
    assert "abacus" in failed["output"]
    assert [list(row) for row in failed["results"]] == [["facts"]]


def test_without_time_nothing_starts_but_the_file_is_written(tmp_path: Path):
    found = measure.run(tmp_path / "out.json", ["machine", "study"], 1.0, measure.DRY)
    assert [part["outcome"] for part in found["parts"].values()] == ["no time was left"] * 2
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(json.dumps(found))
    assert "study: no time was left" in measure.report(found)
