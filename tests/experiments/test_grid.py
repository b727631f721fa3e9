"""Grids whose runs train nothing: what is run, in which order, what is kept, and what a kill leaves."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grid_runs import FakeRunner, Process, write_run

from seqrec.data.progress import Progress
from seqrec.errors import InputError
from seqrec.evaluation.results import read_results
from seqrec.experiments import runner
from seqrec.experiments.grid import Budget, Cell, Settings, run_grid
from seqrec.experiments.grid.cells import plan, values_to_tune
from seqrec.experiments.grid.result import UserMetrics, read_grid
from seqrec.experiments.paper import benchmark_paper
from seqrec.experiments.runner import Slot

CONFIGS = Path(__file__).parents[2] / "configs" / "fragments"
LR, DROPOUT = "model.optimizer.lr", "model.dropout"
# A command of six trials and five cells.
TUNED: dict[str, Any] = {
    "data": ["ml_1m"],
    "lengths": [100, 50],
    "encoders": ["SASRec", "GRU4Rec"],
    "seeds": 1,
    "budget": "steps=80,patience=40,every=20",
    "tune": [f"{LR}=.0001,.001,.01"],
    "configs": str(CONFIGS),
    "device": "cpu",
}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRunner:
    """A runner whose SASRec is best by validation with a step size of .01, and GRU4Rec with .001."""

    def outcome(place: str, options: dict[str, str]) -> dict[str, Any]:
        model = place.split("/")[2]
        lr = options.get(LR)
        # The test metrics would choose otherwise.
        values = {".0001": (0.1, 0.9), ".001": (0.2 if model == "SASRec" else 0.4, 0.5), ".01": (0.3, 0.1)}
        value, hits = values[lr] if lr is not None else (0.05, 0.3)
        return {"model": model, "best": (80 if lr == ".0001" else 60, value), "hits": hits}

    found = FakeRunner(outcome)
    monkeypatch.setattr(runner, "start", found)
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.001)
    monkeypatch.chdir(tmp_path)
    return found


def test_each_encoder_gets_the_values_that_validation_chooses(fake: FakeRunner, capsys: pytest.CaptureFixture[str]):
    benchmark_paper(**TUNED)
    trials = [
        f"fit ml_1m/50/{model}/trials/{LR}={lr}/seed_0"
        for model in TUNED["encoders"]
        for lr in (".0001", ".001", ".01")
    ]
    assert fake.calls[:6] == trials
    # At the shortest length the chosen trial is the cell's own run.
    further = {"fit ml_1m/50/Popularity/seed_0", "fit ml_1m/100/Popularity/seed_0"}
    assert set(fake.calls[6:]) == further | {f"fit ml_1m/100/{model}/seed_0" for model in TUNED["encoders"]}
    assert fake.options["ml_1m/100/SASRec/seed_0"] == {LR: ".01"}
    assert fake.options["ml_1m/100/GRU4Rec/seed_0"] == {LR: ".001"}
    assert fake.options["ml_1m/100/Popularity/seed_0"] == {}
    printed = capsys.readouterr().out.splitlines()
    title = printed.index("ml_1m 50 SASRec: 3 trials by validation, the first is taken")
    rows = [line.split() for line in printed[title + 2 : title + 5]]
    assert rows == [
        [".01", "0.3000", "60", "budget"],
        [".001", "0.2000", "60", "budget"],
        [".0001", "0.1000", "80", "still", "rising"],
    ]
    assert printed[title + 5] == f"{LR} is at the end of its list: a wider one may be better"
    choice = json.loads(Path("paper/results/ml_1m/50/SASRec/tuned.json").read_text())
    assert choice["chosen"] == [f"{LR}=.01"]
    assert [trial["value"] for trial in choice["trials"]] == [0.1, 0.2, 0.3]
    cells = {(run["length"], run["model"]): run for run in read_grid(Path("paper"))}
    assert len(cells) == 6
    assert cells[50, "SASRec"]["changes"] == [f"{LR}=.01"]
    assert cells[50, "SASRec"]["validation"] == {
        "metric": "val_NDCG@10",
        "value": 0.3,
        "step": 60,
        "ended_by": "budget",
        "rising": False,
    }


def test_a_killed_grid_resumes_with_other_jobs_and_without_its_run_folders(fake: FakeRunner):
    for stop in (2, 5, 8):
        fake.stop_at = stop
        with pytest.raises(KeyboardInterrupt):
            benchmark_paper(**TUNED, results="kept", folder="one")
        shutil.rmtree("one")
    fake.stop_at = None
    benchmark_paper(**TUNED, results="kept", folder="two", jobs=3)
    counts = Counter(fake.calls)
    assert len(counts) == 10
    # Those that a kill interrupted began twice.
    assert sorted(counts.values()) == [1] * 7 + [2] * 3
    shutil.rmtree("two")
    benchmark_paper(**TUNED, results="kept", folder="three")
    assert Counter(fake.calls) == counts


def test_two_commands_share_a_grid_and_run_nothing_twice(fake: FakeRunner, monkeypatch: pytest.MonkeyPatch):
    settings = Settings(CONFIGS, "small", Budget("epochs", 1))
    cells = [Cell("ml_1m", 50, "SASRec", "", seed) for seed in range(4)]
    first_runs, others_wait = threading.Event(), threading.Event()
    main = threading.current_thread()

    def start(words: Sequence[str], log: Path, environment: dict[str, str]) -> Process:
        process = fake(words, log, environment)
        if threading.current_thread() is not main and words[1] == "fit":
            first_runs.set()
            process.is_over = others_wait.is_set
        return process

    def told(line: str) -> None:
        if "another command runs the last 1 cells" in line:
            others_wait.set()

    def command(progress: Progress) -> None:
        run_grid(Path("a"), Path("kept"), cells, settings, [Slot()], progress, "", keep_checkpoints=False)

    monkeypatch.setattr(runner, "start", start)
    other = threading.Thread(target=command, args=[Progress(lambda line: None)])
    other.start()
    assert first_runs.wait(10)
    command(Progress(told))
    other.join()
    assert others_wait.is_set()
    assert sorted(fake.calls) == [f"fit ml_1m/50/SASRec/seed_{seed}" for seed in range(4)]


def test_a_result_of_other_settings_is_neither_taken_nor_overwritten(fake: FakeRunner):
    arguments = {**TUNED, "tune": []}
    benchmark_paper(**arguments)
    before = Path("paper/results/ml_1m/50/SASRec/seed_0.json").read_bytes()
    with pytest.raises(InputError, match=r"other settings, config.trainer.max_steps=80, now it is 90: choose another"):
        benchmark_paper(**{**arguments, "budget": "steps=90,patience=40,every=20"})
    with pytest.raises(InputError, match=r"arguments.model.d_model=None, now it is '8'"):
        benchmark_paper(**{**arguments, "set": ["model.d_model=8"]})
    assert Path("paper/results/ml_1m/50/SASRec/seed_0.json").read_bytes() == before


def test_a_trial_that_diverges_is_a_result_and_one_that_fails_is_none(
    fake: FakeRunner, capsys: pytest.CaptureFixture[str]
):
    errors = {"SASRec/trials/model.optimizer.lr=.01": "DivergenceError: the loss is nan"}
    errors["GRU4Rec/trials/model.optimizer.lr=.01"] = "OSError: the disk is full"
    outcome = fake.outcome
    fake.outcome = lambda place, options: (
        outcome(place, options) | {"error": next((text for name, text in errors.items() if name in place), None)}
    )
    with pytest.raises(
        InputError, match=r"3 of 12 cells failed, see .*log.txt.*; the same command tries them again"
    ) as error:
        benchmark_paper(**TUNED)
    assert "ml_1m 100 GRU4Rec seed 0: a trial failed" in str(error.value)
    assert fake.options["ml_1m/100/SASRec/seed_0"] == {LR: ".001"}
    assert "DivergenceError: the loss is nan" in capsys.readouterr().out
    errors.popitem()
    before = len(fake.calls)
    benchmark_paper(**TUNED)
    assert fake.calls[before:] == [f"fit ml_1m/50/GRU4Rec/trials/{LR}=.01/seed_0", "fit ml_1m/100/GRU4Rec/seed_0"]


def test_no_cell_is_run_if_all_trials_diverge(fake: FakeRunner):
    fake.outcome = lambda place, options: {"error": "DivergenceError: nan" if options else None}
    with pytest.raises(InputError, match=r"ml_1m 50 SASRec seed 0: none of the 3 trials has a validation"):
        benchmark_paper(**TUNED)
    assert len(fake.calls) == 6 + 2


def test_another_test_of_a_model_needs_its_checkpoint_and_no_training(fake: FakeRunner):
    settings = Settings(CONFIGS, "small", Budget("epochs", 1))
    trained = Cell("ml_1m", 50, "SASRec", "", 0)
    seen = replace(trained, label="seen", changes=("protocol.filter_seen=false",), model_of=trained)
    last = replace(trained, label="last", model_of=trained, checkpoint="last")

    def command(*cells: Cell) -> None:
        progress = Progress(lambda line: None)
        run_grid(Path("a"), Path("kept"), cells, settings, [Slot()], progress, "", keep_checkpoints=False)

    command(trained, seen)
    assert fake.calls == ["fit ml_1m/50/SASRec/seed_0", "test ml_1m/50/SASRec/seen/seed_0"]
    assert fake.options["ml_1m/50/SASRec/seen/seed_0"] == {"protocol.filter_seen": "false"}
    costs = [json.loads(Path(f"kept/ml_1m/50/SASRec{name}/seed_0.json").read_text())["steps"] for name in ("", "/seen")]
    assert costs == [80, 80]
    assert not list(Path("a").rglob("*.ckpt"))
    # The checkpoint is gone, so the model is trained again for the test that is new.
    command(trained, seen, last)
    assert fake.calls[2:] == ["fit ml_1m/50/SASRec/seed_0", "test ml_1m/50/SASRec/last/seed_0"]
    command(trained, seen, last)
    assert len(fake.calls) == 4


def test_neither_set_nor_tune_replace_what_an_ablation_changes():
    settings = Settings(CONFIGS, "small", Budget("epochs", 1), overrides=("model.dropout=.1", "model.d_model=8"))
    cell = Cell("ml_1m", 50, "SASRec", "dropout_.5", 0, changes=("model.dropout=.3", f"{LR}=.01"))
    assert settings.arguments(cell) == {"model.d_model": "8", LR: ".01"}
    assert settings.arguments(replace(cell, ablation=""))[DROPOUT] == ".3"


def test_a_later_argument_replaces_parts_of_an_earlier_one():
    settings = Settings(CONFIGS, "small", Budget("epochs", 1), overrides=("model.loss=GBCE", "model.loss.t=.5"))
    cell = Cell("ml_1m", 50, "SASRec", "", 0, changes=("model.loss=FullSoftmax",))
    assert settings.arguments(cell) == {"model.loss": "FullSoftmax"}


def test_a_budget_in_updates_sets_validation_and_patience():
    budget = Budget.parse("steps=20000,patience=1600")
    assert budget.config() == {
        "trainer": {"max_epochs": 10_000, "max_steps": 20_000},
        "early_stopping": {"patience": 10_000, "patience_steps": 1600},
        "validation": {"every_n_steps": 200},
    }
    assert Budget.parse(str(budget)) == budget
    assert Budget.parse("epochs=3,every=50").config()["validation"] == {"every_n_steps": 50}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patience=3", "budget='patience=3' must be one of epochs=N, steps=N"),
        ("convergence=3,patience=40", "must be one of .*all but convergence may add ,patience=N"),
        ("steps=3,patience=0", "must be one of"),
        ("steps=3,steps=4", "must be one of"),
        ("steps=90,patience=10,every=20", "patience=10 must be at least every=20"),
    ],
)
def test_a_budget_of_another_form_is_refused(text: str, message: str):
    with pytest.raises(InputError, match=message):
        Budget.parse(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lr"], r"tune='lr' must name an argument and its values, as in model.dropout=.1,.3"),
        (["=1,2"], "must name an argument"),
        (["model.dropout=.1,,.2"], "must name an argument"),
        (["model.dropout=.1,.1"], "names a value twice"),
        (["model.dropout=.1", "model.dropout=.2"], "names the argument twice"),
    ],
)
def test_values_to_tune_of_another_form_are_refused(words: list[str], message: str):
    with pytest.raises(InputError, match=message):
        values_to_tune(words)


def test_trials_whose_places_would_be_one_are_refused():
    arguments = {"data": ["ml_1m"], "lengths": [50], "encoders": ["SASRec"], "baselines": [], "ablations": []}
    with pytest.raises(InputError, match="differ only in signs that a file's name cannot contain"):
        plan(Settings(CONFIGS, "small", Budget("epochs", 1)), **arguments, seeds=1, tune=["model.loss=a/b,a:b"])  # type: ignore[arg-type]


def test_a_result_keeps_the_metrics_of_each_user(tmp_path: Path):
    write_run(tmp_path, users=1000, hits=0.3)
    results = read_results(tmp_path)
    kept = UserMetrics.of(results).as_plain()
    assert np.array_equal(
        UserMetrics.from_plain(json.loads(json.dumps(kept))).values, results.metrics(["HR@10", "NDCG@10"])
    )
    assert len(json.dumps(kept)) < 2000
