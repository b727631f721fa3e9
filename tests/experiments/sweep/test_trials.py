"""What a sweep does with trials that report, fail or stop, without training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from filelock import FileLock
from optuna.trial import TrialState
from sweep_runs import SWEEP

from seqrec.cli import main
from seqrec.errors import InputError
from seqrec.experiments.sweep import SweepSettings, run_sweep
from seqrec.experiments.sweep.study import open_study

pytestmark = pytest.mark.process

REPOSITORY = Path(__file__).parents[3]
CONFIG = {
    "trainer": {"callbacks": [{"class_path": "seqrec.experiments.sweep.TrialReporter"}], "logger": None},
    "data": 1,
}


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").touch()


def settings(**changes: Any) -> SweepSettings:
    return SweepSettings(**{**SWEEP, **changes})


class Fit:
    """Stands for a trial's `fit`: reports values, by trial, or raises."""

    def __init__(self, sweep: SweepSettings, outcomes: dict[int, list[float] | BaseException]) -> None:
        self.sweep, self.outcomes = sweep, outcomes
        self.words: list[list[str]] = []

    def __call__(self, words: Sequence[str]) -> None:
        number = len(self.words)
        self.words.append(list(words))
        outcome = self.outcomes.get(number, [0.1])
        if isinstance(outcome, BaseException):
            raise outcome
        folder = Path(self.sweep.folder) / f"trial_{number:04d}"
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
        with open_study(self.sweep) as study:
            trial = optuna.trial.Trial(study, study.get_trials()[number]._trial_id)
            for epoch, value in enumerate(outcome):
                trial.report(value, epoch)


def states(sweep: SweepSettings) -> list[TrialState]:
    with open_study(sweep) as study:
        return [trial.state for trial in study.get_trials()]


def test_the_value_of_a_trial_is_its_best_epoch():
    for direction, best in (("maximize", 1), ("minimize", 0)):
        sweep = settings(folder=direction, direction=direction)
        said = run_sweep(sweep, Fit(sweep, {0: [0.2, 0.3, 0.1], 1: [0.4, 0.2], 2: [0.3]}))
        with open_study(sweep) as study:
            expected = [0.3, 0.4, 0.3] if direction == "maximize" else [0.1, 0.2, 0.3]
            assert [trial.value for trial in study.get_trials()] == expected
        assert f"best: trial {best}, seqrec fit --config {direction}/best.yaml" in said
        config = yaml.safe_load(Path(direction, "best.yaml").read_text())
        assert config["trainer"]["callbacks"] is None
        assert config["data"] == 1


def test_the_command_of_a_trial_has_what_the_sweep_says():
    sweep = settings(fixed={"trainer.max_epochs": 3, "data.val_users": None}, metric="val_HR@10", trials=1)
    fit = Fit(sweep, {})
    run_sweep(sweep, fit)
    (words,) = fit.words
    assert words[:3] == ["fit", "--config", "small.yaml"]
    assert {"--trainer.max_epochs=3", "--data.val_users=null"} < set(words)
    assert {"--checkpoint.monitor=val_HR@10", "--early_stopping.mode=max"} < set(words)
    assert sum(word.startswith("--model.optimizer.lr=") for word in words) == 1


def test_a_trial_that_fails_is_left_out(capsys: pytest.CaptureFixture[str]):
    sweep = settings()
    said = run_sweep(sweep, Fit(sweep, {1: RuntimeError("no room"), 2: SystemExit(2)}))
    assert states(sweep) == [TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL]
    assert "trial 1 failed: RuntimeError: no room" in capsys.readouterr().out
    assert "its command was refused, see above" in said
    # They are not tried again.
    run_sweep(sweep, Fit(sweep, {}))
    assert len(states(sweep)) == 3


def test_a_first_trial_that_fails_ends_the_sweep_until_it_is_started_again():
    sweep = settings(trials=1)
    with pytest.raises(InputError, match="the first trial failed, as the others would: RuntimeError: no room"):
        run_sweep(sweep, Fit(sweep, {0: RuntimeError("no room")}))
    fit = Fit(sweep, {})
    fit.words.append([])  # the trial that failed
    run_sweep(sweep, fit)
    assert states(sweep) == [TrialState.FAIL, TrialState.COMPLETE]


def test_a_trial_that_never_validates_is_refused():
    sweep = settings()
    with pytest.raises(InputError, match="the trial ended without a validation: let it train for an epoch and"):
        run_sweep(sweep, Fit(sweep, {0: []}))


