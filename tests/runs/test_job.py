from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from seqrec.errors import LockedError
from seqrec.runs.job import FolderLock, folder_of_slurm_job

HOLD = "import sys; from pathlib import Path; from seqrec.runs.job import FolderLock\n"
HOLD += "lock = FolderLock(Path(sys.argv[1])); print('held', flush=True); input()"


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqrec.runs.job.PATIENCE_SECONDS", 0.2)


@pytest.mark.process
def test_a_folder_is_one_jobs_until_that_is_killed(tmp_path: Path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "held\n"
        with pytest.raises(
            LockedError,
            match=rf"{tmp_path} is in use by another job .*process {job.pid} on .* since .*another folder",
        ):
            FolderLock(tmp_path)
        job.kill()
        job.wait()
        FolderLock(tmp_path).release()


def test_a_folder_that_was_left_is_free(tmp_path: Path):
    FolderLock(tmp_path / "new").release()
    FolderLock(tmp_path / "new").release()


def test_a_job_of_slurm_finds_its_folder_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for number, job in enumerate(["7", "8", "7", "9"]):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        folder = tmp_path / str(number) / "checkpoints"
        FolderLock(folder).release()
        os.utime(folder / ".job.json", (number, number))
    assert folder_of_slurm_job(tmp_path, "7") == tmp_path / "2" / "checkpoints"
    assert folder_of_slurm_job(tmp_path, "6") is None


def test_a_refused_job_leaves_a_folder_as_it_was(tmp_path: Path):
    FolderLock(tmp_path / "new" / "deep").release(undo=True)
    assert not (tmp_path / "new").exists()
    FolderLock(tmp_path / "run").release()
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    assert [*before] == [".job.json"]
    FolderLock(tmp_path / "run").release(undo=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before
