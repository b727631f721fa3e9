"""Checkpoint files, written atomically and verified before they are loaded."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from seqrec.errors import CheckpointError, MissingInputError
from seqrec.files import rename, replacing
from seqrec.registry import did_you_mean

NEWEST = "last.ckpt"
_BEFORE = "last-0.ckpt"
# The end of a file: the comment of its zip archive, with the digest of all bytes before it.
_MARK = b"seqrec sha256 "
_COMMENT_BYTES = len(_MARK) + 64
_END_RECORD = b"PK\x05\x06"
_END_RECORD_BYTES = 22
_INSTEAD = "give another, such as best.ckpt or last-1.ckpt of its run"
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

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint file, and nothing else: its path may be from the callback state of a checkpoint."""
        file = Path(path)
        if ".." not in file.parts and _is_checkpoint(file):
            file.unlink()
        elif os.path.lexists(file):
            rank_zero_warn(
                f"{file} is not deleted, though a callback asks for it, because it is no checkpoint file here"
            )


class UseAtomicCheckpoints(pl.Callback):
    """Makes a trainer use `AtomicCheckpointIO`, unless the user chose another checkpoint plugin."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Replace Lightning's default plugin."""
        # Strategies that write folders, or files of their own, do not use it.
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO(lambda: trainer.state.fn == TrainerFn.FITTING)


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a file as `torch.save` does, but atomically and with a digest, and create its folder.

    The file is a zip archive. Its comment has the SHA-256 of all bytes before it, which other readers ignore. `path` is
    always the old or the complete new file, also if the machine loses power.

    Raises:
        CheckpointError: if the disk is full or refuses; the file before is still at `path`.
    """
    written = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as stream:
            output = _Output(stream)
            try:
                torch.save(checkpoint, output)  # type: ignore[arg-type]
                output.finish()
            except RuntimeError:
                # torch raises it for any error of the file.
                if output.error is None:
                    raise
                raise output.error from None
            finally:
                written = output.bytes
    except OSError as error:
        raise CheckpointError(_refusal(path, error, written)) from error


def read_checkpoint(
    path: Path,
    *,
    needed: Collection[str] = NEEDED,
    map_location: Any = "cpu",
    mapped: bool = False,
    verify: bool = True,
) -> dict[str, Any]:
    """Read a checkpoint and verify it.

    Args:
        path: The file.
        needed: Entries that it must have.
        map_location: As in `torch.load`.
        mapped: Whether tensors stay in the file until they are read.
        verify: Whether its content is compared with its digest, which takes as long as to read the whole file.

    Raises:
        MissingInputError: if the file does not exist.
        CheckpointError: if any byte of it differs from what was written, an entry is missing, or it has more than
            plain values. Of a file without digest (seqrec 0.1, plain Lightning) the checksums of the archive are
            compared, which do not cover its directory.
    """
    if not path.is_file():
        beside = [str(file) for file in path.parent.glob("*.ckpt")] if path.parent.is_dir() else []
        raise MissingInputError(f"there is no checkpoint {path}{did_you_mean(str(path), beside)}")
    if path.suffix in (".json", ".yaml", ".yml", ".csv"):
        run = path.parent if (path.parent / "checkpoints").is_dir() else "a run's folder"
        raise CheckpointError(f"{path} is no checkpoint: give {run}, whose best checkpoint is used")
    if verify:
        _verify(path)
    try:
        content = torch.load(path, map_location=map_location, weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        what = re.search(r"GLOBAL (\S+)", str(error))
        raise CheckpointError(
            f"{path} contains more than tensors and plain values, and is not loaded, because that can run code"
            + (f" ({what[1]})" if what else "")
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # damage that no checksum covers can raise anything
        raise CheckpointError(f"{path} is damaged or no checkpoint: {error}; {_INSTEAD}") from error
    missing = sorted(set(needed) - set(content)) if isinstance(content, dict) else sorted(needed)
    if missing:
        if isinstance(content, dict) and content and all(isinstance(each, torch.Tensor) for each in content.values()):
            raise CheckpointError(f"{path} has weights without the model's settings: give a checkpoint of seqrec fit")
        raise CheckpointError(f"{path} lacks {', '.join(missing)}; it is no checkpoint to resume from")
    assert isinstance(content, dict)
    if odd := [name for name in ("state_dict", "hyper_parameters") if not isinstance(content.get(name, {}), dict)]:
        raise CheckpointError(f"{path} has something else than named values as {odd[0]}; it is no checkpoint")
    return content


def peek(path: Path) -> dict[str, Any]:
    """Return the entries of a checkpoint, whose tensors stay in the file, unverified; nothing if it is damaged."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # damage can raise anything
        return {}
    return content if isinstance(content, dict) else {}


