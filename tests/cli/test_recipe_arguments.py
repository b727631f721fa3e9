"""What `seqrec fit` chooses by the log, and what it leaves to people."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_runs import refusal

from seqrec.cli import main
from seqrec.cli.recipe_arguments import chosen_arguments, explicit_options
from seqrec.cli.run_config import config_to_continue, content_of
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic
from seqrec.models import SASRec, SequentialRecommender
from seqrec.runs.summary import read_summary

pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]
CHOSEN = "chosen by the size of the log"
WORDS = (
    *("--model", "GRU4Rec", "--model.d_model", "8", "--data.source", "Synthetic", "--data.source.num_users", "30"),
    *("--data.source.num_items", "40", "--data.source.mean_events", "12", "--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which a run of 12 updates was made, and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch, (folder / "printed.txt").open("w") as printed:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["seqrec"])
        patch.setattr(sys, "stdout", printed)
        main(["fit", *WORDS, "--trainer.max_steps", "12", "--model.optimizer.lr", "0.01"])
    return folder, (folder / "printed.txt").read_text()


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text())
    return found


def test_config_of_the_run_has_what_was_chosen_and_what_was_given(run: tuple[Path, str]):
    folder, printed = run
    config = config_of(folder / "runs/version_0")
    model = config["model"]["init_args"]
    assert CHOSEN in printed
    assert "are set: model.d_model, trainer.max_steps\n" in printed
    assert (model["d_model"], model["dropout"], model["positions"]) == (8, 0.5, False)
    assert model["loss"]["class_path"] == "seqrec.FullSoftmax"
    assert model["item_table"]["temperature"] == 0.05
    # A single argument of the optimizer changes only that one.
    assert model["optimizer"]["init_args"]["lr"] == 0.01
    assert model["optimizer"]["init_args"]["schedule"]["class_path"] == "seqrec.WarmupCosine"
    assert (config["data"]["max_length"], config["data"]["max_tokens"]) == (50, 1000)
    assert config["trainer"]["max_steps"] == 12
    assert config["validation"]["every_n_steps"] == 1
    assert config["recipe"] is False


def test_summary_states_why_training_ended(run: tuple[Path, str]):
    summary = read_summary(run[0] / "runs/version_0")
    assert summary.steps == 12
    assert summary.ended == {"by": "budget", "step": 12}


@pytest.mark.parametrize("words", [["--ckpt", "runs/version_0"], ["--config", "runs/version_0/config.yaml"]])
def test_a_run_from_another_ones_config_does_not_choose_again(
    words: list[str],
    run: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    shutil.copytree(run[0], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    before = config_of(Path("runs/version_0"))
    main(["fit", *words, "--trainer.max_steps", "14"])
    assert CHOSEN not in capsys.readouterr().out
    after = config_of(Path("runs/version_1"))
    assert after["trainer"].pop("max_steps") == 14
    del before["trainer"]["max_steps"], before["data"]["store"], after["data"]["store"]
    for part in ("model", "data", "validation", "early_stopping"):
        assert after[part] == before[part]
    assert read_summary("runs/version_1").steps == 14


def test_a_run_that_starts_from_a_checkpoint_has_its_model_and_another_budget(
    run: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(run[0], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    before = config_of(Path("runs/version_0"))
    main(["fit", "--warm_start", "last", "--trainer.max_steps", "2", "--warm_start.new_items", "random"])
    printed = capsys.readouterr().out
    assert "chosen to continue from runs/version_0/checkpoints/best.ckpt" in printed
    after = config_of(Path("runs/version_1"))
    assert after["warm_start"]["ckpt"] == "runs/version_0/checkpoints/best.ckpt"
    assert after["warm_start"]["new_items"] == "random"
    assert after["trainer"]["max_steps"] == 2
    schedules = [each["model"]["init_args"]["optimizer"]["init_args"].pop("schedule") for each in (before, after)]
    assert schedules[1]["init_args"]["warmup_steps"] == 0
    assert after["model"] == before["model"]
    # Without a recipe, what is left of the optimizer is all that the run would have.
    left = content_of(config_to_continue(Path("runs/version_0/checkpoints/best.ckpt")) or "")
    assert left["model"] == before["model"]
    line = refusal(capsys, "fit", "--warm_start", "last", "--ckpt", "last")
    assert "--ckpt resumes a run, and --warm_start begins one" in line
    line = refusal(capsys, "fit", "--warm_start", "runs/version_0", "--model.d_model", "4", "--trainer.max_steps", "2")
    assert "d_model=8 (here 4)" in line
    assert "--warm_start nothing: there is no such checkpoint" in refusal(capsys, "fit", "--warm_start", "nothing")
    torch.save({"state_dict": {}, "hyper_parameters": {}}, "baseline.ckpt")
    Path("damaged.ckpt").write_bytes(b"damaged")
    for file, message in (
        ("baseline.ckpt", "warm_start.ckpt has no settings of an optimizer"),
        ("damaged.ckpt", "is damaged"),
    ):
        line = refusal(
            capsys, "fit", "--config", "runs/version_0/config.yaml", "--warm_start", file, "--recipe", "true"
        )
        assert message in line


def test_recipe_false_leaves_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    main(["fit", *WORDS, "--recipe", "false", "--trainer.fast_dev_run", "true"])
    assert CHOSEN not in capsys.readouterr().out
    main(["fit", *WORDS, "--trainer.fast_dev_run", "true"])
    assert CHOSEN in capsys.readouterr().out


def test_a_patience_below_the_interval_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    words = ["--early_stopping.patience_steps", "3", "--validation.every_n_steps", "4"]
    line = refusal(capsys, "fit", *WORDS, *words)
    assert "early_stopping.patience_steps=3 must be at least validation.every_n_steps=4" in line


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SequenceDataModule:
    source = Synthetic(num_users=40, num_items=60, mean_events=12)
    return SequenceDataModule(source, store=str(tmp_path_factory.mktemp("log") / "store"))


def chosen(data: SequenceDataModule, *argv: str, model: type = SASRec, **config: Any) -> set[str]:
    """The options of one level below their part that are chosen."""
    found, _ = chosen_arguments(data, model, argv, {"data": {}, "trainer": {}, **config})
    return {f"{part}.{name}" for part, values in found.items() for name in values}


EVERY = {
    *("data.max_length", "data.train_windows", "data.max_tokens", "model.d_model", "model.positions", "model.dropout"),
    *("model.loss", "model.item_table", "model.optimizer", "trainer.max_steps", "validation.every_n_steps"),
    "early_stopping.patience_steps",
}


@pytest.mark.parametrize(
    ("argv", "left_out"),
    [
        ([], set()),
        (["--model.dropout", "0.1"], {"model.dropout"}),
        (["--model.init_args.dropout=0.1"], {"model.dropout"}),
        (["--config", "model: {class_path: SASRec, init_args: {dropout: 0.1}}\n"], {"model.dropout"}),
        (["--config", "model: {class_path: SASRec}\n", "--model", "SASRec"], set()),
        (["--data.max_tokens", "null"], {"data.max_tokens"}),
        (["--data.batch_size", "16"], {"data.max_tokens"}),
        (["--model.loss", "BCE"], {"model.loss", "model.item_table"}),
        (["--model.loss.negatives.num_negatives", "4"], {"model.loss", "model.item_table"}),
        (["--model.item_table.bias", "true"], set()),
        (["--model.item_table", "null"], {"model.item_table"}),
        (["--model.optimizer.lr", "0.1"], set()),
        (["--model.optimizer", "Adam", "--model.optimizer.lr", "0.1"], set()),
        (["--model.optimizer", "AdamW"], {"model.optimizer"}),
        (["--trainer.max_epochs", "3"], {"trainer.max_steps"}),
        (["--early_stopping.patience", "3"], {"early_stopping.patience_steps"}),
        (
            ["--trainer.check_val_every_n_epoch", "1"],
            {"validation.every_n_steps", "early_stopping.patience_steps"},
        ),
    ],
)
def test_explicit_arguments_win(argv: list[str], left_out: set[str], data: SequenceDataModule):
    assert chosen(data, *argv) == EVERY - left_out


def test_a_class_without_an_argument_gets_none(data: SequenceDataModule):
    own = {"model.d_model", "model.dropout", "model.positions"}
    assert chosen(data, model=SequentialRecommender) == EVERY - own


def test_explicit_options_are_those_of_words_and_of_configs_of_several_commands():
    words = ["--config", "fit:\n  trainer: {max_steps: 3}\n", "--data.source=Table", "--trainer.callbacks+", "[]"]
    assert explicit_options(words) == {"trainer.max_steps": 3, "data.source": "Table", "trainer.callbacks": []}
