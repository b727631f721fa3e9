"""A run that is killed anywhere, and resumed, ends as the run that was never killed."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from featured_logs import NAMES, SCHEMA, featured_log

from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.schema import Schema
from seqrec.data.sources import Synthetic
from seqrec.data.windows import RandomCrop, StridedWindows
from seqrec.errors import InputError
from seqrec.models import GRU4Rec, SASRec, SequentialRecommender
from seqrec.runs.callbacks import BestCheckpoint, ResumableEarlyStopping, ResumePoints

EPOCHS = 3
# What Lightning says of a folder that a resumed run goes on with, and of a loader without workers.
pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
]


class KilledError(Exception):
    """Stands for a process that ends without warning."""


class KillAt(pl.Callback):
    """Raises in a hook of one epoch and batch."""

    def __init__(self, hook: str, epoch: int | None = None, batch: int = 0) -> None:
        def kill(trainer: pl.Trainer, model: pl.LightningModule, *args: Any) -> None:
            if epoch in (None, trainer.current_epoch) and (len(args) < 2 or args[-1] == batch):
                raise KilledError

        setattr(self, hook, kill)


class Diary(pl.Callback):
    """What training saw, by epoch and batch, and what validation gave."""

    def __init__(self) -> None:
        self.batches: dict[tuple[int, int], list[int]] = {}
        self.validations: dict[int, list[float]] = {}
        self.trained: dict[int, list[int]] = defaultdict(list)

    def on_train_batch_start(self, trainer: pl.Trainer, model: Any, batch: Any, batch_idx: int) -> None:
        # Fetched, which is not yet trained on, as far as the checkpoint is concerned.
        self.batches[trainer.current_epoch, batch_idx] = batch.history.item_ids.flatten().tolist()

    def on_train_batch_end(self, trainer: pl.Trainer, model: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.trained[trainer.current_epoch] += batch.user_ids.tolist()

    def on_validation_end(self, trainer: pl.Trainer, model: Any) -> None:
        self.validations[trainer.global_step] = [float(trainer.callback_metrics["val_NDCG@10"])]


def run(
    folder: Path,
    diary: Diary,
    *,
    kill: KillAt | None = None,
    trainer: dict[str, Any] | None = None,
    every_n_steps: int = 1,
    patience: int = 2,
    columns: bool = False,
    carry_state: bool = False,
    **data: Any,
) -> dict[str, Any]:
    """One process's part of a run: from the last resume point, if there is one, to the end or the kill."""
    last = folder / "last.ckpt"
    # A seed of its own must not matter to a run that is resumed: the run's is in the checkpoint.
    pl.seed_everything(99 if last.exists() else 0, verbose=False)
    log: dict[str, Any] = {"num_users": 60, "num_items": 40, "mean_events": 20}
    module = SequenceDataModule(
        featured_log(folder.parent / "log.parquet", **log) if columns else Synthetic(**log),
        schema=SCHEMA if columns else Schema(),
        store=str(folder.parent / "store"),
        **{"max_length": 16, "batch_size": 8, "eval_batch_size": 32} | data,
    )
    read = {"event_columns": NAMES, "log_columns": module.event_columns} if columns else {}
    size: dict[str, Any] = {"d_model": 8, "num_layers": 1, "max_length": 16, "dropout": 0.3}
    if carry_state:
        model: SequentialRecommender = GRU4Rec(module.num_items, positions=False, carry_state=True, **size)
    else:
        model = SASRec(module.num_items, num_heads=1, **size, **read)
    best = BestCheckpoint(
        dirpath=folder, filename="best", monitor="val_NDCG@10", mode="max", enable_version_counter=False
    )
    callbacks = [
        diary,
        ResumableEarlyStopping(monitor="val_NDCG@10", mode="max", patience=patience),
        best,
        ResumePoints(every_n_steps=every_n_steps, every_minutes=None, dirpath=str(folder)),
    ]
    fitter = pl.Trainer(
        callbacks=callbacks + ([kill] if kill else []),
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"max_epochs": EPOCHS} | (trainer or {}),
    )
    fitter.fit(model, module, ckpt_path=str(last) if last.exists() else None)
    assert best.best_model_score is not None
    return {
        **model.state_dict(),
        "steps": fitter.global_step,
        "epoch": fitter.current_epoch,
        "best": best.best_model_score,
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Diary, dict[str, Any]]:
    """A run in peace, as it is set up by default."""
    diary = Diary()
    return diary, run(tmp_path_factory.mktemp("uninterrupted") / "whole", diary)


def assert_same_run(
    folder: Path, kills: list[KillAt], uninterrupted: tuple[Diary, dict[str, Any]] | None = None, **options: Any
) -> None:
    """Run once in peace, unless that is given, once with kills, and compare all that can be seen."""
    whole, pieces = Diary(), Diary()
    if uninterrupted is None:
        expected = run(folder / "whole", whole, **options)
    else:
        whole, expected = uninterrupted
    for kill in kills:
        with pytest.raises(KilledError):
            run(folder / "pieces", pieces, kill=kill, **options)
    found = run(folder / "pieces", pieces, **options)
    assert pieces.batches == whole.batches
    assert pieces.validations == whole.validations
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(torch.as_tensor(found[name]), torch.as_tensor(value)), name


