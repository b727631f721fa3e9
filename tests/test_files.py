from __future__ import annotations

import errno
import multiprocessing
import os
import stat

import polars
import pytest

from seqrec import files


@pytest.fixture
def trace(monkeypatch, tmp_path):
    """The changes of the file system in order: what was flushed, and what was renamed."""
    changes = []
    fsync, replace = os.fsync, os.replace

    def traced_fsync(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        changes.append(("fsync", os.path.relpath(path, tmp_path)))
        fsync(descriptor)

    def traced_replace(source, target):
        changes.append(("rename", os.path.relpath(target, tmp_path)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "replace", traced_replace)
    return changes


def test_a_file_is_flushed_before_its_rename_and_its_folder_after_it(tmp_path, trace):
    files.write_text(tmp_path / "a", "text")
    assert trace == [("fsync", "a.partial"), ("rename", "a"), ("fsync", ".")]
    assert (tmp_path / "a").read_text() == "text"
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_is_flushed_with_all_that_it_contains(tmp_path, trace):
    (tmp_path / "x.partial" / "deep").mkdir(parents=True)
    (tmp_path / "x.partial" / "one").write_text("1")
    (tmp_path / "x.partial" / "deep" / "two").write_text("2")
    files.move(tmp_path / "x.partial", tmp_path / "x")
    at = trace.index(("rename", "x"))
    assert {name for _, name in trace[:at]} == {"x.partial", "x.partial/deep", "x.partial/one", "x.partial/deep/two"}
    assert trace[at + 1 :] == [("fsync", ".")]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    files.write_text(tmp_path / "a", "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full") as caught:
        files.write_text(tmp_path / "a", "new")
    assert caught.value.filename == str(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("said", ["underlying IO error: No space left on device (os error 28)", "transport error"])
def test_a_full_disk_under_polars_is_an_error_of_the_system(tmp_path, monkeypatch, lazy, said):
    frame = polars.DataFrame({"a": [1]})
    frame = frame.lazy() if lazy else frame
    files.write_parquet(frame, tmp_path / "a", metadata={"b": "c"})
    assert polars.read_parquet_metadata(tmp_path / "a")["b"] == "c"

    def full(*_, **__):
        raise polars.exceptions.ComputeError(f"parquet: File out of specification: Invalid thrift: {said}")

    monkeypatch.setattr(type(frame), "sink_parquet" if lazy else "write_parquet", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        files.write_parquet(frame, tmp_path / "a")
    assert caught.value.filename == str(tmp_path / "a")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_a_private_file_is_never_readable_by_others(tmp_path):
    (tmp_path / "a.partial").write_text("left by a process that was killed")
    files.write_text(tmp_path / "a", "secret", mode=0o600)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def _create(path, number):
    try:
        files.create(path, str(number).encode())
    except FileExistsError:
        return None
    return number


def test_of_several_processes_one_creates_a_file(tmp_path):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        created = pool.starmap(_create, [(tmp_path / "a", number) for number in range(16)])
    (winner,) = (number for number in created if number is not None)
    assert (tmp_path / "a").read_text() == str(winner)
    assert os.listdir(tmp_path) == ["a"]


def _count(folder, times):
    for _ in range(times):
        with files.locked(folder / "deep" / "a.lock"):
            number = int((folder / "count").read_text())
            (folder / "count").write_text(str(number + 1))


def test_a_lock_whose_file_is_deleted_lets_one_process_in_at_a_time(tmp_path):
    (tmp_path / "count").write_text("0")
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.starmap(_count, [(tmp_path, 25)] * 4)
    assert (tmp_path / "count").read_text() == "100"
    assert not os.listdir(tmp_path / "deep")


def test_a_failed_block_leaves_no_folder_of_its_lock(tmp_path):
    (tmp_path / "there").mkdir()
    for place in ("there/a.lock", "new/deep/a.lock"):
        with pytest.raises(KeyError), files.locked(tmp_path / place):
            raise KeyError
    assert os.listdir(tmp_path) == ["there"]
    assert not os.listdir(tmp_path / "there")


def test_exchange_swaps_two_folders(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "was").write_text(name)
    try:
        files.exchange(tmp_path / "a", tmp_path / "b")
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        pytest.skip("this file system cannot exchange names")
    assert (tmp_path / "a" / "was").read_text() == "b"
    assert (tmp_path / "b" / "was").read_text() == "a"


def test_exchange_needs_both(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match=r"No such file|not implemented"):
        files.exchange(tmp_path / "a", tmp_path / "absent")
    assert (tmp_path / "a").is_dir()
