from __future__ import annotations

import os
import random
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from torch.utils.data import DataLoader

from seqrec.errors import CheckpointError, MissingInputError
from seqrec.runs.callbacks import UseAtomicCheckpoints
from seqrec.runs.checkpoints import (
    NEEDED_TO_FIT,
    AtomicCheckpointIO,
    keeping_points,
    newest_point,
    read_checkpoint,
    resume_points,
    write_checkpoint,
)

CONTENT = {
    "state_dict": {"weight": torch.arange(10_000.0)},
    **dict.fromkeys(sorted(NEEDED_TO_FIT - {"state_dict"}), 0),
}


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    """One wrong bit among the weights."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def zeros(content: bytes) -> bytes:
    """What a file system may leave of a file that was not brought to disk."""
    return cut(content) + bytes(len(content) - len(cut(content)))


def test_what_is_written_is_read(tmp_path: Path):
    write_checkpoint(CONTENT, tmp_path / "new" / "run.ckpt")
    found = read_checkpoint(tmp_path / "new" / "run.ckpt", needed=NEEDED_TO_FIT)
    assert torch.equal(found["state_dict"]["weight"], CONTENT["state_dict"]["weight"])
    assert os.listdir(tmp_path / "new") == ["run.ckpt"]


@pytest.mark.parametrize("damage", [cut, flip, zeros, lambda _: b"", lambda _: b"text"])
def test_a_damaged_file_is_recognised(tmp_path: Path, damage: Callable[[bytes], bytes]):
    file = tmp_path / "run.ckpt"
    write_checkpoint(CONTENT, file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"{file} is damaged"):
        read_checkpoint(file)


def content_of(file: Path) -> list[tuple[str, object]]:
    found = read_checkpoint(file)
    return [(name, value["weight"].tolist() if name == "state_dict" else value) for name, value in found.items()]


def flips(file: Path, places: Iterable[int]) -> Counter[str]:
    """What becomes of a file if one bit is flipped at a place: refused, or read as it was; anything else fails."""
    whole, before, rng, found = file.read_bytes(), content_of(file), random.Random(0), Counter[str]()
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        try:
            assert content_of(file) == before, place
            found["read"] += 1
        except CheckpointError:
            found["refused"] += 1
    file.write_bytes(whole)
    return found


def directory_of(file: Path) -> list[int]:
    """Places of the headers and of the directory of a zip archive."""
    with zipfile.ZipFile(file) as archive:
        places = list(range(archive.start_dir, file.stat().st_size))
        for entry in archive.infolist():
            places += range(entry.header_offset, entry.header_offset + 30 + len(entry.filename))
    return places


SMALL = CONTENT | {"state_dict": {"weight": torch.arange(100.0)}}


def test_a_flipped_bit_anywhere_is_found(tmp_path: Path):
    write_checkpoint(SMALL, tmp_path / "run.ckpt")
    size = (tmp_path / "run.ckpt").stat().st_size
    assert flips(tmp_path / "run.ckpt", random.Random(1).sample(range(size - 78), 150)) == {"refused": 150}
    # The digest itself may be damaged: then the archive's own checksums decide.
    flips(tmp_path / "run.ckpt", range(size - 78, size))


@pytest.mark.slow
def test_a_flipped_bit_in_every_byte_of_the_directory_is_found(tmp_path: Path):
    write_checkpoint(SMALL, tmp_path / "run.ckpt")
    places = [
        place for place in directory_of(tmp_path / "run.ckpt") if place < (tmp_path / "run.ckpt").stat().st_size - 78
    ]
    assert flips(tmp_path / "run.ckpt", places) == {"refused": len(places)}


@pytest.mark.parametrize("share", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_the_directory_of_a_file_without_digest_is_checked_as_far_as_it_goes(tmp_path: Path, share: int):
    torch.save(SMALL, tmp_path / "run.ckpt")
    places = directory_of(tmp_path / "run.ckpt")[::share]
    assert sum(flips(tmp_path / "run.ckpt", places).values()) == len(places)


def test_other_readers_read_the_file(tmp_path: Path):
    write_checkpoint(CONTENT, tmp_path / "run.ckpt")
    for mapped in (False, True):
        found = torch.load(tmp_path / "run.ckpt", weights_only=True, mmap=mapped)
        assert torch.equal(found["state_dict"]["weight"], CONTENT["state_dict"]["weight"])
    with zipfile.ZipFile(tmp_path / "run.ckpt") as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"seqrec sha256 ")


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_older_points_are_kept_until_the_new_one_is_complete(tmp_path: Path, keep: int):
    def steps() -> list[int]:
        return [read_checkpoint(file)["global_step"] for file in resume_points(tmp_path)]

    for step in range(5):
        with keeping_points(tmp_path, keep):
            write_checkpoint({**CONTENT, "global_step": step}, tmp_path / "last.ckpt")
            assert len({*steps()}) >= min(keep, step + 1)
        assert steps() == list(range(step, max(step - keep, -1), -1))
    # A process that is killed before the new point is there, or before the numbers rise.
    for step, written in ((6, False), (8, True)):
        killed = keeping_points(tmp_path, keep)
        killed.__enter__()
        if written:
            write_checkpoint({**CONTENT, "global_step": step - 1}, tmp_path / "last.ckpt")
        assert len({*steps()}) >= keep
        with keeping_points(tmp_path, keep):
            write_checkpoint({**CONTENT, "global_step": step}, tmp_path / "last.ckpt")
        assert steps()[0] == step
        assert len(steps()) <= keep + 1
        assert len({*steps()}) == min(keep, len(steps()))


def test_a_file_that_lacks_what_is_needed_is_refused(tmp_path: Path):
    write_checkpoint({"state_dict": {}}, tmp_path / "run.ckpt")
    assert read_checkpoint(tmp_path / "run.ckpt") == {"state_dict": {}}
    with pytest.raises(CheckpointError, match=r"run\.ckpt lacks callbacks, loops, .*no checkpoint to resume from"):
        read_checkpoint(tmp_path / "run.ckpt", needed=NEEDED_TO_FIT)
    with pytest.raises(MissingInputError, match=r"there is no checkpoint .*other\.ckpt"):
        read_checkpoint(tmp_path / "other.ckpt")


class RunsCode:
    """What a file can hold that was not made by us."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("was-run",)


