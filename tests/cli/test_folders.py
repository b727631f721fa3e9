"""Runs in another folder: where they are written, and used from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from small_runs import FIT, SMALL, checkpoint, metrics, refusal, write_config

import seqrec
from seqrec.cli import main

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("in_empty_folder")]


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


@pytest.mark.parametrize("loss", ["missing", "empty"])
def test_a_run_whose_config_is_lost_is_resumed_and_tested(loss: str, capsys: pytest.CaptureFixture[str]):
    main(FIT)
    config = Path("runs/version_0/config.yaml")
    config.unlink() if loss == "missing" else config.write_text("")
    main(["test", "--ckpt", "runs/version_0"])
    assert "the config in runs/version_0/checkpoints/best.ckpt is used" in capsys.readouterr().err
    assert metrics("runs/version_1") == metrics("runs/version_0")
    # The command that a killed run prints.
    last = "runs/version_0/checkpoints/last.ckpt"
    main(["fit", "--config", str(config), "--ckpt_path", last, "--trainer.max_epochs", "3"])
    assert checkpoint()["epoch"] == 2


def test_a_run_is_used_from_another_folder(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    Path("log.csv").write_text(
        "user_id,item_id,timestamp\n" + "".join(f"{u},{(u + t) % 9},{t}\n" for u in range(6) for t in range(6))
    )
    Path("items.csv").write_text("id,year\n" + "".join(f"{item},{1990 + item}\n" for item in range(9)))
    table = {"path": "log.csv", "items": {"path": "items.csv", "key": "id"}}
    source = {"class_path": "Table", "init_args": table}
    write_config(data=SMALL["data"] | {"source": source, "schema": {"items": {"year": "numeric"}}})
    main(FIT)
    here = Path.cwd()
    Path("other").mkdir()
    monkeypatch.chdir("other")
    main(["test", "--ckpt", "../runs/version_0"])
    assert f"the run was started in {here}" in capsys.readouterr().err
    assert metrics("runs/version_0") == metrics("../runs/version_0")
    assert not Path("stores").exists()
    # Without its store the run's log is prepared again.
    shutil.move(here / "stores", here / "gone")
    main(["test", "--ckpt", "../runs/version_0"])
    assert metrics("runs/version_1") == metrics("../runs/version_0")
    (here / "log.csv").unlink()
    shutil.rmtree("stores")
    message = refusal(capsys, "test", "--ckpt", "../runs/version_0")
    assert f"path='log.csv': no such file or folder in {Path.cwd()}, the working folder" in message


@pytest.mark.slow
def test_a_trial_of_a_sweep_is_a_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    parameters = {"model.optimizer.lr": {"type": "float", "low": 0.001, "high": 0.1}}
    sweep = {"folder": "sw", "configs": ["small.yaml"], "parameters": parameters, "trials": 2}
    Path("sweep.yaml").write_text(yaml.safe_dump(sweep))
    main(["sweep", "--config", "sweep.yaml"])
    main(["test", "--ckpt_path", "sw/trial_0000"])
    assert metrics("sw/version_0") == metrics("sw/trial_0000")
    main(["test", "--ckpt_path", "sw"])  # the trial that started last
    assert metrics("sw/version_1") == metrics("sw/trial_0001")
    main(["fit", "--ckpt_path", "sw/trial_0000", "--trainer.max_epochs", "3"])
    assert checkpoint("sw/trial_0000")["epoch"] == 2
    # In a folder without the sweep.
    Path("other").mkdir()
    monkeypatch.chdir("other")
    main(["fit", "--ckpt_path", "../sw/trial_0001", "--trainer.max_epochs", "3"])
    assert checkpoint("../sw/trial_0001")["epoch"] == 2


def test_predict_prints_where_its_lists_are(capsys: pytest.CaptureFixture[str]):
    main(FIT)
    main(["predict", "--ckpt", "last", "--trainer.devices", "1"])
    assert (
        "\nruns/version_1/recommendations: lists of up to 10 items in 1 files\nCoverage@10 " in capsys.readouterr().out
    )
    main(["predict", "--ckpt", "last", "--top_k", "3", "--output", "lists"])
    assert "lists: 90 recommendations to 30 users" in capsys.readouterr().out
