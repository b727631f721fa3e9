"""Lightning's private attributes are where `seqrec.runs.lightning_internals` expects them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.core import saving
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor

from seqrec.models import GRU4Rec
from seqrec.runs.lightning_internals import (
    allow_instantiator,
    attached_trainer,
    cluster_environment,
    is_accumulating,
    unwrap_save_checkpoint,
    validation_follows,
    wrap_save_checkpoint,
)
from seqrec.types import History, RaggedItems, SequenceBatch

# Lightning warns of few loader processes and of steps that are logged rarely.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Log(torch.utils.data.Dataset):
    """Batches of a log, each of two users."""

    def __init__(self, num_batches: int = 2) -> None:
        history = History(torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 2]))
        seen = RaggedItems(torch.tensor([1, 2, 3, 4, 5]), torch.tensor([0, 3, 5]))
        targets, users = torch.tensor([[2, 3, 4], [5, 6, 0]]), torch.tensor([1, 2])
        self.batches = [
            SequenceBatch(history, targets, users, seen, torch.tensor(0.3 * step)) for step in range(num_batches)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> SequenceBatch:
        return self.batches[index]


def loader(num_batches: int) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(Log(num_batches), batch_size=None)


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., pl.Trainer]:
    def make(**arguments: Any) -> pl.Trainer:
        quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        return pl.Trainer(
            **{"accelerator": "cpu", "logger": False, "num_sanity_val_steps": 0, **quiet, **arguments},
            default_root_dir=tmp_path,
        )

    return make


def model() -> GRU4Rec:
    return GRU4Rec(12, d_model=4, max_length=6, dropout=0.0)


class Asks(pl.Callback):
    """Calls a function at the end of each training batch."""

    def __init__(self, question: Callable[[pl.Trainer, int], Any]) -> None:
        self.question, self.answers = question, []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.answers.append(self.question(trainer, batch_idx))


def test_lightning_loads_checkpoints_only_by_functions_that_are_listed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(saving, "_ALLOWED_INSTANTIATORS", set(saving._ALLOWED_INSTANTIATORS))
    checkpoint = {"hyper_parameters": {"num_items": 5, "d_model": 4}, "state_dict": {}}
    with pytest.raises(ValueError, match="not in the allowlist"):
        saving._load_state(GRU4Rec, checkpoint, _instantiator="json.loads")
    allow_instantiator("json.loads")
    with pytest.raises(TypeError, match=r"loads\(\) takes 1 positional"):
        saving._load_state(GRU4Rec, checkpoint, _instantiator="json.loads")


def test_a_module_has_a_trainer_only_while_one_runs_it(make_trainer: Callable[..., pl.Trainer]):
    module = model()
    assert attached_trainer(module) is None
    asks = Asks(lambda trainer, _: attached_trainer(module) is trainer)
    make_trainer(max_steps=1, callbacks=[asks]).fit(module, loader(1), loader(1))
    assert asks.answers == [True]


def test_the_environment_that_started_the_processes_is_found(
    make_trainer: Callable[..., pl.Trainer], monkeypatch: pytest.MonkeyPatch
):
    assert not isinstance(cluster_environment(make_trainer()), SLURMEnvironment)
    slurm = SLURMEnvironment(auto_requeue=True)
    monkeypatch.setattr(SLURMEnvironment, "validate_settings", lambda *_: None)
    assert cluster_environment(make_trainer(plugins=[slurm])) is slurm


def test_gradients_accumulate_until_the_optimiser_steps(make_trainer: Callable[..., pl.Trainer]):
    asks = Asks(lambda trainer, _: (is_accumulating(trainer), trainer.global_step))
    trainer = make_trainer(max_epochs=1, accumulate_grad_batches=2, callbacks=[asks])
    trainer.fit(model(), loader(5), loader(1))
    # The last batch of an epoch steps in any case.
    assert asks.answers == [(True, 0), (False, 1), (True, 1), (False, 2), (False, 3)]


def test_a_validation_or_the_epochs_end_is_foreseen(make_trainer: Callable[..., pl.Trainer]):
    asks = Asks(validation_follows)
    trainer = make_trainer(max_epochs=1, val_check_interval=2, callbacks=[asks])
    trainer.fit(model(), loader(5), loader(1))
    assert asks.answers == [False, True, False, True, True]


def test_checkpoints_are_written_inside_a_context(make_trainer: Callable[..., pl.Trainer], tmp_path: Path):
    events: list[str] = []

    @contextmanager
    def context() -> Iterator[None]:
        events.append(f"before, file: {file.exists()}")
        yield
        events.append(f"after, file: {file.exists()}")

    file = tmp_path / "a.ckpt"
    trainer = make_trainer(max_steps=1)
    trainer.fit(model(), loader(1), loader(1))
    wrap_save_checkpoint(trainer, context)
    wrap_save_checkpoint(trainer, context)
    trainer.save_checkpoint(file, weights_only=True)
    assert events == ["before, file: False", "after, file: True"]
    unwrap_save_checkpoint(trainer)
    trainer.save_checkpoint(file)
    assert len(events) == 2


def test_lightnings_own_checkpoint_callback_saves_by_the_trainers_method(
    make_trainer: Callable[..., pl.Trainer], tmp_path: Path
):
    calls: list[str] = []

    @contextmanager
    def context() -> Iterator[None]:
        calls.append("saved")
        yield

    saver = pl.callbacks.ModelCheckpoint(tmp_path)
    trainer = make_trainer(max_epochs=2, callbacks=[saver], enable_checkpointing=True)
    wrap_save_checkpoint(trainer, context)
    trainer.fit(model(), loader(1), loader(1))
    assert calls == ["saved", "saved"]


def test_loggers_choose_their_version_by_the_method_that_run_folders_override():
    assert callable(CSVLogger._get_next_version)


class LogsByLightning(GRU4Rec):
    """Logs each step's losses by Lightning alone, in the step."""

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> Tensor:
        loss = self.loss(self.to_scoring_space(self(batch.history)), batch, self.scorer())
        self._weight = batch.weight
        self.log("train_loss_step", loss, prog_bar=True, batch_size=1)
        weight: Any = float(batch.weight)
        self.log("train_loss_epoch", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=weight)
        return loss


