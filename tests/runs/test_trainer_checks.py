from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy

from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic
from seqrec.errors import InputError, StoreError
from seqrec.models import GRU4Rec, Popularity
from seqrec.runs.trainer_checks import check_trainer


class TwoRanks(DDPStrategy):
    """Ranks of which rank 0 and this one have these stores."""

    def __init__(self, expected: Any) -> None:
        super().__init__()
        self.expected = expected

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return self.expected(obj)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        return decision


def trainer_with(strategy: Any, data: SequenceDataModule | None = None) -> Any:
    return SimpleNamespace(strategy=strategy, precision="32-true", global_rank=1, datamodule=data)


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_strategies_that_spread_layers_are_refused_with_what_to_spread(strategy: type):
    with pytest.raises(InputError, match=f"{strategy.__name__} shards the encoder's weights.*item_table.sharded"):
        check_trainer(trainer_with(strategy()))
    check_trainer(trainer_with(DDPStrategy()))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_weights_that_are_not_float32_are_refused_before_anything_is_trained(precision: str, tmp_path: Path):
    data = SequenceDataModule(Synthetic(num_users=20, mean_events=8), store=str(tmp_path / "store"))
    model = GRU4Rec(data.num_items, d_model=4)
    trainer = pl.Trainer(
        accelerator="cpu",
        precision=precision,
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    for command in (trainer.fit, trainer.test):
        with pytest.raises(InputError, match=f"precision {precision} is not supported.*bf16-mixed.*bfloat16"):
            command(model, data)


def test_ranks_whose_stores_differ_are_refused_with_the_files(tmp_path: Path):
    data = SequenceDataModule(Synthetic(num_users=20, mean_events=8), store=str(tmp_path / "store"))
    check_trainer(trainer_with(TwoRanks(lambda files: files), data))
    other = trainer_with(TwoRanks(lambda files: files | {"item_ids.npy": "0"}), data)
    with pytest.raises(StoreError, match=r"of process 1 differs from process 0's in item_ids.npy.*prepare it again"):
        check_trainer(other)


def test_a_rank_whose_store_is_right_ends_with_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = SequenceDataModule(Synthetic(num_users=20, mean_events=8), store=str(tmp_path / "store"))
    ranks = TwoRanks(lambda files: files)
    monkeypatch.setattr(ranks, "reduce_boolean_decision", lambda decision: False)
    with pytest.raises(StoreError, match="of process 1 is the same as process 0's"):
        check_trainer(trainer_with(ranks, data))


def test_baselines_are_checked_too(tmp_path: Path):
    data = SequenceDataModule(Synthetic(num_users=20, mean_events=8), store=str(tmp_path / "store"))
    model = Popularity(data.num_items)
    trainer = pl.Trainer(accelerator="cpu", precision="64-true", logger=False, enable_progress_bar=False)
    with pytest.raises(InputError, match="precision 64-true is not supported"):
        trainer.test(model, data)