def test_no_code_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": RunsCode()}, "run.ckpt")
    message = r"run\.ckpt contains more than tensors and plain values, .*mkdir"
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(Path("run.ckpt"))
    # By every command of a trainer.
    model, loader = BoringModel(), DataLoader(RandomDataset(32, 4))
    for command in ("fit", "validate", "test", "predict"):
        trainer = pl.Trainer(
            callbacks=[UseAtomicCheckpoints()],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            max_epochs=1,
        )
        with pytest.raises(CheckpointError, match=message):
            getattr(trainer, command)(model, loader, ckpt_path="run.ckpt", weights_only=False)
    assert not Path("was-run").exists()


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path: Path):
    file = tmp_path / "run.ckpt"
    with pytest.raises(CheckpointError, match="there is none from before"):
        full_disk(file)
    assert os.listdir(tmp_path) == []
    write_checkpoint(CONTENT, file)
    before = file.read_bytes()
    with pytest.raises(
        CheckpointError,
        match=rf"cannot write the checkpoint {file}: No space left on device after \d+ bytes, "
        r"[\d,]+ bytes are free; .* is from before, and complete\. Make room",
    ):
        full_disk(file)
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.ckpt"]


def full_disk(file: Path) -> None:
    """Write where the system itself says that no space is left."""
    real = os.open
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "open", lambda name, flags, mode: real("/dev/full", os.O_WRONLY))
        write_checkpoint(CONTENT, file)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(CONTENT, tmp_path / "run.ckpt")
    assert os.listdir(tmp_path) == []


def points(folder: Path) -> list[Path]:
    """Resume points of steps 3, 2 and 1, newest first."""
    files = [folder / name for name in ("last.ckpt", "last-1.ckpt", "last-2.ckpt")]
    for number, file in enumerate(files):
        write_checkpoint({**CONTENT, "global_step": 3 - number}, file)
    return files


def test_a_damaged_newest_point_gives_way_to_the_one_before(tmp_path: Path):
    newest, before, oldest = points(tmp_path)
    files = AtomicCheckpointIO(lambda: True)
    assert files.load_checkpoint(newest)["global_step"] == 3
    newest.write_bytes(flip(newest.read_bytes()))
    with pytest.warns(UserWarning, match=rf"{newest} is damaged: .* resumes from the point before, {before}"):
        assert files.load_checkpoint(newest)["global_step"] == 2
    before.write_bytes(cut(before.read_bytes()))
    with pytest.warns(UserWarning, match=rf"{newest} is damaged: .* resumes from the point before, {oldest}"):
        assert files.load_checkpoint(tmp_path)["global_step"] == 1
    oldest.unlink()
    with pytest.raises(CheckpointError, match=rf"{newest} is damaged"):
        files.load_checkpoint(newest)


@pytest.mark.filterwarnings("ignore:.*is damaged.*resumes from the point before")
@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_a_run_resumes_from_the_point_before_one_with_a_flipped_bit(tmp_path: Path, count: int):
    newest, *_ = points(tmp_path)
    whole, rng, files = newest.read_bytes(), random.Random(2), AtomicCheckpointIO(lambda: True)
    # All but the digest itself, which may be damaged if the rest is not.
    for place in rng.sample(range(len(whole) - 78), count):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        newest.write_bytes(damaged)
        assert files.load_checkpoint(newest)["global_step"] == 2, place
        with pytest.raises(CheckpointError, match="is damaged"):
            read_checkpoint(newest)


def test_evaluation_of_a_damaged_file_takes_no_other(tmp_path: Path):
    newest, *_ = points(tmp_path)
    newest.write_bytes(cut(newest.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"{newest} is damaged"):
        AtomicCheckpointIO(lambda: False).load_checkpoint(newest)


def test_a_folder_means_its_newest_point(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    newest, before, _ = points(tmp_path / "checkpoints")
    assert newest_point(tmp_path) == newest_point(tmp_path / "checkpoints") == newest
    newest.unlink()
    assert newest_point(tmp_path) == before
    with pytest.raises(MissingInputError, match=r"has no last\.ckpt, nor checkpoints/last\.ckpt"):
        newest_point(tmp_path.parent / "nowhere")


def test_a_file_that_is_no_checkpoint_is_named_by_what_it_is(tmp_path: Path):
    torch.save(CONTENT["state_dict"], tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="weights without the model's settings: give a checkpoint"):
        read_checkpoint(tmp_path / "weights.pt")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "summary.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"summary.json is no checkpoint: give .*run, whose best"):
        read_checkpoint(tmp_path / "run" / "summary.json")
