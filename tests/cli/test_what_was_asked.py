"""What a command asks for happens, or is refused; no checkpoint and no default overrules it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_runs import FIT, checkpoint, metrics, refusal

from seqrec.cli import main

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("in_empty_folder")]


@pytest.mark.parametrize("command", ["test", "validate"])
def test_a_model_without_training_is_not_judged(capsys: pytest.CaptureFixture[str], command: str):
    message = refusal(capsys, command, "--config", "small.yaml")
    assert message.startswith(f"error: {command} needs a trained model: give --ckpt_path")
    main([command, "--config", "small.yaml", "--fresh_weights", "true"])
    assert "HR@10" in capsys.readouterr().out


def test_lists_of_a_model_without_training_are_not_written(capsys: pytest.CaptureFixture[str]):
    assert "predict needs a trained model" in refusal(capsys, "predict", "--config", "small.yaml")
    assert not Path("runs").exists() or not list(Path("runs").rglob("*.parquet"))


@pytest.mark.parametrize("model", ["Popularity", "Markov", "ItemKNN"])
def test_a_baseline_is_counted_before_it_is_judged(model: str):
    main(["fit", "--config", "small.yaml", "--model", model])
    main(["test", "--config", "small.yaml", "--model", model])
    fitted, tested = (metrics(f"runs/version_{number}") for number in (0, 1))
    assert fitted == tested
    assert len({*fitted[model].values()}) > 1


def test_a_resumed_run_has_the_step_size_that_it_asks_for():
    main([*FIT, "--model.optimizer", "Adam"])
    words = ["--model.optimizer", "Adam", "--model.optimizer.lr", "0.5", "--model.optimizer.betas", "[0.5, 0.9]"]
    main(["fit", "--ckpt_path", "runs/version_0", "--trainer.max_epochs", "3", *words])
    found = checkpoint()
    assert found["epoch"] == 2
    (group,) = found["optimizer_states"][0]["param_groups"]
    assert group["lr"] == 0.5
    assert list(group["betas"]) == [0.5, 0.9]
    assert found["hyper_parameters"]["optimizer"]["init_args"]["lr"] == 0.5


def test_a_schedule_goes_on_from_another_step_size():
    schedule = ["--model.optimizer", "Adam", "--model.optimizer.schedule", "LinearWarmup"]
    schedule += ["--model.optimizer.schedule.warmup_steps", "100"]
    main([*FIT, *schedule])
    before = checkpoint()
    words = ["--model.optimizer.lr", "0.5"]
    main(["fit", "--ckpt_path", "runs/version_0", "--trainer.max_epochs", "3", *schedule, *words])
    after = checkpoint()
    step, base = after["global_step"], before["hyper_parameters"]["optimizer"]["init_args"]["lr"]
    (was,), (now,) = (each["optimizer_states"][0]["param_groups"] for each in (before, after))
    assert now["lr"] / was["lr"] == pytest.approx(0.5 / base * (step + 1) / (before["global_step"] + 1), rel=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.optimizer", "AdamW"], "model.optimizer is AdamW, but the checkpoint has the state of Adam; resume"),
        (
            [
                "--model.optimizer",
                "Adam",
                "--model.optimizer.schedule",
                "LinearWarmup",
                "--model.optimizer.schedule.warmup_steps",
                "5",
            ],
            "model.optimizer.schedule is LinearWarmup(warmup_steps=5), but the checkpoint has the state of None",
        ),
    ],
)
def test_a_resumed_run_with_another_kind_of_optimizer_is_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
):
    main([*FIT, "--model.optimizer", "Adam"])
    assert message in refusal(capsys, "fit", "--ckpt_path", "runs/version_0", "--trainer.max_epochs", "3", *words)


def test_patience_of_zero_trains():
    main([*FIT, "--early_stopping.patience", "0", "--trainer.max_epochs", "30"])
    summary = json.loads(Path("runs/version_0/summary.json").read_text())
    assert 1 <= summary["epochs"] < 30
    assert summary["steps"] > 0


def test_a_resumed_run_has_the_patience_that_it_asks_for():
    main([*FIT, "--early_stopping.patience", "1", "--trainer.max_epochs", "30"])
    stopped = checkpoint()["epoch"]
    main(["fit", "--ckpt_path", "runs/version_0", "--early_stopping.patience", "3", "--trainer.max_epochs", "30"])
    assert checkpoint()["epoch"] > stopped


def test_a_monitored_loss_is_made_small():
    loss = ["--checkpoint.monitor", "train_loss_epoch", "--early_stopping.monitor", "train_loss_epoch"]
    main([*FIT, *loss, "--trainer.max_epochs", "8"])
    best = checkpoint(name="best")
    assert best["epoch"] > 3

    assert "'mode': 'min'" in next(name for name in best["callbacks"] if name.startswith("BestCheckpoint"))


@pytest.mark.parametrize("option", ["checkpoint", "early_stopping"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["monitor", "val_ndcg@10"],
            "no metric that seqrec knows; did you mean val_NDCG@10?; give mode, min or",
        ),
        (["monitor", "val_NDCG@11"], "monitor='val_NDCG@11' is not logged; known: val_HR@10"),
        (["monitor", "val_NDCG@10", "mode", "min"], "mode='min' contradicts monitor='val_NDCG@10': a larger value"),
        (["monitor", "val_loss"], "monitor='val_loss' is not logged"),
        (["mode", "most"], "mode='most' must be auto, min or max"),
    ],
)
def test_a_metric_that_is_not_there_is_refused_before_training(
    capsys: pytest.CaptureFixture[str], option: str, words: list[str], message: str
):
    given = [
        part for name, value in zip(words[::2], words[1::2], strict=True) for part in (f"--{option}.{name}", value)
    ]
    assert message in refusal(capsys, *FIT, *given)
    assert not list(Path().rglob("last.ckpt"))


@pytest.mark.parametrize(
    "words",
    [
        ["--trainer.limit_val_batches", "0"],
        ["--trainer.enable_checkpointing", "false"],
        ["--trainer.barebones", "true"],
        ["--trainer.overfit_batches", "2"],
        ["--trainer.overfit_batches", "0.5", "--data.eval_batch_size", "8"],
        ["--trainer.fast_dev_run", "2"],
        ["--trainer.profiler", "simple"],
        ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_HR@5", "--trainer.callbacks.mode=max"],
        ["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.01"],
    ],
    ids=lambda words: words[0].removeprefix("--trainer."),
)
def test_settings_of_lightnings_documentation_work(words: list[str]):
    main([*FIT, *words])


def test_overfitting_sees_the_same_batches_in_each_epoch():
    words = ["--trainer.overfit_batches", "1", "--trainer.max_epochs", "40", "--model.optimizer", "Adam"]
    words += ["--model.optimizer.lr", "0.03", "--early_stopping.patience", "100", "--model.loss", "FullSoftmax"]
    main([*FIT, *words, "--model.dropout", "0", "--trainer.limit_val_batches", "0"])
    losses = json.loads(Path("runs/version_0/summary.json").read_text())
    assert losses["steps"] == 40


def test_mean_weights_are_those_of_every_command():
    average = ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.9"]
    main([*FIT, *average, "--trainer.max_epochs", "4", "--model.optimizer", "Adam", "--model.optimizer.lr", "0.03"])
    main(["test", "--ckpt_path", "runs/version_0/checkpoints/best.ckpt"])
    main(["test", "--config", "small.yaml", "--ckpt_path", "runs/version_0/checkpoints/best.ckpt"])
    fitted, tested, plain = (metrics(f"runs/version_{number}")["GRU4Rec"] for number in range(3))
    assert fitted == plain
    assert tested == plain


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ([], "--model.loss.negatives.exclude_seen false"),
        (["--model.loss", "FullSoftmax", "--protocol", "sasrec-100"], "--protocol.filter_seen false"),
    ],
)
def test_a_user_who_has_met_every_item_is_named(capsys: pytest.CaptureFixture[str], words: list[str], remedy: str):
    rows = [(user, (event * user) % 20, event) for user in range(1, 8) for event in range(12)]
    rows += [(8, event % 20, event) for event in range(60)]
    log = "".join(f"{user},{item},{time}\n" for user, item, time in rows)
    Path("log.csv").write_text("user_id,item_id,timestamp\n" + log)
    source = ["--data.source", "Table", "--data.source.path", "log.csv", "--data.max_length", "60"]
    message = refusal(capsys, *FIT, *source, *words)
    assert message.startswith("error: user 8: a user has seen all")
    assert remedy in message


@pytest.mark.parametrize(
    ("words", "caveat"),
    [
        (["--fresh_weights", "true"], "fresh weights"),
        (
            ["--model", "Markov", "--trainer.limit_test_batches", "1", "--data.eval_batch_size", "2"],
            "part of the users (trainer.limit_test_batches=1)",
        ),
    ],
)
def test_figures_of_no_trained_model_or_of_few_users_are_marked(
    capsys: pytest.CaptureFixture[str], words: list[str], caveat: str
):
    main(["test", "--config", "small.yaml", *words])
    assert f"warning: these are figures of {caveat}; " in capsys.readouterr().out
    for name in ("summary", "test_metrics"):
        assert json.loads(Path(f"runs/version_0/{name}.json").read_text())["caveats"] == [caveat]
    main(["compare", "runs/version_0"])
    assert f" ({caveat})" in capsys.readouterr().out


def test_a_run_that_is_not_to_be_tested_is_not(capsys: pytest.CaptureFixture[str]):
    main(FIT)
    assert json.loads(Path("runs/version_0/summary.json").read_text())["caveats"] == []
    main([*FIT, "--trainer.limit_test_batches", "0"])
    assert not Path("runs/version_1/test_metrics.json").exists()
    assert "=0 leaves test nothing to do" in refusal(
        capsys, "test", "--ckpt", "last", "--trainer.limit_test_batches", "0"
    )


def test_another_monitor_is_logged_in_one_line(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture):
    main(FIT)
    monitors = ["--checkpoint.monitor", "val_HR@10", "--early_stopping.monitor", "val_HR@10"]
    main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3", *monitors])
    for kind in ("BestCheckpoint", "ResumableEarlyStopping"):
        assert caplog.text.count(f"{kind}: resumed with monitor val_HR@10 instead of val_NDCG@10") == 1
    main(["test", "--ckpt_path", "last"])
    assert caplog.text.count("resumed with monitor") == 2
    assert "Be aware that" not in capsys.readouterr().err


def test_a_run_as_hstus_code_does_it_trains_on_validation_and_chooses_no_epoch_by_it(
    capsys: pytest.CaptureFixture[str],
):
    words = [*FIT, "--protocol", "hstu"]
    assert "set --data.split LeaveOneOut --data.split.train_on_validation True" in refusal(capsys, *words)
    words += ["--data.split", "LeaveOneOut", "--data.split.train_on_validation", "true"]
    assert "would choose by targets that are trained on" in refusal(capsys, *words)
    main([*words, "--checkpoint.monitor", "null", "--early_stopping.monitor", "train_loss_epoch"])
    assert "protocol full-seenout-tiemean-loo-trainval" in capsys.readouterr().out
