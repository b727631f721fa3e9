from __future__ import annotations

import csv
import struct
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only
from tensorboardX.proto.event_pb2 import Event

from seqrec.runs import RunFolder


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """What TensorBoard reads in a folder: values by tag and step."""
    found = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            # Behind the length and the record there are 4 bytes of checksum each.
            event = Event.FromString(content[at + 12 : at + 12 + length])
            found.update({(value.tag, event.step): value.simple_value for value in event.summary.value})
            at += 12 + length + 4
    return found


def test_metrics_stand_in_both_files_of_one_folder(tmp_path: Path):
    logger = RunFolder(str(tmp_path), name="ml")
    logger.log_metrics({"loss": 0.5, "events/s": 100.0}, step=10)
    logger.log_metrics({"loss": 0.25}, step=20)
    logger.finalize("success")
    logger.log_metrics({"test_NDCG@10": 0.125}, step=20)
    logger.finalize("success")
    folder = tmp_path / "ml" / "version_0"
    assert Path(logger.log_dir) == folder
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["loss"], row["events/s"]) for row in rows[:2]] == [
        ("10", "0.5", "100.0"),
        ("20", "0.25", ""),
    ]
    assert scalars(folder) == {
        ("loss", 10): 0.5,
        ("events/s", 10): 100.0,
        ("loss", 20): 0.25,
        ("test_NDCG_10", 20): 0.125,
    }


def test_without_tensorboard_there_is_no_file_of_it(tmp_path: Path):
    logger = RunFolder(str(tmp_path), tensorboard=False)
    logger.log_metrics({"loss": 0.5}, step=1)
    logger.finalize("success")
    assert {file.name for file in (tmp_path / "version_0").iterdir()} == {"metrics.csv", ".started"}


def test_runs_that_start_at_once_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # All of them saw the same folders before the first made its own.
    monkeypatch.setattr("lightning.pytorch.loggers.CSVLogger._get_next_version", lambda self: 3)
    folders = [RunFolder(str(tmp_path), name="x").log_dir for _ in range(3)]
    assert [Path(folder).name for folder in folders] == ["version_3", "version_4", "version_5"]
    assert all(Path(folder).is_dir() for folder in folders)


def test_other_ranks_make_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert Path(RunFolder(str(tmp_path), name="x").log_dir).name == "version_0"
    assert list(tmp_path.iterdir()) == []


def test_a_version_that_is_given_is_taken(tmp_path: Path):
    assert Path(RunFolder(str(tmp_path), version="cell").log_dir) == tmp_path / "cell"
    assert Path(RunFolder(str(tmp_path), version=7).log_dir) == tmp_path / "version_7"


def test_a_refused_run_deletes_only_a_folder_that_it_made_and_did_not_use(tmp_path: Path):
    refused = RunFolder(str(tmp_path / "runs"))
    refused.log_hyperparams({"a": 1})
    refused.save()
    refused.discard()
    assert not (tmp_path / "runs").exists()
    used = RunFolder(str(tmp_path / "runs"))
    used.log_metrics({"loss": 0.5}, step=1)
    (Path(used.log_dir) / "checkpoints").mkdir()
    (Path(used.log_dir) / "checkpoints" / "last.ckpt").write_text("")
    used.discard()
    (tmp_path / "runs" / "mine").mkdir()
    named = RunFolder(str(tmp_path / "runs"), version="mine")
    named.log_metrics({"loss": 0.5}, step=1)
    named.discard()
    assert {folder.name for folder in (tmp_path / "runs").iterdir()} == {"version_0", "mine"}