class Logger(DummyLogger):
    """Remembers what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[dict[str, float], int | None]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((dict(metrics), step))


class Watcher(pl.Callback):
    """Remembers what callbacks and the progress bar see at the end of steps and epochs."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._look(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._look(trainer)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._look(trainer)

    def _look(self, trainer: pl.Trainer) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.seen.append((metrics, dict(trainer.progress_bar_metrics)))


@pytest.mark.parametrize(
    "settings",
    [
        {"max_epochs": 3},
        {"max_epochs": 2, "accumulate_grad_batches": 2, "val_check_interval": 2},
        {"max_steps": 7, "check_val_every_n_epoch": 2},
        {"max_epochs": 2, "precision": "bf16-mixed"},
    ],
)
def test_loggers_callbacks_and_progress_bar_see_what_lightnings_own_log_gives_them(
    make_trainer: Callable[..., pl.Trainer], settings: dict[str, Any]
):
    found = []
    for kind in (GRU4Rec, LogsByLightning):
        pl.seed_everything(0, verbose=False)
        logger, watcher = Logger(), Watcher()
        trainer = make_trainer(callbacks=[watcher], log_every_n_steps=3, **settings)
        trainer.loggers = [logger]
        trainer.fit(kind(12, d_model=4, max_length=6, dropout=0.0), loader(5), loader(2))
        found.append((logger.rows, watcher.seen))
    assert found[0] == found[1]
    assert any("train_loss_step" in row for row, _ in found[0][0])
    assert any("train_loss_epoch" in row for row, _ in found[0][0])
    assert len({row["train_loss_step"] for row, _ in found[0][1] if "train_loss_step" in row}) >= 5
