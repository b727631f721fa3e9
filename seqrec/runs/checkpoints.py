"""Checkpoint files: written whole or not at all, checked before anything is taken from them."""

from __future__ import annotations

import errno
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, BinaryIO

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from seqrec.data.store import synchronise
from seqrec.errors import CheckpointError, MissingInputError

NEWEST = "last.ckpt"
PARTIAL = ".partial"
# What a run cannot go on without, and what a model cannot do without.
NEEDED_TO_FIT = frozenset({"state_dict", "loops", "optimizer_states", "lr_schedulers", "callbacks"})
NEEDED = frozenset({"state_dict"})


class AtomicCheckpointIO(TorchCheckpointIO):
    """How a trainer's strategy writes and reads checkpoint files.

    A file is written beside its place, brought to disk and then moved there, so that whatever ends the process leaves
    the one before. It is written piece by piece, where Lightning holds a second copy of it in memory.
    A file is checked against its checksums before it is loaded, with `weights_only=True`: no code in it runs. Where
    a run goes on from its resume points and the newest is damaged, the one before is taken, with a warning.

    Args:
        fitting: Tells whether a run goes on, which needs more than the weights.
    """

    def __init__(self, fitting: Callable[[], bool]) -> None:
        self.fitting = fitting

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a file; see `write_checkpoint`."""
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any | None = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a file, or the newest whole resume point of a folder; `weights_only` is always true."""
        path, needed = Path(path), NEEDED_TO_FIT if self.fitting() else NEEDED
        if path.is_dir():
            path = newest_point(path)
        try:
            return read_checkpoint(path, needed=needed, map_location=map_location)
        except MissingInputError:
            raise
        except CheckpointError as error:
            if not self.fitting():
                raise
            for older in _points_before(path):
                try:
                    found = read_checkpoint(older, needed=needed, map_location=map_location)
                except CheckpointError:
                    continue
                rank_zero_warn(f"{error}. The run goes on from the point before, {older}")
                return found
            raise


class UseAtomicCheckpoints(pl.Callback):
    """Lets a trainer write and read its checkpoints as `AtomicCheckpointIO`, where nobody chose another way."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the place of Lightning's default."""
        # Strategies that write folders, or files of their own, never ask for it.
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO(lambda: trainer.state.fn == TrainerFn.FITTING)


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a file so that `path` is at any time as it was, or new and whole, also if the machine loses power.

    Args:
        checkpoint: What `torch.save` takes.
        path: The file's place; its folder is made.

    Raises:
        CheckpointError: the disk is full or refuses; what was at `path` is still there.
    """
    partial = path.with_name(path.name + PARTIAL)
    written = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb", buffering=0) as stream:
            output = _Output(stream)
            try:
                torch.save(checkpoint, output)  # type: ignore[arg-type]
            except RuntimeError:
                # What torch makes of an error of the file's, whichever it was.
                if output.error is None:
                    raise
                raise output.error from None
            finally:
                written = output.bytes
            os.fsync(stream.fileno())
        os.replace(partial, path)
        synchronise(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(_refusal(path, error, written)) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_checkpoint(
    path: Path, *, needed: Collection[str] = NEEDED, map_location: Any = "cpu", mapped: bool = False
) -> dict[str, Any]:
    """Content of a checkpoint that is whole.

    Args:
        path: The file.
        needed: Entries that it must have.
        map_location: As in `torch.load`.
        mapped: Whether tensors stay in the file until they are looked at.

    Raises:
        MissingInputError: there is no such file.
        CheckpointError: it is cut off, a checksum is wrong, an entry is missing, or it holds more than plain values.
    """
    if not path.is_file():
        raise MissingInputError(f"there is no checkpoint {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint: {error}") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of its part {damaged} is wrong")
    try:
        content = torch.load(path, map_location=map_location, weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        what = re.search(r"GLOBAL (\S+)", str(error))
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, and is not loaded, since that can run code"
            + (f" ({what[1]})" if what else "")
        ) from error
    except RuntimeError as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint: {error}") from error
    missing = sorted(set(needed) - set(content)) if isinstance(content, dict) else sorted(needed)
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}; it is no checkpoint to go on from")
    assert isinstance(content, dict)
    return content


def resume_points(folder: Path) -> list[Path]:
    """Resume points in a folder, newest first: `last.ckpt`, `last-1.ckpt`, .."""
    older = {
        int(number): file
        for file in folder.glob("last-*.ckpt")
        if (number := file.stem.removeprefix("last-")).isdecimal()
    }
    newest = folder / NEWEST
    return [*([newest] if newest.is_file() else []), *(file for _, file in sorted(older.items()))]


def newest_point(folder: Path) -> Path:
    """The newest resume point of a run: in its folder, or in the `checkpoints` in there.

    Raises:
        MissingInputError: it has none.
    """
    found = [*resume_points(folder), *resume_points(folder / "checkpoints")]
    if not found:
        raise MissingInputError(
            f"{folder} has no {NEWEST}, nor checkpoints/{NEWEST}: there is nothing to go on from"
        )
    return found[0]


def keep_point(folder: Path, keep: int) -> None:
    """Keep the newest point as `last-1.ckpt`, and older ones behind it, before the newest is replaced.

    Args:
        folder: Where the points are.
        keep: Points that there may be once a new one has come; older ones are deleted.
    """
    points = resume_points(folder)
    for file in points[max(keep - 1, 0) :]:
        if file.name != NEWEST:
            file.unlink()
    # Oldest first, so that none is overwritten.
    for number, file in reversed(list(enumerate(points[: keep - 1], start=1))):
        target = folder / f"last-{number}.ckpt"
        if file.name != NEWEST:
            os.replace(file, target)
            continue
        # A second name, so that the newest is never away; where the disk knows no second names, a copy.
        try:
            os.link(file, target)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            shutil.copyfile(file, target)


def _points_before(path: Path) -> list[Path]:
    points = resume_points(path.parent)
    return points[points.index(path) + 1 :] if path in points else []


def _refusal(path: Path, error: OSError, written: int) -> str:
    free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
    before = f"{path} is from before, and whole" if path.is_file() else "there is none from before"
    return (
        f"cannot write the checkpoint {path}: {error.strerror or error} after {written:,} bytes, {free:,} bytes are "
        f"free; {before}. Make room or choose another folder (--resume_points.dirpath, --checkpoint.dirpath)"
    )


class _Output:
    """A file for `torch.save`, which hides what a file's own error was."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.bytes = 0
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while len(left):
                count = self.stream.write(left)
                self.bytes += count
                left = left[count:]
        except OSError as error:
            self.error = error
            raise
        return size

    def flush(self) -> None:
        """Nothing: no byte waits."""
