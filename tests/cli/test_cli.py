from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from seqrec.cli import main
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic
from seqrec.data.store import EventStore
from seqrec.errors import StoppedError
from seqrec.evaluation.protocols import Protocol
from seqrec.models import MambaRec, SequentialRecommender, evaluate
from seqrec.runs import read_summary

pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]

REPOSITORY = Path(__file__).parents[2]
SMALL = {
    "recipe": False,
    "data": {
        "source": {
            "class_path": "Synthetic",
            "init_args": {"num_users": 30, "num_items": 40, "mean_events": 12},
        },
        "max_length": 10,
        "batch_size": 8,
    },
    "model": {"class_path": "MambaRec", "init_args": {"d_model": 8, "num_layers": 1, "d_state": 4}},
    "trainer": {
        "max_epochs": 2,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
}
FIT = ("fit", "--config", "small.yaml")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["seqrec"])
    Path("small.yaml").write_text(yaml.safe_dump(SMALL))


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command says when it refuses, which must be one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    # What comes before shows the progress of preparation.
    assert "Traceback" not in error
    (line,) = (line for line in error.splitlines() if line.startswith("error: "))
    assert error.endswith(f"{line}\n")
    return line


def test_fit_prepares_trains_tests_and_says_where_things_are(capsys: pytest.CaptureFixture[str]):
    main(FIT)
    output = capsys.readouterr().out
    assert "test of 30 users, protocol full-seenout-tiemean-loo" in output
    metrics = "HR@5 +HR@10 +HR@20 +NDCG@5 +NDCG@10 +NDCG@20"
    assert re.search(rf"^model +{metrics} +NDCG@10, 95% interval$", output, re.MULTILINE)
    for name in ("MambaRec", "Popularity", "Markov", "ItemKNN"):
        assert re.search(rf"^{name}( +[01]\.\d{{4}}){{6}} +[01]\.\d{{4}} to [01]\.\d{{4}}$", output, re.MULTILINE)
    folder = Path(re.search(r"run folder: (\S+)", output)[1])
    for name in (
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "config.yaml",
        "metrics.csv",
        "summary.json",
    ):
        assert (folder / name).is_file()
    assert list(folder.glob("events.out.tfevents.*"))
    result = json.loads((folder / "test_metrics.json").read_text())
    assert result["protocol"] == "full-seenout-tiemean-loo"
    assert list(result["models"]) == ["MambaRec", "Popularity", "Markov", "ItemKNN"]
    assert {each["run"] for each in result["baselines"]["comparison"]["estimates"]} == set(result["models"])
    summary = read_summary(folder)
    assert summary.test == pytest.approx(result["models"]["MambaRec"])
    assert summary.resume.startswith(f"seqrec fit --config {folder}/config.yaml --ckpt_path {folder}/checkpoints/")


def test_baselines_are_computed_once_and_left_out_on_demand(capsys: pytest.CaptureFixture[str]):
    main(FIT)
    output = capsys.readouterr().out
    assert output.count("baselines: Popularity, Markov, ItemKNN counted and judged in") == 1
    result = json.loads(Path("runs/version_0/test_metrics.json").read_text())
    assert result["baselines"]["not_worse"]
    for name in result["baselines"]["not_worse"]:
        assert re.search(rf"^{name} is (not worse|better) than MambaRec: its NDCG@10 is ", output, re.MULTILINE)
    assert re.search(r"^to try: more updates ", output, re.MULTILINE)
    main(("test", "--ckpt", "last"))
    again = capsys.readouterr().out
    assert "counted and judged" not in again
    rows = r"^(?:MambaRec|Popularity|Markov|ItemKNN) .*$"
    assert re.findall(rows, again, re.MULTILINE) == re.findall(rows, output, re.MULTILINE)
    (kept,) = Path("stores").glob("*/baselines/Markov-test-*.parquet")
    main(("compare", "runs/version_0", str(kept)))
    assert f"{kept}: Markov" in capsys.readouterr().out
    main(("test", "--ckpt", "runs/version_0", "--protocol.filter_seen", "false"))
    assert re.search(r"^RecentItems( +[01]\.\d{4}){6} ", capsys.readouterr().out, re.MULTILINE)
    main(("test", "--ckpt", "runs/version_0", "--baselines.enabled", "false"))
    assert re.findall(r"^(?:model|MambaRec|Popularity|Markov)\b", capsys.readouterr().out, re.MULTILINE) == [
        "model",
        "MambaRec",
    ]
    assert json.loads(Path("runs/version_3/test_metrics.json").read_text())["baselines"] is None