@pytest.mark.parametrize("end", [SystemExit(130), KeyboardInterrupt()], ids=str)
def test_a_signal_ends_the_sweep_and_the_trial_is_repeated(end: BaseException):
    sweep = settings(trials=2)
    with pytest.raises(type(end)):
        run_sweep(sweep, Fit(sweep, {1: end}))
    assert states(sweep) == [TrialState.COMPLETE, TrialState.RUNNING]
    fit = Fit(sweep, {})
    fit.words += [[], []]
    run_sweep(sweep, fit)
    assert states(sweep) == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    with open_study(sweep) as study:
        _, killed, repeated = study.get_trials()
    assert killed.params == repeated.params


def test_two_processes_do_not_run_one_sweep():
    sweep = settings()
    Path(sweep.folder).mkdir()
    with (
        FileLock("sweep/.lock"),
        pytest.raises(InputError, match="another command is running in sweep; wait, or choose"),
    ):
        run_sweep(sweep, Fit(sweep, {}))


def test_a_folder_keeps_to_its_sweep():
    sweep = settings(trials=1)
    run_sweep(sweep, Fit(sweep, {}))
    other = settings(metric="val_HR@10")
    with pytest.raises(InputError, match=r"sweep contains a sweep with metric='val_NDCG@10', now it is 'val_HR@10'"):
        run_sweep(other, Fit(other, {}))


FLOAT = {"type": "float", "low": 0.1, "high": 0.5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {}}, "parameters is empty"),
        (
            {"parameters": {"a.b": {"low": 1}}},
            r"parameters\.a\.b must have a type, one of float, int, categorical",
        ),
        ({"parameters": {"a": {"type": "real"}}}, r"parameters\.a must have a type"),
        (
            {"parameters": {"a": {**FLOAT, "lo": 1}}},
            r"parameters\.a\.lo is not known; float takes high, log, low, step",
        ),
        ({"parameters": {"a": {"type": "int", "low": 1}}}, r"parameters\.a\.high is missing"),
        ({"parameters": {"a": {**FLOAT, "low": "x"}}}, r"parameters\.a\.low='x' must be a number"),
        ({"parameters": {"a": {"type": "int", "low": 1.5, "high": 2}}}, r"a\.low=1\.5 must be an integer"),
        ({"parameters": {"a": {**FLOAT, "low": 0.9}}}, r"parameters\.a\.low=0\.9 must be below high=0\.5"),
        ({"parameters": {"a": {**FLOAT, "low": 0.0, "log": True}}}, r"parameters\.a: .*low"),
        (
            {"parameters": {"a": {"type": "categorical", "choices": 3}}},
            r"parameters\.a\.choices=3 must be a list",
        ),
        ({"fixed": {"model.d_model": 3}}, r"model\.d_model is in parameters and in fixed"),
        ({"trials": 0}, "trials=0 must be at least 1"),
        ({"configs": ["no.yaml"]}, r"config 'no\.yaml' is neither a file nor"),
        (
            {"pruner": {"class_path": "MedianPrune"}},
            r"pruner\.class_path='MedianPrune' .*did you mean MedianPruner\?",
        ),
        ({"pruner": {"class_path": "MedianPruner", "args": 1}}, r"pruner\.args is not known"),
        ({"pruner": {"class_path": "MedianPruner", "init_args": {"x": 1}}}, r"pruner\.init_args: .*'x'"),
        ({"sampler": {"class_path": "TPE"}}, r"sampler\.class_path='TPE' is not known; known: .*TPESampler"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_cannot_be_are_refused_by_their_key(changes: dict[str, Any], message: str):
    sweep = settings(**changes)
    with pytest.raises(InputError, match=message):
        run_sweep(sweep, Fit(sweep, {}))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("trial: 3", "trial"),
        ("trials: many", "trials"),
        ("direction: up", "direction"),
        ("configs: 3", "configs"),
    ],
)
def test_a_yaml_that_cannot_be_is_refused_by_its_key(line: str, said: str, capsys: pytest.CaptureFixture[str]):
    Path("sweep.yaml").write_text(yaml.safe_dump(SWEEP) + line + "\n")
    with pytest.raises(SystemExit) as stop:
        main(("sweep", "--config", "sweep.yaml"))
    assert stop.value.code == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert said in message


def test_without_optuna_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r'needs Optuna, which is not installed: pip install "seqrec\[sweep\]"'):
        run_sweep(settings(), Fit(settings(), {}))


def test_the_example_is_a_sweep_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    example = yaml.safe_load((REPOSITORY / "configs/sweep/quickstart.yaml").read_text())
    SweepSettings(**example).check()
