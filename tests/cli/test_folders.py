"""Runs in another folder: where they are written, and used from."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import FIT, write_config

import seqrec
from seqrec.cli import main

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["seqrec"])
    write_config()


def test_runs_are_below_the_root_folder_and_found_there():
    root = ["--trainer.default_root_dir", "D"]
    main([*FIT, *root])
    assert not Path("runs").exists()
    assert Path("D/runs/version_0/config.yaml").is_file()
    main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3", *root])
    main(["test", "--ckpt_path", "last", *root])
    assert not Path("runs").exists()
    assert Path("D/runs/version_2/test_metrics.json").is_file()
    # The second run keeps its checkpoints in the folder of the first.
    for name in ("D", "D/runs/version_0", "D/runs/version_1", "D/runs/version_0/checkpoints/best.ckpt"):
        assert seqrec.load(name).title == "GRU4Rec"


def test_a_folder_that_is_chosen_for_runs_stays():
    main([*FIT, "--trainer.default_root_dir", "D", "--trainer.logger.save_dir", "mine"])
    assert Path("mine/version_0/checkpoints/best.ckpt").is_file()
