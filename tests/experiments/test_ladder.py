"""Ladders whose runs train nothing: their steps, what is trained and what only tested, and the report."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from grid_runs import FakeRunner, Process

from seqrec.cli import main
from seqrec.errors import InputError, MissingInputError
from seqrec.evaluation.results import read_results
from seqrec.evaluation.results.intervals import sign_flip_p_values
from seqrec.experiments import runner
from seqrec.experiments.ladder import benchmark_ladder, plan_ladder, read_ladder

CONFIGS = Path(__file__).parents[2] / "configs" / "fragments"
SHARED: dict[str, Any] = {"data": "ml_1m", "length": 50, "model": "SASRec", "budget": "epochs=4", "seed": 0}
STEPS: list[dict[str, Any]] = [
    {"name": "seen in", "part": "protocol", "set": {"protocol.filter_seen": False, "model.loss": "BCE"}},
    {"name": "seen out", "part": "protocol", "set": {"protocol.filter_seen": True}},
    {"name": "last epoch", "part": "protocol", "checkpoint": "last"},
    {"name": "softmax", "part": "recipe", "from": "seen out", "set": {"model.loss": "FullSoftmax"}},
    {"name": "Mamba", "part": "recipe", "model": "MambaRec"},
]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRunner:
    """A runner that stands in for all commands, in a folder with the ladder `steps.yaml`."""
    hits = {"seen_in": 0.2, "seen_out": 0.4, "last_epoch": 0.4, "softmax": 0.9, "Mamba": 0.9}

    def outcome(place: str, options: dict[str, str]) -> dict[str, Any]:
        label = place.split("/")[3]
        return {"model": place.split("/")[2], "hits": hits[label], "seed": list(hits).index(label)}

    found = FakeRunner(outcome)
    monkeypatch.setattr(runner, "start", found)
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.001)
    monkeypatch.chdir(tmp_path)
    Path("steps.yaml").write_text(yaml.safe_dump({**SHARED, "steps": STEPS}))
    return found


def run(**arguments: Any) -> dict[str, Any]:
    """Run the ladder, and return the content of its JSON."""
    benchmark_ladder("steps.yaml", configs=str(CONFIGS), device="cpu", results="kept", **arguments)
    return dict(json.loads(Path("kept/ladder.json").read_text()))


def test_steps_of_the_protocol_alone_are_tested_on_the_same_model(fake: FakeRunner):
    rows = run()["steps"]
    assert fake.calls == [
        "fit ml_1m/50/SASRec/seen_in/seed_0",
        "test ml_1m/50/SASRec/seen_out/seed_0",
        "test ml_1m/50/SASRec/last_epoch/seed_0",
        "fit ml_1m/50/SASRec/softmax/seed_0",
        "fit ml_1m/50/MambaRec/Mamba/seed_0",
    ]
    assert [(row["step"], row["from"], row["trained"]) for row in rows] == [
        (1, None, True),
        (2, 1, False),
        (3, 2, False),
        (4, 2, True),
        (5, 4, True),
    ]
    assert fake.options["ml_1m/50/SASRec/softmax/seed_0"] == {
        "protocol.filter_seen": "true",
        "model.loss": "FullSoftmax",
    }


def test_each_step_is_compared_with_the_one_that_it_changes(fake: FakeRunner):
    content = run()
    assert (content["schema"], content["ladder"]) == ("seqrec-ladder-1", "steps")
    row, base = content["steps"][3], content["steps"][1]
    values = [
        read_results(f"ladder/cells/ml_1m/50/SASRec/{name}/seed_0/run").metrics(["HR@10", "NDCG@10"])
        for name in ("softmax", "seen_out")
    ]
    difference = values[0] - values[1]
    assert row["metrics"]["NDCG@10"]["mean"] == pytest.approx(values[0][:, 1].mean())
    assert row["metrics"]["NDCG@10"]["low"] < values[0][:, 1].mean() < row["metrics"]["NDCG@10"]["high"]
    assert row["change"]["HR@10"]["mean"] == pytest.approx(
        row["metrics"]["HR@10"]["mean"] - base["metrics"]["HR@10"]["mean"]
    )
    p_values = sign_flip_p_values(difference, resamples=2000, seed=0)
    assert [row["change"][name]["p"] for name in ("HR@10", "NDCG@10")] == pytest.approx(p_values)
    assert content["steps"][0]["change"] is None
    assert row["costs"] == {
        "train_seconds": 10.0,
        "epoch_seconds": 2.5,
        "test_seconds": 10.0,
        "peak_memory": 200 << 20,
        "epochs": 4,
        "steps": 80,
        "events": 1000,
        "parameters": 3000,
    }
    lines = Path("kept/ladder.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert cells[5][:4] == ["4", "softmax", "2", "SASRec"]
    assert cells[3][3] == "SASRec ="
    assert cells[5][6] == f"{values[0][:, 1].mean():.4f}"
    assert cells[5][8:10] == [f"{difference[:, 1].mean():+.4f}", f"{p_values[1]:.4f}"]
    assert Path("kept/ladder.png").is_file()


def test_other_users_are_not_compared(fake: FakeRunner):
    outcome = fake.outcome
    fake.outcome = lambda place, options: outcome(place, options) | {"users": 50 if "Mamba" in place else 60}
    rows = run()["steps"]
    assert rows[4]["change"] is None
    assert rows[3]["change"] is not None


def test_users_of_another_log_are_not_compared(fake: FakeRunner):
    steps = [*STEPS[:4], {**STEPS[4], "data": "ml_1m_sasrec"}]
    Path("steps.yaml").write_text(yaml.safe_dump({**SHARED, "steps": steps}))
    assert run()["steps"][4]["change"] is None


def test_a_killed_ladder_resumes_without_its_run_folders(fake: FakeRunner, monkeypatch: pytest.MonkeyPatch):
    # It takes most of the time.
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    fake.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        run(folder="one")
    fake.stop_at = None
    run(folder="two", jobs=2)
    # The model of the step that was interrupted is gone with its folder.
    again = ["fit ml_1m/50/SASRec/seen_in/seed_0", "test ml_1m/50/SASRec/last_epoch/seed_0"]
    others = ["fit ml_1m/50/SASRec/softmax/seed_0", "fit ml_1m/50/MambaRec/Mamba/seed_0"]
    assert sorted(fake.calls[3:]) == sorted([*again, *others])
    assert not Path("kept/ladder.png").exists()


def test_steps_of_the_shipped_ladder_are_commands_that_fit_accepts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    parsed: dict[str, dict[str, Any]] = {}
    fake = FakeRunner()

    def parse(words: Sequence[str], log: Path, environment: dict[str, str]) -> Process:
        name = log.parent.parent.name
        # Settings accumulate: what these four do not set, later steps replace.
        if name.startswith(("100_sampled", "train_on", "softmax_over_512", "Mamba")):
            capsys.readouterr()
            with pytest.raises(SystemExit):
                main([*words[1:], "--print_config"])
            parsed[name] = yaml.safe_load(capsys.readouterr().out)
        return fake(words, log, environment)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["seqrec"])
    monkeypatch.setattr(runner, "start", parse)
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    benchmark_ladder(paths=["ml_1m=a/ml-1m.zip"], configs=str(CONFIGS), device="cpu")
    assert len(read_ladder("ml_1m")["steps"]) == len(fake.calls)
    sampled, trained_on, softmax, mamba = parsed.values()
    assert sampled["protocol"]["init_args"]["candidates"]["init_args"]["count"] == 100
    loss = sampled["model"]["init_args"]["loss"]
    assert (loss["class_path"].rpartition(".")[2], loss["init_args"]["negatives"]["init_args"]["num_negatives"]) == (
        "BCE",
        1,
    )
    assert trained_on["data"]["split"]["init_args"]["train_on_validation"] is True
    assert trained_on["checkpoint"]["monitor"] is None
    assert softmax["checkpoint"]["monitor"] == "val_NDCG@10"
    assert softmax["data"]["source"]["init_args"]["path"] == "a/ml-1m.zip"
    assert mamba["model"]["class_path"].endswith("MambaRec")
    assert mamba["model"]["init_args"]["time"]["request"] is True
    assert mamba["model"]["init_args"]["num_layers"] == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"part": "model"}, r"step 2, 'b': part='model' must be protocol or recipe"),
        ({"checkpoint": "first"}, "checkpoint='first' must be best or last"),
        ({"from": "c"}, "from='c' is no earlier step; earlier: a"),
        ({"name": "a"}, "step 2, 'a': an earlier step has the same name"),
        ({"checkpoint": "last", "model": "GRU4Rec"}, "trains a model and tests its best checkpoint"),
        ({"sets": {}}, "step 2: sets is not known; known: name, part"),
        ({"name": ""}, "step 2: name is missing"),
        ({"length": "50"}, "step 2: length='50' must be of type int"),
    ],
    ids=str,
)
def test_a_step_that_makes_no_sense_is_refused(changed: dict[str, Any], message: str, tmp_path: Path):
    steps = [{"name": "a", "part": "protocol"}, {"name": "b", "part": "protocol", **changed}]
    file = tmp_path / "steps.yaml"
    file.write_text(yaml.safe_dump({**SHARED, "steps": steps}))
    with pytest.raises(InputError, match=message):
        plan_ladder(read_ladder(str(file)))


def test_arguments_that_make_no_sense_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"paths='ml-1m.zip' must be the name of a log's fragments and its file"):
        benchmark_ladder(paths=["ml-1m.zip"])
    with pytest.raises(InputError, match="paths: no step reads ml1m, only ml_1m, ml_1m_sasrec"):
        benchmark_ladder(paths=["ml1m=ml-1m.zip"])
    with pytest.raises(MissingInputError, match="config 'ladders/ml_2m' is neither a file nor a config"):
        benchmark_ladder("ml_2m")
    Path("list.yaml").write_text("- a")
    with pytest.raises(InputError, match="must have keys such as data, length"):
        benchmark_ladder("list.yaml")
    assert np.all([path.name == "list.yaml" for path in tmp_path.iterdir()])
