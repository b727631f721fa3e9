"""Sweeps as one types them: trials, pruning, failures, kills, and the best config."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from sweep_runs import SMALL, SWEEP, write

from seqrec.cli import main
from seqrec.experiments.sweep import SweepSettings
from seqrec.experiments.sweep.study import ask, open_study
from seqrec.runs import read_summary

pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]
COMMAND = ("sweep", "--config", "sweep.yaml")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["seqrec"])


def rows(folder: str = "sweep") -> list[dict[str, str]]:
    with Path(folder, "trials.csv").open() as file:
        return list(csv.DictReader(file))


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main((*COMMAND, *words))
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_sweep_runs_its_trials_in_folders_of_their_own_and_goes_on_when_told_more(
    capsys: pytest.CaptureFixture[str],
):
    write(Path.cwd(), trials=1)
    main(COMMAND)
    main((*COMMAND, "--trials", "2"))
    output = capsys.readouterr().out
    found = rows()
    assert [row["state"] for row in found] == ["complete"] * 2
    assert len({row["model.optimizer.lr"] for row in found}) == 2
    for number, row in enumerate(found):
        folder = Path(f"sweep/trial_{number:04d}")
        summary = read_summary(folder)
        assert (summary.status, str(summary.epochs)) == ("finished", row["epochs"])
        assert float(row["val_NDCG@10"]) == pytest.approx(summary.best["value"])
        config = yaml.safe_load((folder / "config.yaml").read_text())
        chosen = config["model"]["init_args"]
        assert chosen["optimizer"]["init_args"]["lr"] == float(row["model.optimizer.lr"])
        assert 1e-4 <= float(row["model.optimizer.lr"]) <= 0.1
        assert chosen["d_model"] == int(row["model.d_model"]) in (2, 4, 6)
        assert config["data"]["train_windows"]["class_path"].endswith(row["data.train_windows"])
    best = max(range(2), key=lambda number: float(found[number]["val_NDCG@10"]))
    assert f"best: trial {best}, seqrec fit --config sweep/best.yaml" in output
    # The best config is a run like any other, and repeats the trial.
    main(("fit", "--config", "sweep/best.yaml"))
    (folder,) = Path("runs/sweep_best").iterdir()
    assert read_summary(folder).best["value"] == pytest.approx(float(found[best]["val_NDCG@10"]), rel=1e-6)
    callbacks = yaml.safe_load(Path("sweep/best.yaml").read_text())["trainer"]["callbacks"]
    assert [callback["class_path"] for callback in callbacks] == ["lightning.pytorch.callbacks.LearningRateMonitor"]


def test_a_trial_below_the_others_is_pruned_and_not_tested(capsys: pytest.CaptureFixture[str]):
    pruner = {"class_path": "ThresholdPruner", "init_args": {"upper": 0.0, "n_warmup_steps": 1}}
    # Above 0 behind the second epoch: all are pruned there, so that the sweep has no best.
    write(Path.cwd(), pruner=pruner, trials=1, fixed={"trainer.max_epochs": 5})
    assert "no trial of the sweep in sweep completed; see trials.csv" in refusal(capsys)
    assert [(row["state"], row["epochs"]) for row in rows()] == [("pruned", "2")]
    summary = read_summary("sweep/trial_0000")
    assert (summary.epochs, summary.test) == (2, None)


def killed_sweep(folder: Path) -> None:
    """Start a sweep, and kill it when its first trial has trained for an epoch."""
    process = subprocess.Popen(
        [sys.executable, "-m", "seqrec", *COMMAND],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    last = folder / "sweep" / "trial_0000" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_a_sweep_that_was_killed_repeats_the_trial_and_goes_on_as_one_that_was_not(tmp_path: Path):
    # So long that the kill comes in the middle of it.
    endless = {
        **SMALL,
        "trainer": {**SMALL["trainer"], "max_epochs": 1000},
        "early_stopping": {"patience": 1000},
    }
    settings = SweepSettings(**write(tmp_path, trials=2))
    Path("small.yaml").write_text(yaml.safe_dump(endless))
    killed_sweep(tmp_path)
    assert read_summary("sweep/trial_0000").status == "running"
    write(tmp_path, trials=2)
    main(COMMAND)
    found = rows()
    assert [row["state"] for row in found] == ["fail", "complete", "complete"]
    assert [row["note"] for row in found] == ["killed", "repeats trial 0", ""]
    chosen = [tuple(row[key] for key in SWEEP["parameters"]) for row in found]
    assert chosen[0] == chosen[1]
    # What a sweep chooses that nobody killed.
    with open_study(replace(settings, folder="whole")) as study:
        expected = [ask(study, settings).params for _ in range(2)]
    assert chosen[1:] == [tuple(str(trial[key]) for key in SWEEP["parameters"]) for trial in expected]