def _is_checkpoint(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except Exception:  # a damaged directory can raise anything
        return False


def _verify(path: Path) -> None:
    """Refuse a file that was changed after it was written."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(size - _COMMENT_BYTES, 0))
            comment = stream.read()
            if comment.startswith(_MARK):
                stream.seek(0)
                if _sha256(stream, size - _COMMENT_BYTES) != comment[len(_MARK) :]:
                    raise CheckpointError(f"{path} is damaged: its SHA-256 differs; {_INSTEAD}")
                return
        with zipfile.ZipFile(path) as archive:
            # Attributes make torch take an entry for something else, such as a folder without content.
            strange = [each for each in archive.infolist() if each.external_attr or each.flag_bits & 1 or each.is_dir()]
            damaged = strange[0].filename if strange else archive.testzip()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged directory can raise anything
        raise CheckpointError(f"{path} is damaged or no checkpoint: {error}; {_INSTEAD}") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of its part {damaged} is wrong")


def _sha256(stream: BinaryIO, size: int) -> bytes:
    digest = hashlib.sha256()
    while size > 0 and (block := stream.read(min(size, 1 << 20))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest().encode()


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


@contextmanager
def keeping_points(folder: Path, keep: int) -> Iterator[None]:
    """Keep older resume points while a block writes a new `last.ckpt`, of which `keep` remain, the new one included.

    The point before has a second name, `last-0.ckpt`, until the new one is complete. Only then the numbers of the older
    ones rise, and the oldest is deleted. So once there were two points, there are two at any time.
    """
    newest, before = folder / NEWEST, folder / _BEFORE
    # After a process that was killed meanwhile.
    if before.is_file() and newest.is_file() and before.samefile(newest):
        before.unlink()
    _number_points(folder, keep)
    if keep > 1 and newest.is_file():
        try:
            os.link(newest, before)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            # A copy if the disk supports no second names.
            shutil.copyfile(newest, before)
    yield
    _number_points(folder, keep)


def _number_points(folder: Path, keep: int) -> None:
    if not (folder / _BEFORE).is_file():
        return
    # Oldest first, because no point may overwrite another but the oldest.
    for number in range(keep - 2, -1, -1):
        if (folder / f"last-{number}.ckpt").is_file():
            rename(folder / f"last-{number}.ckpt", folder / f"last-{number + 1}.ckpt")
    for file in resume_points(folder)[keep:]:
        file.unlink()


def _points_before(path: Path) -> list[Path]:
    points = resume_points(path.parent)
    return points[points.index(path) + 1 :] if path in points else []


def _refusal(path: Path, error: OSError, written: int) -> str:
    before = f"{path} is from before, and complete" if path.is_file() else "there is none from before"
    remedy, free = "Allow it", ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "Raise the limit (ulimit -f)" if error.errno == errno.EFBIG else "Make room"
        free = f" after {written:,} bytes, {shutil.disk_usage(path.parent).free:,} bytes are free"
    return (
        f"cannot write the checkpoint {path}: {error.strerror or error}{free}; {before}. {remedy} or choose another "
        "folder (--trainer.default_root_dir, --resume_points.dirpath, --checkpoint.dirpath)"
    )


class _Output:
    """A file for `torch.save` that keeps the file's own error, which torch hides, and hashes what is written."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.bytes = 0
        self.error: OSError | None = None
        self._digest = hashlib.sha256()
        # The last bytes, which `finish` changes, are not written before.
        self._end = b""

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        if len(view) < _END_RECORD_BYTES:
            kept = self._end + bytes(view)
            ready, self._end = kept[:-_END_RECORD_BYTES], kept[-_END_RECORD_BYTES:]
            self._write(memoryview(ready))
        else:
            self._write(memoryview(self._end))
            self._write(view[:-_END_RECORD_BYTES])
            self._end = bytes(view[-_END_RECORD_BYTES:])
        return len(view)

    def finish(self) -> None:
        """Write the end of the archive, with the digest as its comment."""
        if not (self._end.startswith(_END_RECORD) and self._end.endswith(b"\0\0")):
            raise AssertionError("torch.save no longer ends a file as a zip archive without comment")
        self._write(memoryview(self._end[:-2] + _COMMENT_BYTES.to_bytes(2, "little")))
        self._write(memoryview(_MARK + self._digest.hexdigest().encode()))

    def flush(self) -> None:
        """Do nothing, because nothing is buffered."""

    def _write(self, left: memoryview) -> None:
        self._digest.update(left)
        try:
            while len(left):
                count = self.stream.write(left)
                self.bytes += count
                left = left[count:]
        except OSError as error:
            self.error = error
            raise