def test_model_of_the_command_line_loads_by_the_defaults_and_scores_the_same():
    main(FIT)
    said = json.loads(Path("runs/version_0/test_metrics.json").read_text())["models"]["MambaRec"]
    data = SequenceDataModule(Synthetic(**SMALL["data"]["source"]["init_args"]), max_length=10)
    for preset in (MambaRec, SequentialRecommender):
        model = preset.load_from_checkpoint("runs/version_0/checkpoints/best.ckpt")
        assert evaluate(model, data.test_dataloader()) == pytest.approx(said, abs=1e-6)


def test_a_run_is_resumed_by_its_last_checkpoint_alone(capsys: pytest.CaptureFixture[str]):
    main((*FIT, "--trainer.logger.save_dir", "whole"))
    expected = capsys.readouterr().out.splitlines()
    main((*FIT, "--trainer.max_epochs", "1"))
    Path("runs").rename("moved")
    last = "moved/version_0/checkpoints/last.ckpt"
    capsys.readouterr()
    main(("fit", "--ckpt_path", last, "--trainer.max_epochs", "2"))
    found = capsys.readouterr().out.splitlines()
    assert [line for line in expected if line.startswith(("MambaRec", "Popularity"))] == [
        line for line in found if line.startswith(("MambaRec", "Popularity"))
    ]
    # A folder of its own for the log; the checkpoints stay together.
    assert Path("runs/version_0/test_metrics.json").is_file()
    assert not Path("runs/version_0/checkpoints").exists()
    whole = torch.load("whole/version_0/checkpoints/last.ckpt", weights_only=False)
    resumed = torch.load(last, weights_only=False)
    assert resumed["epoch"] == whole["epoch"] == 1
    for name, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value)


