"""Signals that end a run, as a user, a terminal and a cluster send them. Each docstring says what was seen."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jobs import Job

pytestmark = [pytest.mark.process, pytest.mark.faults]


def newest(folder: Path) -> Path:
    return folder / "runs" / "version_0" / "checkpoints" / "last.ckpt"


def step_of(file: Path) -> int:
    return int(torch.load(file, weights_only=True)["global_step"])


def test_sigterm_saves_the_step_and_the_command_that_is_printed_goes_on(start: Callable[..., Job], tmp_path: Path):
    """The run and its loader get SIGTERM: the step's state is saved, the status is 143, and the command goes on."""
    job = start("--data.num_workers", "1")
    job.wait_for(newest(tmp_path).exists)
    begun = time.monotonic()
    job.signal(signal.SIGTERM)
    assert job.end() == 128 + signal.SIGTERM
    assert time.monotonic() - begun < 20
    said = re.search(
        r"stopped by SIGTERM at epoch \d+, step (\d+)\. Newest resume point: (\S+), of step \1\. "
        "Resume with: seqrec (.*)",
        job.output,
    )
    assert said, job.output
    assert tmp_path / said[2] == newest(tmp_path)
    assert step_of(newest(tmp_path)) == int(said[1])
    assert "Traceback" not in job.output
    stopped = int(said[1])
    words = said[3].split()
    again = start(*words[1:], "--trainer.max_epochs", str(stopped // 25 + 1))
    assert again.end(60) == 0, again.output
    assert step_of(newest(tmp_path)) == (stopped // 25 + 1) * 25


def test_sigint_twice_ends_at_once_and_leaves_the_newest_point_whole(start: Callable[..., Job], tmp_path: Path):
    """In a step of a minute the first Ctrl-C is noted, the second ends the run with 130; the point before is whole."""
    slow = (
        "import time; from seqrec.training.losses import BCE; inner, calls = BCE.forward, []\n"
        "def forward(self, *args):\n"
        "    calls.append(1)\n"
        "    if len(calls) > 7: print('slow step', flush=True); time.sleep(60)\n"
        "    return inner(self, *args)\n"
        "BCE.forward = forward"
    )
    job = start("--data.num_workers", "1", code=slow)
    job.wait_for(lambda: "slow step" in job.output)
    job.signal(signal.SIGINT)
    job.wait_for(lambda: "SIGINT: the run will save and stop after this step; press again to end it" in job.output)
    job.signal(signal.SIGINT)
    assert job.end() == 128 + signal.SIGINT
    assert "stopped by SIGINT at epoch 0, step 7. Newest resume point:" in job.output
    assert "of step 5. Resume with: seqrec fit" in job.output
    assert step_of(newest(tmp_path)) == 5
    assert "Traceback" not in job.output


@pytest.mark.slow
def test_a_job_that_slurm_announces_the_end_of_is_queued_again_and_goes_on(start: Callable[..., Job], tmp_path: Path):
    """SIGUSR1 under SLURM: saved, `scontrol requeue` called once, status 138; started again, it goes on by itself."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\n')
    scontrol.chmod(0o755)
    slurm = {
        "PATH": f"{scontrol.parent}:/usr/bin:/bin",
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "seqrec",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
    }
    plugin = ("--trainer.plugins+", "lightning.pytorch.plugins.environments.SLURMEnvironment")
    job = start(*plugin, environment=slurm)
    job.wait_for(newest(tmp_path).exists)
    job.signal(signal.SIGUSR1)
    assert job.end() == 128 + signal.SIGUSR1, job.output
    assert (tmp_path / "called").read_text() == "requeue 4711\n"
    assert "SLURM queues job 4711 again" in job.output
    stopped = step_of(newest(tmp_path))
    again = start(
        *plugin,
        "--trainer.max_epochs",
        str(stopped // 25 + 1),
        environment={**slurm, "SLURM_RESTART_COUNT": "1"},
    )
    assert again.end(60) == 0, again.output
    assert f"SLURM restarted job 4711: it resumes from {newest(tmp_path).relative_to(tmp_path)}" in again.output
    assert step_of(newest(tmp_path)) == (stopped // 25 + 1) * 25
