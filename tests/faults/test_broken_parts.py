"""Parts of a run that break under it: processes, files, numbers, other jobs. Each docstring says what was seen."""

from __future__ import annotations

import os
import re
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked_commands import free_port
from jobs import Job

from seqrec.runs.checkpoints import NEEDED_TO_FIT, read_checkpoint

pytestmark = [pytest.mark.process, pytest.mark.faults]


def checkpoints(folder: Path) -> Path:
    return folder / "runs" / "version_0" / "checkpoints"


def last_word(job: Job) -> str:
    """The last line that a job said, which must be the reason; no traceback before it."""
    assert "Traceback" not in job.output, job.output
    return job.output.strip().splitlines()[-1]


def test_a_killed_loader_ends_the_run_with_its_reason(start: Callable[..., Job], tmp_path: Path):
    """Within 5 s the run ends with status 2, what may be the cause, and how to go on; never within a checkpoint."""
    job = start("--data.num_workers", "1")
    job.wait_for((checkpoints(tmp_path) / "last.ckpt").exists)
    loader = min(job.loaders())
    os.kill(loader, signal.SIGKILL)
    assert job.end() == 2
    assert re.fullmatch(
        r"error: a loader process.* ended unexpectedly, most often because memory ran out: .*",
        last_word(job),
    ), job.output
    assert "Resume with: seqrec fit" in job.output, job.output
    read_checkpoint(checkpoints(tmp_path) / "last.ckpt", needed=NEEDED_TO_FIT)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_store_that_is_cut_under_a_run_is_named(
    start: Callable[..., Job], tmp_path: Path, prepared: Path, workers: str
):
    """The next batch notices before it reads where the file was, which would end the process by SIGBUS; status 2."""
    store = tmp_path / "store"
    store.mkdir()
    for file in prepared.iterdir():
        (store / file.name).write_bytes(file.read_bytes())
    job = start("--data.num_workers", workers, "--data.store", "store")
    job.wait_for((checkpoints(tmp_path) / "last.ckpt").exists)
    with (store / "item_ids.npy").open("r+b") as stream:
        stream.truncate(200)
    assert job.end() == 2
    assert re.search(
        r"^error: \S*store/item_ids\.npy was cut to 200 of \d+ bytes while it was in use; prepare it again",
        job.output,
        re.MULTILINE,
    ), job.output


