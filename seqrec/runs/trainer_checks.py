"""Checks of a trainer before the first step, and what callbacks ask it.

Only data parallelism is supported for several processes. FSDP and DeepSpeed shard the weights of the layers, and our
encoders have few of those: 4 blocks of width 512 are 7 million numbers, and a table of 30 million items has 15
billion. `item_table.sharded` shards the table and sends the rows of a batch. FSDP would send all rows at every step.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.xla import XLAStrategy

from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.manifest import REMEDY
from seqrec.data.store import EventStore
from seqrec.errors import InputError, StoreError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def check_trainer(trainer: pl.Trainer) -> None:
    """Refuse a trainer that cannot train a recommender, or would train it badly; all processes must call it.

    Raises:
        InputError: if the strategy is not DDP or a single device, or the precision has no float32 weights.
        StoreError: if hosts have different stores.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, (DDPStrategy, SingleDeviceStrategy)) or isinstance(strategy, DeepSpeedStrategy):
        raise InputError(
            f"trainer.strategy {type(strategy).__name__} shards the encoder's weights, which are few; use strategy "
            "ddp, and shard the item table, which has most weights, by item_table.sharded: true"
        )
    if trainer.precision not in PRECISIONS:
        raise InputError(
            f"trainer.precision {trainer.precision} is not supported: weights below float32 round away the steps of "
            f"Adam (in bfloat16, 1.001 is 1). Use {' or '.join(PRECISIONS)}; to halve the item table set "
            "item_table.dtype: bfloat16, which is rounded stochastically; for float64 call model.double()"
        )
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, SequenceDataModule):
        _refuse_other_stores(data.store, strategy, trainer.global_rank)


def check_sharding(trainer: pl.Trainer) -> None:
    """Refuse a trainer that cannot train sharded tables.

    Raises:
        InputError: if the strategy is not DDP or a single device, or several processes use float16 with a scaler.
    """
    strategy = trainer.strategy
    fits = isinstance(strategy, (DDPStrategy, SingleDeviceStrategy))
    if not fits or isinstance(strategy, (DeepSpeedStrategy, XLAStrategy)):
        raise InputError(
            f"item_table.sharded=True works with trainer.strategy ddp or a single device, not with "
            f"{type(strategy).__name__}: use strategy ddp, or set item_table.sharded: false"
        )
    # If a gradient overflows in the rows of one process, only that process would skip the update.
    if trainer.world_size > 1 and trainer.precision == "16-mixed":
        raise InputError(
            "item_table.sharded=True on several processes does not work with trainer.precision 16-mixed: its scaler "
            "may skip an update in one process only. Use bf16-mixed or 32-true"
        )


def data_of(trainer: pl.Trainer, callback: pl.Callback) -> SequenceDataModule:
    """Return the trainer's data module, for a callback that needs the log.

    Raises:
        InputError: if it has no `SequenceDataModule`.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, SequenceDataModule):
        raise InputError(
            f"{type(callback).__name__} needs a SequenceDataModule, which has the log; test with one, or leave the "
            "callback out"
        )
    return data


def is_printed(trainer: pl.Trainer, stage: str) -> bool:
    """Return whether this process prints the table of a test or validation: the first, unless it is not `verbose`."""
    loops = {"test": trainer.test_loop, "validate": trainer.validate_loop}
    return stage in loops and loops[stage].verbose and trainer.is_global_zero


def caveats(trainer: pl.Trainer, model: pl.LightningModule, stage: str) -> list[str]:
    """Return what the figures of a stage, `val` or `test`, are of, if not of a trained model and all users."""
    found = ["fresh weights"] if getattr(model, "has_fresh_weights", False) else []
    loader = trainer.val_dataloaders if stage == "val" else trainer.test_dataloaders
    judged = trainer.num_val_batches if stage == "val" else trainer.num_test_batches
    if loader is not None and sum(judged) < len(loader):
        limit = getattr(trainer, f"limit_{stage}_batches")
        found.append(f"part of the users (trainer.limit_{stage}_batches={limit})")
    return found


def _refuse_other_stores(store: EventStore, strategy: Any, rank: int) -> None:
    """Compare the manifests' hashes of all processes, before one waits for steps that another does not have."""
    files = {name: entry["sha256"] for name, entry in store.manifest["files"].items()}
    expected = strategy.broadcast(files)
    differing = sorted(name for name in files.keys() | expected.keys() if files.get(name) != expected.get(name))
    if strategy.reduce_boolean_decision(not differing):
        return
    found = f"differs from process 0's in {', '.join(differing)}" if differing else "is the same as process 0's"
    raise StoreError(
        f"the processes of this job read different stores: {store.directory} of process {rank} {found}. Give all hosts "
        f"the same log; if each has its store on its own disk, {REMEDY} there, or use a data.store that all can read"
    )
