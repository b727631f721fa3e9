"""What `--ckpt_path` may name beside a file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from seqrec.cli.arguments import with_checkpoint_file
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
    ("words", "found"),
    [
        (("fit", "--ckpt_path", "last"), "runs/b/version_1/checkpoints/last.ckpt"),
        (("fit", "--ckpt_path=last", "--x"), "runs/b/version_1/checkpoints/last.ckpt"),
        (("fit", "--ckpt_path", "runs/a"), "runs/a/version_0/checkpoints/last.ckpt"),
        (("fit", "--ckpt_path", "runs/a/version_0"), "runs/a/version_0/checkpoints/last.ckpt"),
        (("fit", "--ckpt_path", "runs/a/version_0/checkpoints"), "runs/a/version_0/checkpoints/last.ckpt"),
        (("test", "--ckpt_path", "runs/a/version_0"), "runs/a/version_0/checkpoints/best.ckpt"),
        (("test", "--ckpt_path", "last"), "runs/b/version_1/checkpoints/last.ckpt"),
        (("test", "--ckpt_path", "runs/x.ckpt"), "runs/x.ckpt"),
        (("fit", "--config", "c.yaml"), None),
    ],
)
def test_a_name_gives_the_file(words: tuple[str, ...], found: str | None):
    replaced = with_checkpoint_file(list(words))
    assert [word.removeprefix("--ckpt_path=") for word in replaced if word.endswith(".ckpt")] == (
        [found] if found else []
    )
    assert len(replaced) == len(words)


def test_a_name_without_a_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingInputError, match=r"empty has no last\.ckpt, .*nothing to resume from"):
        with_checkpoint_file(["fit", "--ckpt_path", "empty"])
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(MissingInputError, match=r"--ckpt_path last: there is no folder runs here"):
        with_checkpoint_file(["fit", "--ckpt_path", "last"])


def test_a_job_that_slurm_starts_again_goes_on_by_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = ["fit", "--config", "c.yaml"]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert with_checkpoint_file(words) == words
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert with_checkpoint_file(words) == words
    assert "job 7 again, which left no resume point below runs: a new run" in capsys.readouterr().err
    folder = Path("runs/a/version_0/checkpoints")
    (folder / ".job.json").write_text(json.dumps({"slurm_job": "7"}))
    assert with_checkpoint_file(words) == [*words, "--ckpt_path", str(folder / "last.ckpt")]
    assert f"it goes on from {folder / 'last.ckpt'}" in capsys.readouterr().err
    named = [*words, "--ckpt_path", "runs/b"]
    assert with_checkpoint_file(named)[-1] == "runs/b/version_1/checkpoints/last.ckpt"
    assert with_checkpoint_file(["test"]) == ["test"]
