"""A failure is one line: whose it is, what to change, and where its traceback is."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import write_config

from seqrec.cli import main
from seqrec.cli.last_net import PACKAGE, argument_of, is_ours, line_and_status
from seqrec.errors import InputError, StoreError


def test_a_failure_of_memory_names_what_to_lower():
    for message in ("CUDA out of memory. Tried 2 GiB", "can't allocate memory: you tried"):
        line, status = line_and_status(RuntimeError(message))
        assert "lower --data.batch_size" in line
        assert status == 1
    assert "lower" not in line_and_status(RuntimeError("out_of_memory.csv"))[0]


def raised_in(file: Path) -> BaseException:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("raise KeyError('x')\n")
    with pytest.raises(KeyError) as caught:
        runpy.run_path(str(file))
    return caught.value


def test_a_file_is_ours_by_its_folder(tmp_path: Path):
    # A user's project may have our name, too.
    error = raised_in(tmp_path / "seqrec/encoders/mine.py")
    assert not is_ours(error)
    assert "This is a bug" not in line_and_status(error)[0]
    with pytest.raises(KeyError) as caught:
        exec(compile("raise KeyError('x')", str(PACKAGE / "models/sequential.py"), "exec"))
    assert is_ours(caught.value)
    assert "This is a bug" in line_and_status(caught.value)[0]


@pytest.mark.parametrize("command", ["fit", "recommend", "inspect"])
def test_an_error_has_no_characters_that_steer_a_terminal(capsys: pytest.CaptureFixture[str], command: str):
    name = "\x1b]0;title\x07\x1b[2J.yaml"
    with pytest.raises(SystemExit):
        main([command, *(["--config"] if command == "fit" else ["--ckpt"] if command == "recommend" else []), name])
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert "\x07" not in error
    assert r"x1b" in error or "#x001b" in error


def test_the_traceback_is_in_the_folder_of_the_run(tmp_path: Path):
    error = raised_in(tmp_path / "mine.py")
    error.run_folder = str(tmp_path)
    line, _ = line_and_status(error)
    assert line.endswith(f"(traceback: {tmp_path}/traceback.txt)")
    assert "KeyError: 'x'" in (tmp_path / "traceback.txt").read_text()
    assert not list(tmp_path.glob("*.partial"))


def test_without_a_place_for_the_traceback_the_line_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    assert line_and_status(ValueError("odd"))[0] == "odd (traceback: by --debug)"


def test_the_guide_names_debug():
    guide = (PACKAGE.parent / "notebooks/guide/training.md").read_text()
    assert re.search(r"`--debug`.* prints the traceback", guide)


@pytest.mark.slow
def test_warnings_as_errors_end_no_command(tmp_path: Path):
    write_config(tmp_path)
    for words in (
        ["fit", "--config", "small.yaml"],
        ["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"],
        ["test", "--ckpt", "last"],
        ["predict", "--ckpt", "last", "--trainer.devices", "1"],
    ):
        command = [sys.executable, "-W", "error", "-m", "seqrec", *words]
        environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
        environment.pop("JSONARGPARSE_DEPRECATION_WARNINGS", None)
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stderr


def test_a_forbidden_place_is_named_by_its_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("data: {source: {class_path: Table, init_args: {path: logs/a.csv}}, store: mine/s}\n")
    words = ["fit", "--config", "c.yaml", "--output=out/x", "--trainer.default_root_dir", "D"]
    for place, option in (
        ("out/x/part-0.parquet", "--output"),
        ("out/.x-4711", "--output"),  # a folder that becomes the output
        ("D/runs/version_0", "--trainer.default_root_dir"),
        ("runs/version_0", "--trainer.default_root_dir"),
        ("mine/s.lock", "--data.store"),
        ("stores/s/manifest.json", "--data.store"),
        ("logs/a.csv", "--data.source.path"),
        ("c.yaml", "--config"),
        ("/elsewhere", "folder"),
    ):
        line, _ = line_and_status(PermissionError(13, "Permission denied", place), words)
        verb = "read" if place == "c.yaml" else "written"
        assert f"cannot be {verb}: Permission denied; allow it, or choose another {option}" in line or place == "c.yaml"
    assert argument_of(Path("stores/s"), ["recommend"]) == "--store"
    assert argument_of(Path("reports"), ["recommend", "--output", "r"]) == ""
    Path("log").write_text("")
    assert argument_of(Path("log"), ["export", "--output", "log/e"]) == "--output"
    assert "No space left on device; make room, or" in line_and_status(OSError(28, "No space left on device", "x"))[0]


def test_a_refusal_of_the_disk_has_a_remedy_once(tmp_path: Path):
    words = ["prepare", "--data.store", "s"]
    for number, remedy in ((30, "allow it"), (28, "make room"), (13, "allow it")):
        cause = OSError(number, os.strerror(number), "s.lock")
        error = StoreError(f"the event store s cannot be written: {cause.strerror}")
        error.__cause__ = cause
        line, status = line_and_status(error, words)
        assert line.endswith(f"cannot be written: {os.strerror(number)}; {remedy}, or choose another --data.store")
        assert status == 2
        told = InputError(f"{line}!")
        told.__cause__ = cause
        assert line_and_status(told, words)[0] == f"{line}!"


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused_by_name(tmp_path: Path):
    write_config(tmp_path)
    lines = "\n".join(f"{u},{(u + t) % 9},{t}" for u in range(6) for t in range(6))
    (tmp_path / "log.csv").write_text(f"user_id,item_id,timestamp\n{lines}\n")
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []

    def run(*words: str) -> str:
        command = [*drop, sys.executable, "-m", "seqrec", *words]
        environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert "Traceback" not in done.stderr
        return next((line for line in done.stderr.splitlines() if line.startswith("error: ")), "")

    assert run("fit", "--config", "small.yaml") == ""
    shutil.copy(tmp_path / "runs/version_0/checkpoints/best.ckpt", tmp_path / "secret.ckpt")
    (tmp_path / "forbidden").mkdir(mode=0o555)
    for name in ("log.csv", "secret.ckpt"):
        (tmp_path / name).chmod(0)
    ckpt = ["--ckpt", "runs/version_0"]
    for words, said in (
        (["fit", "--config", "small.yaml", "--trainer.default_root_dir", "forbidden"], "--trainer.default_root_dir"),
        (["recommend", *ckpt, "--output", "forbidden/r"], "--output"),
        (["export", *ckpt, "--output", "forbidden/e"], "--output"),
        (["recommend", *ckpt, "--output", "r", "--input", "log.csv"], "--input"),
        (["recommend", *ckpt, "--output", "r", "--block", "log.csv"], "--block"),
        (["prepare", "--data.source", "Table", "--data.source.path", "log.csv"], "--data.source.path"),
        (["test", "--ckpt_path", "secret.ckpt"], "--ckpt_path secret.ckpt"),
    ):
        message = run(*words)
        assert said in message
        assert "ermission denied" in message
        assert re.search(r"\ballow\b", message)
        assert "damaged" not in message
