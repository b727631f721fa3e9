"""What a trainer must be for our models to learn what they should; refused before the first step.

Of the ways to spread a model over ranks only data parallelism is taken. What FSDP and DeepSpeed spread are the weights
of the layers, and those of our encoders are few: 4 blocks of width 512 are 7 million numbers, where the table of 30
million items has 15 billion. The table is spread by `item_table.sharded`, whose ranks send the rows of a batch; FSDP
would send all of its rows at every step.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy

from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.store import REMEDY, EventStore
from seqrec.errors import InputError, StoreError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def check_trainer(trainer: pl.Trainer) -> None:
    """Refuse what a recommender cannot be trained with, or would be trained badly with; all ranks must call.

    Raises:
        InputError: a strategy other than DDP or a single device, or a precision whose weights are not float32.
        StoreError: hosts hold different stores.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, (DDPStrategy, SingleDeviceStrategy)) or isinstance(
        strategy, DeepSpeedStrategy
    ):
        raise InputError(
            f"trainer.strategy {type(strategy).__name__} spreads the encoder's weights, which are few; take strategy "
            "ddp, and spread the item table, where the weights are, by item_table.sharded: true"
        )
    if trainer.precision not in PRECISIONS:
        raise InputError(
            f"trainer.precision {trainer.precision} is not taken: weights below float32 round away the steps of Adam "
            f"(bfloat16 does not tell 1.001 from 1). Take {' or '.join(PRECISIONS)}; to halve the item table set "
            "item_table.dtype: bfloat16, which is rounded stochastically; for float64 call model.double()"
        )
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, SequenceDataModule):
        _refuse_other_stores(data.store, strategy, trainer.global_rank)


def _refuse_other_stores(store: EventStore, strategy: Any, rank: int) -> None:
    """Compare the hashes in manifests on all ranks, before one waits for steps that another does not take."""
    files = {name: entry["sha256"] for name, entry in store.manifest["files"].items()}
    expected = strategy.broadcast(files)
    differing = sorted(
        name for name in files.keys() | expected.keys() if files.get(name) != expected.get(name)
    )
    if strategy.reduce_boolean_decision(not differing):
        return
    found = f"differs from rank 0's in {', '.join(differing)}" if differing else "is as rank 0's"
    raise StoreError(
        f"the processes of this job read different stores: {store.directory} of rank {rank} {found}. Give all hosts "
        f"the same log, and where each has its store on a disk of its own, {REMEDY} there; or a data.store that all see"
    )