def test_a_run_of_fewer_steps_than_an_epoch_tests_its_last_weights(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    main((*FIT, "--trainer.max_steps", "2"))
    output = capsys.readouterr().out
    assert "the run ended before its first validation: its last weights are tested" in caplog.text
    assert "test of 30 users" in output
    assert [file.name for file in Path("runs/version_0/checkpoints").glob("*.ckpt")] == ["last.ckpt"]


def test_test_of_the_best_checkpoint_repeats_what_fit_said(capsys: pytest.CaptureFixture[str]):
    main(FIT)
    said = re.findall(r"^MambaRec.*$", capsys.readouterr().out, re.MULTILINE)
    main(("test", "--ckpt_path", "runs/version_0/checkpoints/best.ckpt"))
    assert re.findall(r"^MambaRec.*$", capsys.readouterr().out, re.MULTILINE) == said
    for ckpt in ("--ckpt_path=runs/version_0/checkpoints/best.ckpt", "--ckpt=runs/version_0", "--ckpt=runs"):
        main(("validate", ckpt))
        assert "validate of 30 users" in capsys.readouterr().out


def test_one_checkpoint_is_tested_by_the_protocols_of_others(capsys: pytest.CaptureFixture[str]):
    main((*FIT, "--data.source.num_items", "200"))
    capsys.readouterr()
    words = ("test", "--ckpt_path", "runs/version_0/checkpoints/best.ckpt")
    for number, (name, expected) in enumerate(
        (
            ("sasrec-100", "uniform100-seenout-tiemean-loo-seed0"),
            ("gsasrec", "full-seenout-tiemean-loo"),
        ),
        start=1,
    ):
        main((*words, "--protocol", name))
        output = capsys.readouterr().out
        assert f"test of 30 users, protocol {expected}" in output
        assert re.search(r"^MambaRec( +[01]\.\d{4}){6} ", output, re.MULTILINE)
        result = json.loads(Path(f"runs/version_{number}/test_metrics.json").read_text())
        assert result["settings"] == Protocol.preset(name).describe() | {"order": result["settings"]["order"]}
        assert result["settings"]["order"].startswith("a user's events by timestamp")
        assert result["users"] == 30
    # What stands behind a preset changes a part of it.
    main((*words, "--protocol=gsasrec", "--protocol.ties", "optimistic"))
    assert "protocol full-seenout-tieoptimistic-loo" in capsys.readouterr().out


def test_a_preset_of_another_split_than_the_datas_is_refused(capsys: pytest.CaptureFixture[str]):
    words = ("--data.split", "LastN", "--data.split.n", "2", "--protocol", "sasrec-100")
    message = refusal(capsys, *FIT, "--data.filters.min_user_events", "5", *words)
    assert "by the split loo, but the data is divided by last2: set --data.split LeaveOneOut" in message


def test_a_split_at_a_time_says_who_was_not_judged(capsys: pytest.CaptureFixture[str]):
    words = ("--data.split", "GlobalTime", "--data.source.num_users", "300", "--data.val_users", "5")
    popular = ("--protocol.candidates", "PopularityCandidates", "--protocol.candidates.count", "10")
    main((*FIT, *words, "--protocol", "Protocol", *popular))
    output = capsys.readouterr().out
    said = re.search(
        r"test of (\d+) users \(not judged: (\d+) with no event in its time(, .*)?\), protocol (\S+)", output
    )
    assert said[4] == "popularity10-distinct-seenout-tiemean-time0.9-val0.8-warm1-seed0"
    left_out = json.loads(Path("runs/version_0/test_metrics.json").read_text())["left_out"]
    assert int(said[1]) + sum(left_out.values()) == 300
    assert "Recall@10" in output


def test_predict_writes_parquet_with_the_logs_own_ids():
    main(FIT)
    ckpt = "runs/version_0/checkpoints/best.ckpt"
    main(("predict", "--ckpt_path", ckpt, "--recommendations.directory", "out", "--recommendations.top_k", "3"))
    frame = pl.read_parquet("out/*.parquet")
    assert frame.columns == ["user_id", "item_id", "rank", "score"]
    assert sorted(frame["user_id"].unique().to_list()) == list(range(30))
    assert frame.group_by("user_id").len()["len"].unique().to_list() == [3]
    assert frame["item_id"].is_between(0, 39).all()
    stated = json.loads(Path("out_metrics.json").read_text())
    num_items = len(torch.load(ckpt, weights_only=True)["state_dict"]["items.table.weight"]) - 1
    assert stated["Coverage@3"] == pytest.approx(frame["item_id"].n_unique() / num_items)
    assert stated["Novelty@3"] > 0


def test_predict_leaves_out_blocked_items():
    main(FIT)
    Path("block.txt").write_text("0\n7\n")
    ckpt = ("--ckpt_path", "runs/version_0/checkpoints/best.ckpt")
    settings = ("--recommendations.filter_seen", "false", "--recommendations.top_k", "39")
    main(("predict", *ckpt, "--recommendations.directory", "all", *settings))
    main(
        (
            "predict",
            *ckpt,
            "--recommendations.directory",
            "some",
            *settings,
            "--recommendations.block",
            "block.txt",
        )
    )
    everything, some = pl.read_parquet("all/*.parquet"), pl.read_parquet("some/*.parquet")
    allowed = everything.filter(~pl.col("item_id").is_in([0, 7]))
    assert len(allowed) < len(everything)
    assert some.drop("rank").equals(allowed.drop("rank"))


def test_predict_does_not_overwrite_recommendations(capsys: pytest.CaptureFixture[str]):
    main(FIT)
    words = (
        "predict",
        "--ckpt_path",
        "runs/version_0/checkpoints/best.ckpt",
        "--recommendations.directory",
        "out",
    )
    main(words)
    assert "out contains recommendations already" in refusal(capsys, *words)


def test_limited_evaluation_says_how_many_users_it_judged(capsys: pytest.CaptureFixture[str]):
    main((*FIT, "--data.eval_batch_size", "8", "--trainer.limit_test_batches", "2", "--json", "--table", "table.md"))
    report = json.loads(capsys.readouterr().out)
    assert (report["schema"], report["users"]) == ("seqrec-fit-1", 16)
    assert report.items() >= json.loads(Path("runs/version_0/test_metrics.json").read_text()).items()
    assert Path("table.md").read_text().startswith("test of 16 users, ")


def test_user_embedding_and_all_windows_train():
    main((*FIT, "--model.user_embedding", "true", "--data.train_windows", "StridedWindows"))
    config = yaml.safe_load(Path("runs/version_0/config.yaml").read_text())
    assert config["data"]["train_windows"]["class_path"] == "seqrec.StridedWindows"
    model = MambaRec.load_from_checkpoint("runs/version_0/checkpoints/best.ckpt")
    assert model.users.num_items == 30


def test_prepare_makes_the_store_and_trains_nothing(capsys: pytest.CaptureFixture[str]):
    main(("prepare", "--config", "small.yaml", "--data.store", "here"))
    assert "30 users" in capsys.readouterr().out
    assert Path("here/manifest.json").is_file()
    assert not Path("runs").exists()


def test_prepare_overwrites_only_when_told(capsys: pytest.CaptureFixture[str]):
    words = ("prepare", "--config", "small.yaml", "--data.store", "here", "--data.source.seed", "1")
    main(("prepare", "--config", "small.yaml", "--data.store", "here"))
    assert "here was prepared with source.seed=0, now it is 1" in refusal(capsys, *words)
    main((*words, "--overwrite", "true"))
    main(words)


@pytest.mark.parametrize("model", ["GRU4Rec", "Popularity"])
def test_model_is_swapped_by_name(capsys: pytest.CaptureFixture[str], model: str):
    words = [*FIT, "--model", model]
    main(words)
    assert re.search(rf"^{model} ", capsys.readouterr().out, re.MULTILINE)


def test_an_encoder_of_ones_own_is_taken_by_its_import_path(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    Path("mine.py").write_text(
        "from seqrec.encoders import SequenceEncoder\n"
        "class Mean(SequenceEncoder):\n"
        "    def __init__(self, d_model: int = 8):\n"
        "        super().__init__(d_model, num_layers=1, dropout=0.0, layer_norm=False)\n"
        "    def forward(self, x, history):\n"
        "        return x.cumsum(1)\n"
    )
    monkeypatch.syspath_prepend(".")
    config = SMALL | {
        "model": {
            "class_path": "SequentialRecommender",
            "init_args": {"encoder": {"class_path": "mine.Mean"}},
        }
    }
    Path("mine.yaml").write_text(yaml.safe_dump(config))
    main(("fit", "--config", "mine.yaml"))
    assert re.search(r"^Mean ", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "SASrec"), r"model: unknown class 'SASrec'; known: .*GRU4Rec, .*; did you mean SASRec\?"),
        (
            ("--model.d_modell", "3"),
            r"unknown argument 'model.d_modell'; did you mean d_model\? allowed here: carry_state, d_conv, d_model",
        ),
        (("--data.max_lenth", "3"), r"unknown argument 'data.max_lenth'; did you mean data.max_length\?"),
        (
            ("--trainer.max_epoch", "3"),
            r"unknown argument 'trainer.max_epoch'; did you mean trainer.max_epochs\?",
        ),
        (("--data.source.lagg", "3"), r"unknown argument 'data.source.lagg'; did you mean lag\?"),
        (
            ("--model", "MambaRec", "--model.mixer", "foo"),
            r"mixer=foo must be one of 'mamba', 'mamba2', 'gated_d",
        ),
        (
            ("--protocol", "Full"),
            r"protocol: unknown class 'Full'; known: FullRanking, SampledRanking, gsasrec, .*rectools",
        ),
        (
            ("--model", "SequentialRecommender", "--model.encoder", "Foo"),
            r"encoder: unknown class 'Foo'; known: .*GRU4Rec",
        ),
        (("--model", "SASRec", "--model.num_heads", "3"), r"num_heads=3 must divide d_model=8; try one of"),
        (("--model.d_model", "x"), r"d_model=x must be a whole number"),
        (("--model.max_length", "3"), r"--model.max_length is not accepted: .* set data.max_length"),
        (("--data.batch_size", "0"), r"batch_size=0 must be at least 1"),
        (("--data.source", "Sequences", "--data.source.path", "no.txt"), r"no\.txt"),
        (
            ("--data.source", "Sequences"),
            r"'path' is required: .*--data.source.path \(Sequences\) or .*\(Table\)",
        ),
        (("--config", "no.yaml"), r"no\.yaml"),
    ],
)
def test_what_is_refused_is_named_with_what_is_allowed(capsys: pytest.CaptureFixture[str], words, said: str):
    assert re.search(said, refusal(capsys, *FIT, *words))