def test_a_full_disk_leaves_the_checkpoint_that_was_reported(start: Callable[..., Job], tmp_path: Path):
    """The write fails midway: status 2, path and bytes; the point before is whole and the run goes on from it."""
    job = start()
    last = checkpoints(tmp_path) / "last.ckpt"
    job.wait_for(last.exists)
    # From now on the process can write no file beyond this size, as if the disk were full there.
    limit = last.stat().st_size // 2
    resource.prlimit(job.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    assert job.end() == 2, job.output
    assert re.fullmatch(
        r"error: cannot write the checkpoint runs/.*/last\.ckpt: File too large after [\d,]+ bytes, [\d,]+ bytes "
        r"are free; .* is from before, and complete\. Raise the limit .*",
        last_word(job),
    )
    step = read_checkpoint(last, needed=NEEDED_TO_FIT)["global_step"]
    said = re.search(r"Newest resume point: \S+, of step (\d+)\. Resume with: seqrec fit (.*)", job.output)
    assert said
    assert int(said[1]) == step
    again = start(*said[2].split(), "--trainer.max_epochs", str(step // 25 + 1))
    assert again.end(60) == 0, again.output


@pytest.mark.slow
def test_a_second_job_in_a_folder_is_refused_and_the_first_goes_on(start: Callable[..., Job], tmp_path: Path):
    """The second ends with status 2 and names the first, which goes on; one that names no folder has its own."""
    impatient = "from seqrec.runs import job; job.PATIENCE_SECONDS = 0.5"
    first = start()
    last = checkpoints(tmp_path) / "last.ckpt"
    first.wait_for(last.exists)
    second = start("--resume_points.dirpath", str(last.parent), code=impatient)
    third = start("--trainer.max_epochs", "1")
    assert second.end(60) == 2
    assert re.fullmatch(
        rf"error: .*checkpoints is in use by another job \(process {first.pid} on .* since .*\): .*",
        last_word(second),
    )
    assert third.end(60) == 0, third.output
    seen = last.stat().st_mtime_ns
    first.wait_for(lambda: last.exists() and last.stat().st_mtime_ns != seen)
    first.signal(signal.SIGTERM)
    assert first.end() == 128 + signal.SIGTERM


def test_a_loss_that_is_no_number_ends_the_run(start: Callable[..., Job], tmp_path: Path):
    """Status 2; step, users and the last good checkpoint are named, and that is whole and finite."""
    breaks = (
        "from seqrec.training.losses import BCE; inner, calls = BCE.forward, []\n"
        "def forward(self, *args):\n"
        "    calls.append(1)\n"
        "    return inner(self, *args) * (float('nan') if len(calls) == 8 else 1)\n"
        "BCE.forward = forward"
    )
    job = start(code=breaks)
    assert job.end(60) == 2
    assert re.fullmatch(
        r"error: the loss is nan at epoch 0, step 7; the update was not made\. Users of the batch: .*"
        r"Last good checkpoint: runs/version_0/checkpoints/last\.ckpt\. .*",
        last_word(job),
    )
    saved = read_checkpoint(checkpoints(tmp_path) / "last.ckpt", needed=NEEDED_TO_FIT)
    assert saved["global_step"] == 5
    assert all(torch.isfinite(weight).all() for weight in saved["state_dict"].values())


def ranks(start: Callable[..., Job], *words: str, code: str = "") -> list[Job]:
    """Two ranks, as torchrun starts them."""
    port = free_port()
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "none",
    }
    return [
        start(
            *("--trainer.devices", "2", "--trainer.strategy", "ddp", *words),
            environment={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            code=code,
        )
        for rank in range(2)
    ]


RECORD = """
import lightning.pytorch as pl, os
from seqrec.models import GRU4Rec
inner = GRU4Rec.on_after_backward
def record(self):
    inner(self)
    with open(f"seen-{os.environ.get('RANK', 'alone')}.txt", "a") as file:
        print(self.trainer.global_step, *self.batch_users, file=file)
step = GRU4Rec.training_step
def training_step(self, batch, batch_idx):
    self.batch_users = batch.user_ids.tolist()
    return step(self, batch, batch_idx)
GRU4Rec.on_after_backward, GRU4Rec.training_step = record, training_step
"""


def users_before(file: Path, step: int) -> list[int]:
    """Users of a rank's batches that made the first steps."""
    rows = [[int(word) for word in line.split()] for line in file.read_text().splitlines()]
    return [user for row in rows if row[0] < step for user in row[1:]]


@pytest.mark.slow
def test_a_killed_rank_ends_the_other_and_one_rank_alone_finishes_the_epoch(start: Callable[..., Job], tmp_path: Path):
    """The other rank ends within seconds, with status 2; resumed on one rank each user is trained on once."""
    slow = RECORD + "import time; from seqrec.data import collate\nget = collate.WindowDataset.__getitem__\n"
    slow += "collate.WindowDataset.__getitem__ = lambda *args: (time.sleep(0.1), get(*args))[1]\n"
    first, second = ranks(start, "--resume_points.every_n_steps", "2", code=slow)
    last = checkpoints(tmp_path) / "last.ckpt"
    first.wait_for(last.exists)
    os.kill(second.pid, signal.SIGKILL)
    assert second.end() == -signal.SIGKILL
    assert first.end(60) == 2, first.output
    assert last_word(first).startswith("error: another rank of this job has ended, and its own message says why")
    step = read_checkpoint(last, needed=NEEDED_TO_FIT)["global_step"]
    assert 0 < step < 13
    before = [user for rank in "01" for user in users_before(tmp_path / f"seen-{rank}.txt", step)]
    alone = start(
        "--ckpt_path",
        "last",
        "--trainer.devices",
        "1",
        "--trainer.strategy",
        "auto",
        "--trainer.max_epochs",
        "1",
        code=RECORD,
    )
    assert alone.end(60) == 0, alone.output
    rest = users_before(tmp_path / "seen-alone.txt", 1000)
    assert sorted(before + rest) == list(range(1, 101))


@pytest.mark.slow
def test_sigterm_to_one_rank_stops_both_at_the_same_step(start: Callable[..., Job], tmp_path: Path):
    """The ranks agree on a step, rank 0 saves it, both end with 143."""
    first, second = ranks(start)
    last = checkpoints(tmp_path) / "last.ckpt"
    first.wait_for(last.exists)
    second.signal(signal.SIGTERM)
    assert first.end() == second.end() == 128 + signal.SIGTERM, first.output
    said = re.search(r"stopped by another process's signal at epoch \d+, step (\d+)\. .*", first.output)
    assert said, first.output
    assert read_checkpoint(last, needed=NEEDED_TO_FIT)["global_step"] == int(said[1])
