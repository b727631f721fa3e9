"""`tests/gpu/measure.py` at tiny sizes on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import measure, targets

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
    assert [(row["encoder"], row["width"]) for row in studied] == [
        *(("MambaRec", 32), ("SASRec", 50), ("RecMamba", 32), ("SASRec", 32))
    ]
    assert studied[1]["study"]["GB"] == 25.42
    assert results["loading"][0]["loaded events/s"] > 0
    assert [row["prefetch"] for row in results["loading"][1:]] == [False, True]
    assert any(row["op"] == "dropout" for row in results["ops"] if "op" in row)
    assert any("lists/s" in row for row in results["streaming"])
    assert results["tests"][-1] == {"status": 0}
    text = measure.report(found)
    assert "RecMamba mamba2" in text
    assert "evaluation" in text
    assert len([line for line in text.splitlines() if line.endswith("not measured")]) == len(targets.TARGETS)


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


def test_time_that_is_left_goes_to_the_next_part_and_no_part_takes_that_of_later_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    limits: dict[str, float] = {}

    def watch(name: str, sizes: measure.Sizes, limit_s: float) -> dict[str, Any]:
        limits[name] = limit_s
        return {"outcome": "passed", "seconds": 0.0, "results": [], "output": ""}

    monkeypatch.setattr(measure, "watch_part", watch)
    names = ["machine", "study", "ops"]
    seconds = [measure.PARTS[name].limit_s for name in names]
    measure.run(tmp_path / "out.json", names, sum(seconds) + 100.0, measure.DRY)
    assert list(limits.values()) == pytest.approx([seconds[0] + 100, sum(seconds[:2]) + 100, sum(seconds) + 100], abs=5)
    measure.run(tmp_path / "out.json", names, seconds[0] + 20.0, measure.DRY)
    assert list(limits.values()) == pytest.approx([seconds[0], *[seconds[0] + 20] * 2], abs=5)


def test_the_parts_of_the_targets_fit_into_a_call():
    names = list(measure.PARTS)
    assert sum(measure.PARTS[name].limit_s for name in names[: names.index("ops") + 1]) <= 570


def step(encoder: str, variant: str, length: int, seconds: float, **more: object) -> dict[str, Any]:
    return {"encoder": encoder, "variant": variant, "length": length, "seconds": seconds, **more}


def test_each_target_has_a_verdict():
    of_study = {"GB": 20.0, "seconds of 5 epochs": 800.0, "seconds of evaluation": 60.0}
    five = {"seconds of 5 epochs": 40.0, "device_bytes": 3_000_000_000, "width": 32, "study": of_study}
    parts = {
        "training MambaRec": [
            step("MambaRec", "fp32", 1000, 16e3 / 2e6, device_bytes=1000),
            step("MambaRec", "graphed", 1000, 16e3 / 4e6),
            step("MambaRec", "fp32", 5000, 80e3 / 3e6),
            step("MambaRec", "graphed", 5000, 0.0, failure="no memory"),
            {"encoder": "MambaRec", "evaluation": True, "length": 1000, "histories": 16, "bytes": 800},
        ],
        "training SASRec": [step("SASRec", "fp32", 5000, 80e3 / 1e6)],
        "study": [
            step("MambaRec", "fp32", 1000, 0.01, **five),
            step("SASRec", "fp32", 1000, 0.016, **{**five, "width": 50}),
            step("RecMamba", "graphed", 5000, 0.01, **five),
            {
                "encoder": "MambaRec",
                "evaluation": True,
                "length": 1000,
                "negatives": 100,
                "seconds of evaluation": 30.0,
            },
        ],
        "loading": [{"length": 1000, "prefetch": True, "idle": 0.05}],
        "tests": [{"counts": {"passed": 3, "failed": 1}}],
    }
    found = {
        "sizes": {"batch_size": 16},
        "parts": {name: {"outcome": "passed", "results": rows} for name, rows in parts.items()},
    }
    verdicts = {target.name: target.verdict(found) for target in targets.TARGETS}
    assert verdicts["MambaRec, 16 x 1,000, float32: M events/s"] == pytest.approx((4.0, 4 / 3, "yes"))
    assert verdicts["MambaRec, 16 x 5,000, float32: M events/s"] == pytest.approx((3.0, 0.5, "no"))
    assert verdicts["MambaRec, 16 x 1,000, bf16: M events/s"] == (None, None, "not measured")
    assert verdicts["SASRec / MambaRec, study's shapes, 1,000"] == pytest.approx((1.6, 1.6 / 1.7, "no"))
    assert verdicts["SASRec / MambaRec, width 32, 5,000"] == pytest.approx((3.0, 1.5, "yes"))
    assert verdicts["RecMamba, 5,000: GB, share of the study's at 1,000"] == pytest.approx((0.15, 0.1 / 0.15, "no"))
    assert verdicts["RecMamba, 5,000: time, share"] == pytest.approx((0.05, 1.0, "yes"))
    assert verdicts["MambaRec, 1,000: evaluation, share of the study's"] == pytest.approx((0.5, 2.0, "yes"))
    assert verdicts["MambaRec, 1,000: evaluation's memory / training's"] == pytest.approx((0.8, 1.25, "yes"))
    assert verdicts["idle with prefetch, 1,000"] == pytest.approx((0.05, 2.0, "yes"))
    assert verdicts["failed tests"] == (1.0, 0.0, "no")
    text = str(targets.target_table(found)).splitlines()
    assert any(line.split() == ["failed", "tests", "<=", "0", "1", "0.00", "no"] for line in text)


PASSED = [{"counts": {"passed": 3}}, {"status": 0}]
FAILED = [{"counts": {"passed": 1, "failed": 1}}, {"counts": {"passed": 2, "failed": 2}}, {"status": 1}]
UNREAD = [{"collecting tests/test_a.py": "no module"}, {"collecting tests/test_a.py": "no module"}, {"status": 2}]


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (PASSED, PASSED, (0.0, None, "yes")),
        (PASSED, FAILED, (2.0, 0.0, "no")),
        (FAILED, FAILED, (4.0, 0.0, "no")),
        # The process of a part ends well although pytest could not read a file.
        (PASSED, UNREAD, (1.0, 0.0, "no")),
        (UNREAD, UNREAD, (2.0, 0.0, "no")),
        (PASSED, [{"status": 5}], (None, None, "not measured")),
        (PASSED, [], (None, None, "not measured")),
        (PASSED, PASSED[:1], (None, None, "not measured")),
        ([{"counts": {"skipped": 3}}, {"status": 0}], [{"status": 0}], (None, None, "not measured")),
    ],
)
def test_no_test_failed_only_if_all_were_run(first: list[Any], second: list[Any], verdict: tuple[Any, ...]):
    (target,) = (each for each in targets.TARGETS if each.name == "failed tests")
    parts = {"tests": first, "tests of training": second}
    assert target.verdict(
        {"parts": {name: {"outcome": "passed", "results": rows} for name, rows in parts.items()}}
    ) == (verdict)
    assert target.verdict({"parts": {}}) == (None, None, "not measured")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_parts_that_no_other_test_has_run_at_tiny_sizes(capsys: pytest.CaptureFixture[str]):
    rows: list[dict[str, Any]] = []
    measure.loading(measure.DRY, rows.append)
    assert not [row for row in rows if "failure" in row]
    assert rows[0]["loaded events/s"] > 0
    assert [row["events/s"] > 0 for row in rows[1:]] == [True, True]
    assert measure._time_dropout(12, measure.DRY)["seconds"].keys() >= {"cpp", "torch"}


def test_a_file_is_reported_again(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    measure.run(tmp_path / "out.json", ["machine"], 1.0, measure.DRY)
    monkeypatch.setattr(sys, "argv", ["measure", "--out", str(tmp_path / "out.json"), "--report_only"])
    measure.main()
    assert "not measured" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["measure", "--out", str(tmp_path / "none.json"), "--report_only"])
    with pytest.raises(SystemExit):
        measure.main()
    assert "none.json does not exist; measure first" in capsys.readouterr().err