def test_model_length_in_a_config_is_refused(capsys: pytest.CaptureFixture[str]):
    Path("long.yaml").write_text("model: {class_path: SASRec, init_args: {max_length: 3}}")
    assert "long.yaml: model.init_args.max_length is not accepted" in refusal(capsys, *FIT, "--config", "long.yaml")


def test_user_with_two_events_is_refused_by_name(capsys: pytest.CaptureFixture[str]):
    Path("log.txt").write_text("7 1\n7 2\n7 3\n7 1\n9 1\n9 2\n")
    message = refusal(capsys, *FIT, "--data.source", "Sequences", "--data.source.path", "log.txt")
    assert "user 9 with 2" in message
    assert "--data.filters.min_user_events 3" in message


def test_store_of_another_version_and_a_truncated_one_are_refused(capsys: pytest.CaptureFixture[str]):
    main(("prepare", "--config", "small.yaml", "--data.store", "here"))
    manifest = Path("here/manifest.json")
    whole = manifest.read_text()
    manifest.write_text(re.sub(r'"version": \d+', '"version": 99', whole))
    assert "version 99" in refusal(capsys, *FIT, "--data.store", "here")
    manifest.write_text(whole)
    with Path("here/item_ids.npy").open("r+b") as stream:
        stream.truncate(130)
    assert re.search(r"item_ids\.npy has 130 bytes, expected \d+", refusal(capsys, *FIT, "--data.store", "here"))


