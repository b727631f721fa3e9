"""What `--ckpt` may name besides a file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from seqrec.cli.arguments import expand, find_checkpoint
from seqrec.errors import MissingInputError


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs, the second of which is newer, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for number, name in enumerate(["a/version_0", "b/version_1"]):
        folder = Path("runs") / name / "checkpoints"
        folder.mkdir(parents=True)
        for file in ("last.ckpt", "last-1.ckpt", "best.ckpt"):
            (folder / file).touch()
            os.utime(folder / file, (number, number))


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("last", "runs/b/version_1"),
        ("runs", "runs/b/version_1"),
        ("runs/a", "runs/a/version_0"),
        ("runs/a/version_0", "runs/a/version_0"),
        ("runs/a/version_0/checkpoints", "runs/a/version_0"),
    ],
)
def test_a_folder_gives_the_resume_point_to_fit_and_the_best_checkpoint_to_others(name: str, run: str):
    assert find_checkpoint(name, to_resume=True) == f"{run}/checkpoints/last.ckpt"
    assert find_checkpoint(name, to_resume=False) == f"{run}/checkpoints/best.ckpt"


def test_a_run_with_one_kind_of_checkpoint_gives_that():
    Path("runs/a/version_0/checkpoints/best.ckpt").unlink()
    assert find_checkpoint("runs/a", to_resume=False) == "runs/a/version_0/checkpoints/last.ckpt"
    for file in Path("runs/b/version_1/checkpoints").glob("last*.ckpt"):
        file.unlink()
    assert find_checkpoint("runs/b", to_resume=True) == "runs/b/version_1/checkpoints/best.ckpt"


@pytest.mark.parametrize(
    "words", [("--ckpt", "last"), ("--ckpt=last",), ("--ckpt_path", "last"), ("--ckpt_path=last",)]
)
def test_ckpt_and_ckpt_path_are_one_option(words: tuple[str, ...]):
    best = "runs/b/version_1/checkpoints/best.ckpt"
    assert expand("test", words, checkpoint="--ckpt_path") == ["--ckpt_path", best]
    assert expand("serve", words, checkpoint="--ckpt") == ["--ckpt", best]


@pytest.mark.parametrize("name", ["runs/x.ckpt", "null", ""])
def test_what_is_no_folder_stays(name: str):
    assert expand("test", ["--ckpt", name], checkpoint="--ckpt_path") == ["--ckpt_path", name]


def test_a_name_without_a_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingInputError, match=r"--ckpt empty: empty contains neither last\.ckpt nor best\.ckpt"):
        find_checkpoint("empty", to_resume=True)
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(MissingInputError, match=r"--ckpt last: there is no folder runs here"):
        find_checkpoint("last", to_resume=True)


def test_the_config_of_a_run_belongs_to_its_checkpoint():
    config = Path("runs/b/version_1/config.yaml")
    config.touch()
    best = "runs/b/version_1/checkpoints/best.ckpt"
    assert expand("test", ["--ckpt", "last"], checkpoint="--ckpt_path") == [
        *("--config", str(config)),
        *("--ckpt_path", best),
    ]
    Path("c.yaml").touch()
    words = ["--ckpt", "last", "-c", "c.yaml"]
    assert expand("test", words, checkpoint="--ckpt_path") == ["--ckpt_path", best, "--config", "c.yaml"]


def test_a_job_that_slurm_restarts_resumes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def expanded(*words: str, command: str = "fit") -> list[str]:
        return expand(command, words, checkpoint="--ckpt_path")

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert expanded("--x") == ["--x"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert expanded("--x") == ["--x"]
    assert "restarted job 7, which left no resume point below runs" in capsys.readouterr().err
    folder = Path("runs/a/version_0/checkpoints")
    (folder / ".job.json").write_text(json.dumps({"slurm_job": "7"}))
    assert expanded("--x") == ["--x", "--ckpt_path", str(folder / "last.ckpt")]
    assert f"it resumes from {folder / 'last.ckpt'}" in capsys.readouterr().err
    assert expanded("--ckpt", "runs/b")[-1] == "runs/b/version_1/checkpoints/last.ckpt"
    assert expanded("--x", command="test") == ["--x"]


def test_a_run_that_resumed_another_has_its_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They stay in the folder of the resumed run; the new run's summary names them."""
    monkeypatch.chdir(tmp_path)
    kept = Path("runs/name/version_0/checkpoints")
    kept.mkdir(parents=True)
    (kept / "best.ckpt").touch()
    (kept / "last.ckpt").touch()
    resumed = Path("runs/name/version_1")
    resumed.mkdir()
    (resumed / "summary.json").write_text(json.dumps({"best": {"checkpoint": str(kept / "best.ckpt")}}))
    assert find_checkpoint(str(resumed), to_resume=False) == str(kept / "best.ckpt")
    assert find_checkpoint(str(resumed), to_resume=True) == str(kept / "last.ckpt")
    monkeypatch.chdir(tmp_path / "runs")
    assert find_checkpoint("name/version_1", to_resume=False) == "name/version_0/checkpoints/best.ckpt"


@pytest.mark.parametrize("filters", [True, False])
def test_recommend_notes_that_the_run_was_evaluated_with_seen_items(
    filters: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    protocol = {"class_path": "seqrec.FullRanking", "init_args": {"filter_seen": filters}}
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text(json.dumps({"protocol": protocol}))
    ckpt = str(tmp_path / "checkpoints/best.ckpt")
    expand("recommend", ["--ckpt", ckpt], checkpoint="--ckpt")
    assert ("--filter-seen false recommends them too" in capsys.readouterr().err) is not filters
    expand("recommend", ["--ckpt", ckpt, "--filter_seen", "true"], checkpoint="--ckpt")
    assert capsys.readouterr().err == ""


def test_a_protocol_by_name_has_its_defaults_whatever_the_run_had():
    (_, spec) = expand("test", ["--protocol", "FullRanking"], checkpoint="--ckpt_path")
    assert json.loads(spec)["init_args"]["filter_seen"] is True
