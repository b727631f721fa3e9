from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from seqrec.types import History, RaggedItems, SequenceBatch


def batch_of(histories: list[list[int]], targets: list[int], user_ids: list[int] | None = None) -> SequenceBatch:
    """A batch as the data room makes it: targets are the next events, the history is what was seen."""
    lengths = [len(history) for history in histories]
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(h) for h in histories], batch_first=True)
    following = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor([*h[1:], target]) for h, target in zip(histories, targets, strict=True)],
        batch_first=True,
    )
    seen_events = RaggedItems.from_rows([torch.tensor(h) for h in histories])
    users = torch.tensor(user_ids) if user_ids else torch.arange(1, len(histories) + 1)
    return SequenceBatch(History(padded, torch.tensor(lengths)), following, users, seen_events)


@pytest.fixture
def make_batch() -> Callable[..., SequenceBatch]:
    return batch_of


class Log(Sequence[SequenceBatch]):
    """Batches as a loader; Lightning takes a plain list for a collection of loaders."""

    def __init__(self, *batches: SequenceBatch) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> SequenceBatch:
        return self.batches[index]


@pytest.fixture
def batches() -> Log:
    """A log that can be learned by heart: each user walks through the catalogue in steps of one."""
    return Log(
        batch_of([[1, 2, 3, 4], [3, 4, 5], [5, 6]], [5, 6, 7], [1, 2, 3]),
        batch_of([[7, 8, 9, 10], [2, 3, 4, 5], [9]], [11, 6, 10], [4, 5, 6]),
    )


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., pl.Trainer]:
    def make(**arguments: object) -> pl.Trainer:
        return pl.Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=tmp_path,
            **arguments,
        )

    return make


@pytest.fixture
def saved(make_trainer: Callable[..., pl.Trainer], tmp_path: Path) -> Callable[..., Path]:
    """Trains a model for one step, so that weights and optimiser state are there, and saves it."""

    def save(model: pl.LightningModule, data: Sequence[SequenceBatch]) -> Path:
        trainer = make_trainer(max_steps=1)
        trainer.fit(model, data, data)
        trainer.save_checkpoint(tmp_path / "model.ckpt")
        return tmp_path / "model.ckpt"

    return save