def test_traceback_of_a_bug_is_kept(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("seqrec.cli.lightning_cli.SeqrecCLI.after_fit", lambda self: 1 / 0)
    with pytest.raises(SystemExit) as stop:
        main(FIT)
    assert stop.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    place = re.search(r"traceback: (.*)\)$", line)
    assert place is not None, line
    assert "ZeroDivisionError: division by zero" in Path(place[1]).read_text()
    with pytest.raises(ZeroDivisionError):
        main((*FIT, "--debug"))


@pytest.mark.parametrize("end", [None, StoppedError(143)], ids=["finished", "stopped"])
def test_a_command_that_ends_well_leaves_its_job(
    end: StoppedError | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def run(words: list[str]) -> None:
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
        if end is not None:
            raise end

    monkeypatch.setattr("seqrec.cli.run_command", run)
    with nullcontext() if end is None else pytest.raises(SystemExit) as stopped:
        main(())
    assert end is None or stopped.value.code == 143
    assert not torch.distributed.is_initialized()


@pytest.mark.process
def test_two_ranks_prepare_once_and_test_like_one(tmp_path: Path):
    command = [sys.executable, "-m", "seqrec", *FIT, "--trainer.logger.save_dir", "out"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    ranks = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    run = subprocess.run([*command, *ranks], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("writing") == 1  # by one process
    assert len(list(Path("stores").glob("*/manifest.json"))) == 1
    two = json.loads(Path("out/version_0/test_metrics.json").read_text())
    ckpt = ("--ckpt_path", "out/version_0/checkpoints/best.ckpt")
    main(("test", "--config", "small.yaml", *ckpt, "--trainer.logger.save_dir", "alone"))
    one = json.loads(Path("alone/version_0/test_metrics.json").read_text())
    assert two["models"]["MambaRec"] == pytest.approx(one["models"]["MambaRec"], abs=1e-6)
    for name in ("Popularity", "Markov", "ItemKNN"):
        assert two["models"][name] == one["models"][name]
    assert run.stdout.count("counted and judged") == 1
    assert two["baselines"] == one["baselines"]
    summary = read_summary("out/version_0")
    store = EventStore.open(next(Path("stores").glob("*/manifest.json")).parent)
    # Each user's training windows: all events but the last of those before the two that are held out.
    windows = (np.diff(store.offsets) - 3).clip(max=10).clip(min=0)
    assert (summary.epochs, summary.events, summary.job["ranks"]) == (2, 2 * int(windows.sum()), 2)
    assert summary.tokens >= summary.events
    assert {"train", "validate", "test", "checkpoint"} <= set(summary.seconds)


def test_tune_suggests_a_step_size_and_a_batch_size_and_keeps_nothing(capsys: pytest.CaptureFixture[str]):
    words = ("--config", "small.yaml", "--data.source.num_users", "100")
    main(("tune", "lr", *words, "--steps", "60"))
    said = r"^suggested: --model.optimizer Adam --model.optimizer.lr (\S+)$"
    suggested = re.search(said, capsys.readouterr().out, re.MULTILINE)
    assert 1e-4 < float(suggested[1]) < 1
    main(("tune", "batch_size", *words, "--max_batch_size", "2"))
    assert "largest that was tried and fits: --data.batch_size 2" in capsys.readouterr().out
    assert not Path("runs").exists()
    message = refusal(capsys, "tune", "batchsize", *words)
    assert re.search(r"what=batchsize must be one of 'lr', 'batch_size'", message)


def test_recommend_and_predict_are_one_command(capsys: pytest.CaptureFixture[str]):
    main(FIT)
    main(("recommend", "--ckpt", "runs/version_0", "--output", "recs.parquet", "--top-k", "3"))
    assert re.search(r"^Coverage@3 0\.\d+, Novelty@3 \d.*, Popularity@3 \d", capsys.readouterr().out, re.MULTILINE)
    main(("predict", "--ckpt_path", "runs/version_0/checkpoints/best.ckpt", "--top_k", "3"))
    # A trainer recommends the same, under the same names of options.
    main(("recommend", "--ckpt", "runs", "--output", "trained", "--top-k", "3", "--trainer.devices", "1"))
    job, default, trained = (
        pl.read_parquet(f"{folder}/*.parquet").sort("user_id", "rank")
        for folder in ("recs.parquet", "runs/version_0/recommendations", "trained")
    )
    assert job.columns == ["user_id", "item_id", "rank", "score"]
    assert job.equals(default)
    assert job.drop("score").equals(trained.drop("score"))
    metrics = [json.loads(Path(f"{name}_metrics.json").read_text()) for name in ("recs", "trained")]
    assert metrics[0].keys() == metrics[1].keys()
    assert metrics[0]["Coverage@3"] == pytest.approx(metrics[1]["Coverage@3"])


def test_prediction_takes_the_config_of_a_run():
    main(FIT)
    main(("predict", "--config", "runs/version_0/config.yaml", "--ckpt", "runs/version_0", "--output", "out"))
    assert pl.read_parquet("out/*.parquet")["user_id"].n_unique() == 30


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--config", "quikstart"), r"config 'quikstart' is neither .*; did you mean quickstart\?"),
        (
            ("--model", "seqrec.SASrec"),
            r"model: unknown class 'seqrec.SASrec'; known: .*; did you mean SASRec\?",
        ),
        (
            ("--model.loss", "seqrec.losses.FulSoftmax"),
            r"unknown class .*FulSoftmax'.*did you mean FullSoftmax\?",
        ),
        (("--ckpt", "empty"), r"--ckpt empty: empty contains neither last\.ckpt nor best\.ckpt"),
        (("--model.d-modell", "3"), r"unknown argument 'model.d_modell'; did you mean d_model\?"),
    ],
)
def test_names_are_refused_with_the_nearest(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str):
    Path("empty").mkdir()
    assert re.search(said, refusal(capsys, *FIT, *words))


def test_a_config_that_is_also_a_file_is_the_file(capsys: pytest.CaptureFixture[str]):
    Path("small.yaml").rename("quickstart")
    main(("prepare", "--config", "quickstart", "--data.store", "here"))
    captured = capsys.readouterr()
    assert "30 users" in captured.out
    (line,) = (line for line in captured.err.splitlines() if line.startswith("config "))
    assert line.endswith("quickstart is used, not the package's config")


def test_options_take_dashes_and_configs_take_old_class_paths(capsys: pytest.CaptureFixture[str]):
    old = {"model": {"init_args": {"loss": {"class_path": "seqrec.losses.full_softmax.FullSoftmax"}}}}
    Path("old.yaml").write_text(yaml.safe_dump(old))
    with pytest.raises(SystemExit) as stop:
        main((*FIT, "--config", "old.yaml", "--data.max-length", "7", "--print-config"))
    assert stop.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["data"]["max_length"] == 7
    assert config["model"]["init_args"]["loss"]["class_path"].endswith("FullSoftmax")


def test_help_of_a_run_is_short_and_all_options_have_a_help(capsys: pytest.CaptureFixture[str]):
    def shown(*words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
        return capsys.readouterr().out

    for command in ("prepare", "fit", "validate", "test", "tune"):
        output = shown(command, "--help")
        assert output.startswith(f"usage: seqrec {command} ")
        assert 15 < len(output.splitlines()) < 100
        assert max(map(len, output.splitlines())) <= 110
    output = shown("fit", "--help")
    everything = shown("fit", "--help-all")
    for option in re.findall(r"^  (--[\w.]+) ", output, re.MULTILINE):
        known = option in everything.replace("--ckpt_path", "--ckpt")
        assert known or option.startswith("--model.") or option in ("--KEY.help", "--help"), option
    assert "--trainer.reload_dataloaders_every_n_epochs" in everything
    assert "--trainer.max_epochs" in shown("fit", "--trainer.help")
    assert "--data.max_length" not in shown("fit", "--trainer.help")
    assert "--model.num_heads" in shown("fit", "--model.help", "SASRec")


def test_a_config_of_several_commands_may_stand_in_front_of_the_command(capsys: pytest.CaptureFixture[str]):
    Path("all.yaml").write_text(yaml.safe_dump({"prepare": {**SMALL, "data": {**SMALL["data"], "store": "here"}}}))
    main(("--config", "all.yaml", "prepare"))
    assert Path("here/manifest.json").is_file()


@pytest.mark.process
def test_a_misspelt_argument_is_refused_before_other_commands_are_built():
    code = """
import sys, jsonargparse
from seqrec.cli import main
add = jsonargparse.ArgumentParser.__init__
def noted(self, *args, **settings):
    print(settings.get("description"))
    add(self, *args, **settings)
jsonargparse.ArgumentParser.__init__ = noted
try:
    main(["fit", "--bad", "1"])
except SystemExit:
    print(*(name for name in ("optuna", "seqrec.benchmark", "seqrec.serving") if name in sys.modules))
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "error: unknown argument 'bad'" in process.stderr
    assert process.stdout.count("prepare, train, and test") == 1
    assert "validation metrics" not in process.stdout
    assert process.stdout.splitlines()[-1] == ""


def test_an_encoder_in_a_file_of_the_working_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    monkeypatch.chdir(tmp_path)
    Path("own_encoder.py").write_text(
        "from seqrec import SequenceEncoder\n\n\n"
        "class Unchanged(SequenceEncoder):\n"
        "    def __init__(self, d_model: int) -> None:\n"
        "        super().__init__(d_model, num_layers=1, dropout=0, layer_norm=False)\n\n"
        "    def forward(self, x, history):\n"
        "        return x\n"
    )
    small = ["--config", "quickstart", "--data.source.num_users", "20", "--trainer.fast_dev_run", "true"]
    words = ["fit", *small, "--model", "SequentialRecommender", "--model.encoder", "own_encoder.Unchanged"]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "d_model" in capsys.readouterr().err
    main([*words, "--model.encoder.d_model", "8"])
    assert "own_encoder" in sys.modules


def test_lists_and_exposures_are_judged_on_demand(capsys: pytest.CaptureFixture[str]):
    main((*FIT, "--trainer.max_epochs", "1", "--lists.metrics", "[Coverage, Novelty]", "--lists.cutoffs", "[3]"))
    output = capsys.readouterr().out
    heads = r"^lists +value +95% interval +Popularity +Markov +ItemKNN$"
    coverage = r"^Coverage@3 +[01]\.\d{4}( +[01]\.\d{4}){3}$"
    novelty = r"^Novelty@3 +\d\.\d{4} +\d\.\d{4} to \d\.\d{4}( +\d\.\d{4}){3}$"
    assert re.search("\n".join(row[1:-1] for row in (heads, coverage, novelty)), output)
    result = json.loads(Path("runs/version_0/test_metrics.json").read_text())
    assert result["models"]["MambaRec"]["Coverage@3"] == pytest.approx(result["lists"]["metrics"]["Coverage@3"])
    assert set(result["lists"]["intervals"]) == {"Novelty@3"}
    assert result["exposures"] is None
    assert read_summary("runs/version_0").test == pytest.approx(result["models"]["MambaRec"])
    frame = Synthetic(**SMALL["data"]["source"]["init_args"]).scan().collect()
    # Everything was shown again, later; even items were clicked.
    later = frame["timestamp"] + frame["timestamp"].max() + 1
    frame.with_columns(timestamp=later, clicked=frame["item_id"] % 2).write_csv("shown.csv")
    words = ("--exposures.item", "item_id", "--exposures.timestamp", "timestamp", "--exposures.positive", "clicked = 0")
    main(("test", "--ckpt", "runs/version_0", "--lists.metrics", "null", "--exposures.path", "shown.csv", *words))
    output = capsys.readouterr().out
    assert "protocol exposed(clicked = 0)-seenin-tiemean-loo" in output
    assert re.search(r"^Chance +0\.5000", output, re.MULTILINE)
    result = json.loads(Path("runs/version_1/test_metrics.json").read_text())
    assert result["lists"] is None
    assert result["exposures"]["models"]["Chance"]["AUC"] == 0.5
    assert {"exposed_AUC", "NDCG@10"} <= set(result["models"]["MambaRec"])
