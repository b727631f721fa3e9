"""The doctor says what is used, and why not the rest."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch

from seqrec.cli import main
from seqrec.cli.doctor import examine
from seqrec.ops import ALL_BACKENDS
from seqrec.ops.selective_scan import SCAN_BACKENDS


@pytest.fixture(autouse=True)
def without_variables(monkeypatch: pytest.MonkeyPatch):
    for backends in ALL_BACKENDS:
        monkeypatch.delenv(backends.variable, raising=False)


def test_every_backend_of_every_op_is_accounted_for():
    report = examine()
    assert [(op.op, op.device) for op in report.ops] == [(b.op, d) for b in ALL_BACKENDS for d in ("cpu", "cuda")]
    for op, backends in zip(report.ops[::2], ALL_BACKENDS, strict=True):
        assert {op.used, *op.others} == set(backends.names)
        assert backends.choose("auto", "cpu", torch.float32).name == op.used
        assert op.others["reference"] == "runs here too"
        assert all(op.others.values())
    assert report.packages["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert report.healthy


def test_the_command_says_why_a_backend_is_not_used(capsys: pytest.CaptureFixture[str]):
    main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("selective scan on cpu: "))
    scan = lines[begin : lines.index("", begin)]
    assert "(SEQREC_SCAN_BACKEND chooses another)" in scan[0]
    assert any(re.match(r"  mamba_ssm +runs float32 on cuda, got torch\.float32 on cpu$", line) for line in scan)


def test_a_variable_is_named_beside_what_would_be_used_without_it(monkeypatch: pytest.MonkeyPatch):
    expected = SCAN_BACKENDS.choose("auto", "cpu", torch.float32).name
    monkeypatch.setenv(SCAN_BACKENDS.variable, "reference")
    report = examine().ops[0]
    assert (report.used, report.because) == (
        "reference",
        f"SEQREC_SCAN_BACKEND=reference; without it {expected}",
    )


def test_a_variable_that_asks_for_what_cannot_be_is_the_machines_illness(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv(SCAN_BACKENDS.variable, "fast")
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    assert stop.value.code == 1
    assert "selective scan on cpu: NOTHING (SEQREC_SCAN_BACKEND='fast' is unknown; known:" in capsys.readouterr().out


def test_programs_get_json(capsys: pytest.CaptureFixture[str]):
    main(["doctor", "--json", "true"])
    report = json.loads(capsys.readouterr().out)
    assert {op["op"] for op in report["ops"]} == {backends.op for backends in ALL_BACKENDS}


@pytest.mark.process
@pytest.mark.process
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_reads_ends_the_command_without_a_word(unbuffered: str):
    with subprocess.Popen(
        [sys.executable, "-m", "seqrec", "doctor"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    ) as command:
        assert command.stdout is not None
        command.stdout.close()
        assert command.wait(120) == 128 + signal.SIGPIPE
        assert command.stderr is not None
        assert command.stderr.read() == b""
