"""What a run says of itself while it runs, when it ends and however it ends."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from seqrec.catalogue.table import ItemTable
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic
from seqrec.errors import InputError, MissingInputError
from seqrec.models import SASRec
from seqrec.runs import RunFolder, read_summary
from seqrec.runs.callbacks import BestCheckpoint, ResumePoints, RunMonitor, RunSummary
from seqrec.runs.provenance import parameter_counts

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
EPOCHS, STEPS = 2, 5


class Diary(pl.Callback):
    """Events and tokens of each training batch; raises in one of them, if told to."""

    def __init__(self, at: tuple[int, int] | None = None, error: BaseException | None = None) -> None:
        self.events: dict[tuple[int, int], tuple[int, int]] = {}
        self.at, self.error = at, error

    def on_train_batch_start(self, trainer: pl.Trainer, model: Any, batch: Any, batch_idx: int) -> None:
        place = trainer.current_epoch, batch_idx
        self.events[place] = int(batch.history.lengths.sum()), batch.history.item_ids.numel()
        if self.at == place and self.error is not None:
            raise self.error


def parts(
    folder: Path, diary: Diary, targets: str | None = None, **options: Any
) -> tuple[pl.Trainer, SASRec, SequenceDataModule]:
    log = Synthetic(num_users=40, num_items=30, mean_events=12)
    sizes = {"max_length": 10, "batch_size": 8}
    data = SequenceDataModule(log, store=str(folder / "store"), targets=targets, **sizes, seed=5)
    pl.seed_everything(3, verbose=False)
    model = SASRec(data.num_items, d_model=4, num_layers=1, max_length=10)
    kept = str(folder / "checkpoints")
    best = BestCheckpoint(
        dirpath=kept, filename="best", monitor="val_NDCG@10", mode="max", enable_version_counter=False
    )
    points = ResumePoints(every_n_steps=1, every_minutes=None, dirpath=kept)
    trainer = pl.Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": EPOCHS,
            "callbacks": [diary, best, points, RunMonitor(), RunSummary()],
            "logger": RunFolder(str(folder / "runs"), tensorboard=False),
            "log_every_n_steps": 2,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        | options
    )
    return trainer, model, data


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Diary, Any]:
    """A run that nothing disturbed: its folder, its diary, and trainer, model and data."""
    folder, diary = tmp_path_factory.mktemp("whole"), Diary()
    trainer, model, data = parts(folder, diary)
    trainer.fit(model, data)
    return folder / "runs" / "version_0", diary, (trainer, model, data)


def test_a_run_tells_what_it_did(whole: tuple[Path, Diary, Any]):
    folder, diary, (trainer, model, data) = whole
    fitted = read_summary(folder)
    assert (fitted.status, fitted.error, fitted.model, fitted.test) == ("finished", None, "SASRec", None)
    assert (fitted.epochs, fitted.steps) == (EPOCHS, EPOCHS * STEPS)
    assert fitted.events == sum(events for events, _ in diary.events.values())
    assert fitted.tokens == sum(tokens for _, tokens in diary.events.values()) > fitted.events
    assert (fitted.targets, fitted.target_filter) == (fitted.events, None)
    assert set(fitted.seconds) == {"prepare", "train", "validate", "checkpoint"}
    assert all(seconds > 0 for seconds in fitted.seconds.values())
    assert fitted.events_per_second == pytest.approx(fitted.events / fitted.seconds["train"], rel=1e-3)
    assert fitted.peak_memory["host"] > 1 << 20
    assert fitted.peak_memory["device"] is None
    assert fitted.parameters["item_table"] == (data.num_items + 1) * 4
    assert fitted.parameters["total"] == sum(p.numel() for p in model.parameters())
    assert fitted.seeds == {"run": 3, "data": 5}
    assert fitted.job["ranks"] == 1
    assert fitted.versions["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert fitted.best["metric"] == "val_NDCG@10"
    best = torch.load(fitted.best["checkpoint"], weights_only=True)
    assert (best["epoch"], best["global_step"]) == (fitted.best["epoch"], fitted.best["step"])
    assert fitted.best["value"] == pytest.approx(float(trainer.checkpoint_callback.best_model_score))
    # The test of a checkpoint that has counts of its own leaves those of the run alone.
    trainer.test(model, data, ckpt_path=fitted.best["checkpoint"], verbose=False)
    tested = read_summary(folder)
    assert (tested.events, tested.epochs, tested.best) == (fitted.events, fitted.epochs, fitted.best)
    assert tested.test["NDCG@10"] == pytest.approx(float(trainer.callback_metrics["test_NDCG@10"]))
    assert tested.seconds["train"] == fitted.seconds["train"]
    assert tested.seconds["test"] > 0
    assert tested.protocol == "full-seenout-tiemean-loo"


def test_targets_are_counted_apart_from_the_events_around_them(tmp_path: Path):
    trainer, model, data = parts(tmp_path, Diary(), "item_id > 20")
    trainer.fit(model, data)
    summary = read_summary(tmp_path / "runs" / "version_0")
    assert summary.targets == EPOCHS * sum(int(batch.is_target.sum()) for batch in data.train_dataloader())
    assert 0 < summary.targets < summary.events
    assert summary.target_filter == data.described_targets()
    assert summary.target_filter["condition"] == "item_id > 20"
    assert summary.protocol == "full-seenout-tiemean-loo-targets(item_id > 20)"


@pytest.mark.parametrize(
    ("limits", "epochs", "steps"),
    [
        ({"max_steps": STEPS + 2}, 1, STEPS + 2),
        ({"max_steps": 2}, 0, 2),
        ({"limit_train_batches": 2}, EPOCHS, 2 * EPOCHS),
    ],
    ids=str,
)
def test_epochs_that_are_cut_do_not_count(tmp_path: Path, limits: dict[str, int], epochs: int, steps: int):
    trainer, model, data = parts(tmp_path, Diary(), **limits)
    trainer.fit(model, data)
    summary = read_summary(Path(trainer.log_dir))
    assert (summary.epochs, summary.steps) == (epochs, steps)


def test_speed_is_logged_every_few_steps(whole: tuple[Path, Diary, Any]):
    with (whole[0] / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["events/s"]]
    assert [int(row["step"]) for row in rows] == [1, 3, 5, 7, 9]
    for row in rows:
        assert 0 < float(row["events/s"]) <= float(row["tokens/s"])


@pytest.mark.parametrize(("place", "steps"), [((0, 3), 3), ((1, 2), 7), ((1, 0), 5)])
def test_a_resumed_run_goes_on_counting(
    whole: tuple[Path, Diary, Any], tmp_path: Path, place: tuple[int, int], steps: int
):
    trainer, model, data = parts(tmp_path, Diary(place, RuntimeError("the node is gone")))
    with pytest.raises(RuntimeError, match="the node is gone"):
        trainer.fit(model, data)
    failed = read_summary(tmp_path / "runs" / "version_0")
    assert (failed.status, failed.error) == ("failed", "RuntimeError: the node is gone")
    assert (failed.steps, failed.epochs) == (steps, place[0])
    assert failed.events == sum(e for at, (e, _) in whole[1].events.items() if at < place)
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    trainer, model, data = parts(tmp_path, Diary())
    trainer.fit(model, data, ckpt_path=last)
    found, expected = read_summary(tmp_path / "runs" / "version_1"), read_summary(whole[0])
    for name in ("epochs", "steps", "events", "tokens", "validation"):
        assert getattr(found, name) == getattr(expected, name), name
    assert {**found.best, "checkpoint": None} == {**expected.best, "checkpoint": None}
    assert (found.resumed_from, expected.resumed_from) == (last, None)
    if place > (1, 0):
        assert found.seconds["train"] > 0


class Signal(pl.Callback):
    """Sends this process a signal in a batch."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def on_train_batch_start(self, trainer: pl.Trainer, model: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (1, 1):
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_says_so_and_how_to_go_on(tmp_path: Path, number: signal.Signals):
    trainer, model, data = parts(tmp_path, Diary())
    trainer.callbacks.insert(0, Signal(number))
    folder = Path(trainer.log_dir)
    (folder / "config.yaml").touch()
    with pytest.raises(SystemExit):
        trainer.fit(model, data)
    summary = read_summary(folder)
    assert summary.status == "interrupted"
    assert (summary.epochs, summary.steps) == (1, STEPS + 2)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert summary.resume == f"seqrec fit --config {folder / 'config.yaml'} --ckpt_path {last}"
    assert summary.best["epoch"] == 0


