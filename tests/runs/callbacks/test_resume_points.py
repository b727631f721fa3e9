from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest

from seqrec.errors import InputError
from seqrec.runs import checkpoints
from seqrec.runs.callbacks import ResumePoints, resume_points


@pytest.mark.parametrize("arguments", [{"every_n_steps": 0}, {"every_minutes": -1.0}], ids=str)
def test_a_distance_that_is_not_positive_is_refused(arguments: dict):
    (name, value) = next(iter(arguments.items()))
    with pytest.raises(InputError, match=rf"{name}={value} must be positive, or null for none"):
        ResumePoints(**arguments)


class Run:
    """A trainer's part in saving: a clock, steps, and the steps that were saved."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, world_size: int = 1, batches: int = 1000):
        self.now, self.saved, self.num_training_batches = 0.0, [], batches
        self.global_step, self.world_size, self.is_global_zero = 0, world_size, True
        self.lightning_module = pl.LightningModule()
        self._accelerator_connector = SimpleNamespace(cluster_environment=None)
        self.strategy = SimpleNamespace(broadcast=self.broadcast)
        self.fit_loop = SimpleNamespace(
            _should_accumulate=lambda: False,
            _data_fetcher=object(),
            epoch_loop=SimpleNamespace(_should_check_val_fx=lambda _: False),
        )
        self.broadcasts = 0
        self.folder = folder
        monkeypatch.setattr(resume_points, "time", SimpleNamespace(monotonic=lambda: self.now))

    def broadcast(self, value: Any) -> Any:
        self.broadcasts += 1
        return value

    def save_checkpoint(self, file: Path, weights_only: bool) -> None:
        # As files are written: what was there before keeps its other name.
        file.unlink(missing_ok=True)
        file.write_text(str(self.global_step))
        self.saved.append(self.global_step)

    def train(self, points: ResumePoints, steps: int, seconds: float) -> None:
        points.dirpath = str(self.folder)
        points.on_train_start(self, None)  # type: ignore[arg-type]
        for step in range(steps):
            self.now += seconds
            self.global_step += 1
            points.on_train_batch_end(self, None, None, None, step)  # type: ignore[arg-type]
        points.on_train_end(self, None)  # type: ignore[arg-type]


def test_points_lie_so_many_minutes_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = Run(tmp_path, monkeypatch)
    run.train(ResumePoints(every_minutes=1), steps=100, seconds=7)
    assert run.saved == [9, 18, 27, 36, 45, 54, 63, 72, 81, 90, 99]
    assert (tmp_path / "last.ckpt").read_text() == "99"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last-1.ckpt", "last.ckpt"]


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_newest_points_are_kept_each_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int):
    run = Run(tmp_path, monkeypatch)
    run.train(ResumePoints(every_n_steps=1, every_minutes=None, keep=keep), steps=6, seconds=1)
    points = checkpoints.resume_points(tmp_path)
    assert [point.read_text() for point in points] == [str(6 - number) for number in range(keep)]
    assert sorted(tmp_path.iterdir()) == sorted(points)


def test_points_of_a_disk_without_links_are_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(checkpoints.os, "link", refuse)
    test_the_newest_points_are_kept_each_as_it_was(tmp_path, monkeypatch, keep=3)


def test_no_point_at_all_is_refused():
    with pytest.raises(InputError, match=r"keep=0 must be at least 1: the newest point"):
        ResumePoints(keep=0)


def test_ranks_seldom_wait_for_each_other_to_compare_clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = Run(tmp_path, monkeypatch, world_size=2)
    run.train(ResumePoints(every_minutes=1), steps=100, seconds=7)
    assert run.saved == [20, 40, 60, 80, 100]
    assert run.broadcasts == 5


def test_points_lie_so_many_steps_apart_and_not_before_an_epochs_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = Run(tmp_path, monkeypatch, batches=12)
    run.train(ResumePoints(every_n_steps=4, every_minutes=None), steps=12, seconds=7)
    assert run.saved == [4, 8]
    assert run.broadcasts == 0
