"""A loss of power: what was not flushed is empty, and what was renamed without flushing its folder is not renamed.

The commands run in this process while `os.fsync` and `os.replace` are watched. Then the worst state of the disk that
they allow is made, and the same command must succeed on it, or find that all is done.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars
import pytest
from trained_models import one_step

from seqrec import GRU4Rec, Table, export, load
from seqrec.data.prepare import Filters, prepare
from seqrec.data.sources import Synthetic
from seqrec.data.store import EventStore
from seqrec.inference.bulk.command import recommend
from seqrec.inference.export import verify_export
from seqrec.runs.checkpoints import read_checkpoint, write_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")


class PowerLoss(BaseException):
    """The machine stops here."""


class Disk:
    """What of a folder is on disk: contents of files and lists of names, each as it was flushed last."""

    def __init__(self, root: Path, stops_after: int) -> None:
        self.root, self.left = root, stops_after
        self.contents: dict[int, bytes] = {}
        # Folder -> its names, each with the file or folder that it meant, and whether that is a folder.
        self.names: dict[int, dict[str, tuple[int, bool]]] = {}

    def fsync(self, real: Callable[[int], None], descriptor: int) -> None:
        self._count()
        real(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if self.root not in (path, *path.parents):
            return
        if path.is_dir():
            self.names[path.stat().st_ino] = {
                entry.name: (entry.stat().st_ino, entry.is_dir()) for entry in path.iterdir()
            }
        else:
            self.contents[path.stat().st_ino] = path.read_bytes()

    def replace(self, real: Callable[..., None], source: object, target: object) -> None:
        self._count()
        real(source, target)

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise PowerLoss

    def worst_state(self, target: Path) -> None:
        """Write what is surely there after the power is back."""
        shutil.rmtree(target, ignore_errors=True)
        self._restore(self.root.stat().st_ino, target)

    def _restore(self, folder: int, target: Path) -> None:
        target.mkdir()
        for name, (node, is_folder) in self.names.get(folder, {}).items():
            if is_folder:
                self._restore(node, target / name)
            else:
                (target / name).write_bytes(self.contents.get(node, b""))


@contextmanager
def watched(disk: Disk) -> Iterator[None]:
    fsync, replace = os.fsync, os.replace
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: disk.fsync(fsync, descriptor))
        patched.setattr(os, "replace", lambda source, target: disk.replace(replace, source, target))
        yield


def moments(root: Path, command: Callable[[Path], object], step: int) -> Iterator[tuple[Path, bool]]:
    """The worst states after every `step`-th change of a command, and whether the command had ended."""
    stop, finished = 0, False
    while not finished:
        work = root / f"at{stop}"
        work.mkdir()
        disk = Disk(work, stop)
        with watched(disk):
            try:
                command(work)
                finished = True
            except PowerLoss:
                pass
        after = root / f"after{stop}"
        disk.worst_state(after)
        yield after, finished
        stop += step


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    source = Synthetic(num_users=30, num_items=25, mean_events=10)
    _, _, trainer = one_step(lambda data: GRU4Rec(data.num_items, d_model=8, max_length=8), source, folder)
    trainer.save_checkpoint(folder / "model.ckpt")
    return folder / "model.ckpt"


def test_a_bulk_job_goes_on_after_it(ckpt: Path, tmp_path: Path):
    def job(work: Path) -> None:
        recommend(ckpt=str(ckpt), output=str(work / "recs.parquet"), top_k=5, part_users=10)

    job(tmp_path)
    expected = polars.read_parquet(tmp_path / "recs.parquet/*.parquet")
    (tmp_path / "moments").mkdir()
    for after, finished in moments(tmp_path / "moments", job, 3):
        if finished:
            # What ended well is on disk already.
            assert (after / "recs_summary.json").is_file()
            assert polars.read_parquet(after / "recs.parquet/*.parquet").equals(expected)
        job(after)
        assert polars.read_parquet(after / "recs.parquet/*.parquet").equals(expected)


def test_an_export_is_whole_or_absent(ckpt: Path, tmp_path: Path):
    model = load(ckpt)
    for after, finished in moments(tmp_path, lambda work: export(model, work / "out", format="torch"), 4):
        if finished or (after / "out").is_dir():
            assert verify_export(after / "out") == []


def test_a_checkpoint_is_the_old_or_the_new_one(tmp_path: Path):
    def write(work: Path) -> None:
        for step in range(2):
            write_checkpoint({"state_dict": {}, "step": step}, work / "last.ckpt")

    for after, finished in moments(tmp_path, write, 1):
        if (after / "last.ckpt").is_file():
            assert read_checkpoint(after / "last.ckpt")["step"] in ((1,) if finished else (0, 1))
        assert (after / "last.ckpt").is_file() or not finished


def test_a_store_is_whole_or_absent(tmp_path: Path):
    log = tmp_path / "log.csv"
    rows = np.arange(60)
    polars.DataFrame({"user_id": rows % 6, "item_id": rows % 7, "timestamp": rows}).write_csv(log)
    (tmp_path / "moments").mkdir()
    for after, finished in moments(
        tmp_path / "moments", lambda work: prepare(Table(str(log)), Filters(), work / "store"), 3
    ):
        if finished or (after / "store" / "manifest.json").is_file():
            EventStore.open(after / "store").verify()


def test_the_worst_state_is_worse_than_that_of_a_process_that_ends(tmp_path: Path):
    """The check of these tests: a file without a flush is empty, and a rename without one is undone."""
    work = tmp_path / "work"
    work.mkdir()
    disk = Disk(work, 100)
    with watched(disk):
        (work / "a").write_text("text")
        os.replace(work / "a", work / "b")
        disk.worst_state(tmp_path / "lost")
        descriptor = os.open(work, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        disk.worst_state(tmp_path / "empty")
    assert list((tmp_path / "lost").iterdir()) == []
    assert (tmp_path / "empty" / "b").read_text() == ""
