"""Checkpoint files, written atomically and verified before they are loaded."""

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
from torch import nn

from seqrec.errors import CheckpointError, MissingInputError
from seqrec.files import synchronise

NEWEST = "last.ckpt"
PARTIAL = ".partial"
# Entries that a run needs to resume, and entries that a model needs.
NEEDED_TO_FIT = frozenset({"state_dict", "loops", "optimizer_states", "lr_schedulers", "callbacks"})
NEEDED = frozenset({"state_dict"})


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoint files atomically, and verifies them before loading, for a trainer's strategy.

    A file is written next to its place, flushed to disk and then moved there: if the process ends at any time, the
    file before is still there. It is written piece by piece; Lightning holds a second copy of it in memory.
    A file is verified by its checksums and loaded with `weights_only=True`, which runs no code from it. If a run
    resumes and its newest resume point is damaged, the one before is used, with a warning.

    Args:
        fitting: Returns whether a run resumes, which needs more than the weights.
    """

    def __init__(self, fitting: Callable[[], bool]) -> None:
        self.fitting = fitting

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a file atomically; see `write_checkpoint`."""
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any | None = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a file, or the newest undamaged resume point of a folder; `weights_only` is always true."""
        path, needed = Path(path), NEEDED_TO_FIT if self.fitting() else NEEDED
        if path.is_dir():
            path = newest_point(path)
        try:
            return read_checkpoint(path, needed=needed, map_location=map_location)
        except CheckpointError as error:
            for older in _points_before(path) if self.fitting() else []:
                try:
                    found = read_checkpoint(older, needed=needed, map_location=map_location)
                except CheckpointError:
                    continue
                rank_zero_warn(f"{error}. The run resumes from the point before, {older}")
                return found
            raise


class UseAtomicCheckpoints(pl.Callback):
    """Makes a trainer use `AtomicCheckpointIO`, unless the user chose another checkpoint plugin."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Replace Lightning's default plugin."""
        # Strategies that write folders, or files of their own, do not use it.
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO(lambda: trainer.state.fn == TrainerFn.FITTING)


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a file as `torch.save` does, but atomically, and create its folder.

    `path` is always the old or the complete new file, also if the machine loses power.

    Raises:
        CheckpointError: if the disk is full or refuses; the file before is still at `path`.
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
                # torch raises it for any error of the file.
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
    """Read a checkpoint and verify it.

    Args:
        path: The file.
        needed: Entries that it must have.
        map_location: As in `torch.load`.
        mapped: Whether tensors stay in the file until they are read.

    Raises:
        MissingInputError: if the file does not exist.
        CheckpointError: if it is cut off, a checksum is wrong, an entry is missing, or it has more than plain values.
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
            f"{path} contains more than tensors and plain values, and is not loaded, because that can run code"
            + (f" ({what[1]})" if what else "")
        ) from error
    except RuntimeError as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint: {error}") from error
    missing = sorted(set(needed) - set(content)) if isinstance(content, dict) else sorted(needed)
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}; it is no checkpoint to resume from")
    assert isinstance(content, dict)
    return content


def all_finite(module: nn.Module) -> bool:
    """Return whether all of a module's parameters are finite; reads 2^24 numbers at a time."""
    parts = (part for weight in module.parameters() for part in torch.split(weight.detach().flatten(), 1 << 24))
    return all(bool(torch.isfinite(part).all()) for part in parts)


def resume_points(folder: Path) -> list[Path]:
    """Return the resume points in a folder, newest first: `last.ckpt`, `last-1.ckpt`, .."""
    older = {
        int(number): file
        for file in folder.glob("last-*.ckpt")
        if (number := file.stem.removeprefix("last-")).isdecimal()
    }
    newest = folder / NEWEST
    return [*([newest] if newest.is_file() else []), *(file for _, file in sorted(older.items()))]


def newest_point(folder: Path) -> Path:
    """Return the newest resume point in a run's folder, or in the folder `checkpoints` there.

    Raises:
        MissingInputError: if the run has none.
    """
    found = [*resume_points(folder), *resume_points(folder / "checkpoints")]
    if not found:
        raise MissingInputError(f"{folder} has no {NEWEST}, nor checkpoints/{NEWEST}: there is nothing to resume from")
    return found[0]


def keep_point(folder: Path, keep: int) -> None:
    """Keep the newest point as `last-1.ckpt`, and older ones after it, before the newest is replaced.

    `keep` points remain, the coming one included; older ones are deleted.
    """
    points = resume_points(folder)
    for file in points[max(keep - 1, 0) :]:
        if file.name != NEWEST:
            file.unlink()
    # Oldest first, because no point may overwrite another.
    for number, file in reversed(list(enumerate(points[: keep - 1], start=1))):
        target = folder / f"last-{number}.ckpt"
        if file.name != NEWEST:
            os.replace(file, target)
            continue
        # A second name, because the newest must always exist; a copy if the disk supports no second names.
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
    before = f"{path} is from before, and complete" if path.is_file() else "there is none from before"
    return (
        f"cannot write the checkpoint {path}: {error.strerror or error} after {written:,} bytes, {free:,} bytes are "
        f"free; {before}. Make room or choose another folder (--resume_points.dirpath, --checkpoint.dirpath)"
    )


class _Output:
    """A file for `torch.save` that keeps the file's own error, which torch hides."""

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
        """Do nothing, because nothing is buffered."""