class Look(pl.Callback):
    """Calls in a training batch."""

    def __init__(self, look: Callable[[], None]) -> None:
        self.look = look

    def on_train_batch_end(self, *_: Any) -> None:
        self.look()


def test_while_it_runs_the_file_says_how_far_it_has_come(tmp_path: Path):
    seen = []
    trainer, model, data = parts(tmp_path, Diary())
    file = Path(trainer.log_dir)
    trainer.callbacks.append(Look(lambda: seen.append(read_summary(file))))
    trainer.fit(model, data)
    assert {summary.status for summary in seen} == {"running"}
    assert [summary.epochs for summary in seen] == [0] * STEPS + [1] * STEPS
    assert seen[-1].steps == STEPS


def test_numbers_that_json_does_not_have_are_null(whole: tuple[Path, Diary, Any], tmp_path: Path):
    summary = replace(read_summary(whole[0]), validation={"NDCG@10": float("nan"), "HR@10": 0.5})
    summary.write(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["validation"] == {
        "NDCG@10": None,
        "HR@10": 0.5,
    }


def test_it_is_refused_without_a_monitor(tmp_path: Path):
    trainer, model, data = parts(tmp_path, Diary(), callbacks=[RunSummary()], enable_checkpointing=False)
    with pytest.raises(InputError, match=r"RunSummary needs a RunMonitor: Trainer\(callbacks="):
        trainer.fit(model, data)


def test_a_trial_of_one_batch_writes_nothing(tmp_path: Path):
    trainer, model, data = parts(tmp_path, Diary(), fast_dev_run=True)
    trainer.fit(model, data)
    assert not list(tmp_path.rglob("summary.json"))


def test_a_summary_from_before_targets_were_counted_has_as_many_as_events(
    whole: tuple[Path, Diary, Any], tmp_path: Path
):
    content = json.loads((whole[0] / "summary.json").read_text())
    del content["targets"], content["target_filter"], content["caveats"]
    (tmp_path / "summary.json").write_text(json.dumps(content))
    found = read_summary(tmp_path)
    assert (found.targets, found.target_filter, found.caveats) == (found.events, None, [])


def test_a_folder_without_a_summary_and_a_damaged_one_are_refused(tmp_path: Path):
    with pytest.raises(MissingInputError, match=r"has no summary\.json"):
        read_summary(tmp_path)
    (tmp_path / "summary.json").write_text('{"status": "finished"}')
    with pytest.raises(InputError, match=r"summary\.json is damaged or of another version: KeyError: 'error'"):
        read_summary(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(InputError, match="damaged or of another version"):
        read_summary(tmp_path)


def test_parameters_are_counted_by_part():
    table = ItemTable(separate_output=True, bias=True)
    model = SASRec(10, d_model=4, num_layers=1, max_length=6, user_embedding=True, num_users=3, item_table=table)
    counts = parameter_counts(model)
    assert counts["item_table"] == 11 * 4 + 11 * 5
    assert counts["other"] == 6 * 4 + 4 * 4
    assert counts["encoder"] == sum(p.numel() for p in model.encoder.parameters())
    assert counts["total"] == sum(p.numel() for p in model.parameters())
    assert parameter_counts(SASRec(10, d_model=4, item_table=ItemTable(sharded=True)))["item_table"] == 11 * 4
    assert parameter_counts(torch.nn.Linear(2, 1)) == {"total": 3, "item_table": 0, "encoder": 0, "other": 3}