@pytest.mark.parametrize(
    "kills",
    [
        [KillAt("on_train_batch_start", 0, 0)],
        [KillAt("on_train_batch_start", 0, 3)],
        [KillAt("on_train_batch_end", 1, 2), KillAt("on_train_batch_start", 1, 5)],
        [KillAt("on_train_batch_start", 1, 7)],
        [KillAt("on_train_batch_end", 1, 7)],
        [KillAt("on_validation_start", 1), KillAt("on_validation_start", 2)],
        [KillAt("on_validation_end", 0), KillAt("on_validation_end", 2)],
        [KillAt("on_train_epoch_end", 1), KillAt("on_train_epoch_start", 2)],
        [KillAt("on_train_end")],
    ],
    ids=lambda kills: ",".join(next(name for name in vars(kill) if name.startswith("on_")) for kill in kills),
)
def test_killed_and_resumed_is_as_never_killed(
    tmp_path: Path, kills: list[KillAt], uninterrupted: tuple[Diary, dict[str, Any]]
):
    assert_same_run(tmp_path, kills, uninterrupted)


@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": 2},
        {"train_windows": RandomCrop(), "max_tokens": 100},
        {"trainer": {"accumulate_grad_batches": 3}},
        {"trainer": {"val_check_interval": 3}},
        {"trainer": {"limit_train_batches": 5}},
        {"trainer": {"check_val_every_n_epoch": 2}},
        {"trainer": {"max_steps": 20}},
        {"every_n_steps": 3},
        {"columns": True},
        {"bucket_by_length": False},
        {"train_windows": StridedWindows(), "max_length": 4, "carry_state": True},
    ],
    ids=lambda options: ",".join(options),
)
def test_resuming_is_exact_however_the_run_is_set_up(tmp_path: Path, options: dict[str, Any]):
    kills = [KillAt("on_train_batch_start", 0, 4), KillAt("on_train_batch_end", 1, 3)]
    assert_same_run(tmp_path, [*kills, KillAt("on_validation_end", 1)][: 2 if "trainer" in options else 3], **options)


@pytest.mark.parametrize("max_epochs", [-1, 3])
def test_a_run_of_so_many_steps_goes_on_from_the_end_of_an_epoch(tmp_path: Path, max_epochs: int):
    assert_same_run(
        tmp_path,
        [KillAt("on_train_epoch_start", 1)],
        trainer={"max_epochs": max_epochs, "max_steps": 16},
    )


def test_a_run_that_had_stopped_early_trains_no_further(tmp_path: Path):
    assert_same_run(tmp_path, [KillAt("on_train_end")], patience=1, trainer={"max_epochs": 100})


def test_a_checkpoint_resumes_without_settings_that_it_does_not_know(tmp_path: Path):
    """As of a version in which neither the split nor the data module had all of today's arguments."""
    with pytest.raises(KilledError):
        run(tmp_path / "run", Diary(), kill=KillAt("on_train_batch_start", 0, 3))
    file = tmp_path / "run" / "last.ckpt"
    checkpoint = torch.load(file)
    order = checkpoint["SequenceDataModule"]["order"]
    assert order["split"]["init_args"].pop("train_on_validation") is False
    assert order.pop("targets") is None
    assert order.pop("bucket_by_length") is True
    torch.save(checkpoint, file)
    with pytest.raises(InputError, match="ordered with bucket_by_length=True; now it is False"):
        run(tmp_path / "run", Diary(), bucket_by_length=False)
    with pytest.raises(InputError, match="ordered with targets=None; now it is item_id > 3"):
        run(tmp_path / "run", Diary(), targets="item_id > 3")
    diary = Diary()
    run(tmp_path / "run", diary)
    assert min(diary.batches) == (0, 3)


def test_an_order_that_has_changed_is_refused_in_the_middle_of_an_epoch_alone(tmp_path: Path):
    with pytest.raises(KilledError):
        run(tmp_path / "run", Diary(), kill=KillAt("on_train_batch_start", 0, 3))
    with pytest.raises(InputError, match=r"middle of an epoch .* seed=0; now it is 4, .* resume with 0"):
        run(tmp_path / "run", Diary(), seed=4)
    with pytest.raises(KilledError):
        run(tmp_path / "run", Diary(), kill=KillAt("on_train_epoch_start", 1))
    diary = Diary()
    run(tmp_path / "run", diary, batch_size=4, seed=4)
    assert {epoch for epoch, _ in diary.batches} == {1, 2}
    assert max(batch for _, batch in diary.batches) == 60 / 4 - 1


@pytest.mark.parametrize("max_steps", [False, True])
def test_an_epoch_that_goes_on_in_batches_of_another_size_shows_each_window_once(tmp_path: Path, max_steps: bool):
    """As it is on another number of ranks, since both change how an epoch is cut into steps."""
    # Lightning counts the epochs of runs that end by steps in another way.
    trainer = {"max_epochs": -1, "max_steps": 20} if max_steps else {}
    diary = Diary()
    for kill, data in [
        (KillAt("on_train_batch_start", 0, 3), {"batch_size": 8}),
        (KillAt("on_train_batch_start", 0, 11), {"batch_size": 4}),
        (KillAt("on_train_batch_start", 0, 3), {"batch_size": 15}),
        (KillAt("on_train_epoch_start", 1), {"max_tokens": 100}),
        (KillAt("on_train_batch_start", 1, 1), {"batch_size": 16}),
    ]:
        with pytest.raises(KilledError):
            run(tmp_path / "run", diary, kill=kill, trainer=trainer, **data)
    run(tmp_path / "run", diary, trainer=trainer | ({"max_steps": 26} if max_steps else {}), batch_size=8)
    for epoch in (0, 1, 2):
        assert sorted(diary.trained[epoch]) == list(range(1, 61)), epoch
