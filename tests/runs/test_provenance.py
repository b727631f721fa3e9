from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from seqrec.runs.provenance import git_state, hardware, package_version, versions


def git(folder: Path, *words: str) -> str:
    who = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    command = ["git", *words]
    done = subprocess.run(command, cwd=folder, env=os.environ | who, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_is_named_with_whether_files_differ_from_it(tmp_path: Path):
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) is None  # no commit yet
    (tmp_path / "a.txt").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "untracked").write_text("")
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "a.txt").write_text("2")
    assert git_state(tmp_path / "runs") == {"commit": commit, "dirty": True}


def test_without_a_checkout_or_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None


def test_versions_and_machine_are_named():
    assert versions()["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert set(versions()) >= {"python", "torch", "lightning", "seqrec", "polars"}
    assert package_version("no-such-package") == "not installed"
    machine = hardware()
    assert machine["cpu"]
    assert machine["cores"] >= 1
    assert len(machine["gpus"]) == torch.cuda.device_count()
