"""What models with sharded tables need of a trainer."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.xla import XLAStrategy

from seqrec.catalogue.sharding import ShardedEmbedding
from seqrec.errors import InputError


class GatherTables(pl.Callback):
    """Makes the whole of each table that is spread over ranks readable while a model is judged or predicts.

    Each validation, test or prediction sends the tables once; see `ShardedEmbedding.open_whole`.
    """

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the tables."""
        self._open(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close them, before training changes them."""
        self._close(pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the tables."""
        self._open(pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close them."""
        self._close(pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the tables."""
        self._open(pl_module)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close them."""
        self._close(pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Close them where a run ended in between."""
        self._close(pl_module)

    @staticmethod
    def _open(pl_module: pl.LightningModule) -> None:
        for table in sharded_tables(pl_module):
            table.open_whole()

    @staticmethod
    def _close(pl_module: pl.LightningModule) -> None:
        for table in sharded_tables(pl_module):
            table.close_whole()


def sharded_tables(model: torch.nn.Module) -> list[ShardedEmbedding]:
    """A model's tables that can be spread over ranks, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, ShardedEmbedding)]


def check_job(trainer: pl.Trainer) -> None:
    """Refuse what sharded tables cannot be trained with.

    Raises:
        InputError: a strategy other than DDP or a single device, or float16 with a gradient scaler on several ranks.
    """
    strategy = trainer.strategy
    fits = isinstance(strategy, (DDPStrategy, SingleDeviceStrategy))
    if not fits or isinstance(strategy, (DeepSpeedStrategy, XLAStrategy)):
        raise InputError(
            f"item_table.sharded=True spreads rows itself and works with trainer.strategy ddp or a single device, not "
            f"with {type(strategy).__name__}: take strategy ddp, or set item_table.sharded: false"
        )
    # A gradient that overflows in one rank's rows would let that rank alone skip the update.
    if trainer.world_size > 1 and trainer.precision == "16-mixed":
        raise InputError(
            "item_table.sharded=True on several ranks does not work with trainer.precision 16-mixed, whose scaler may "
            "skip an update on one rank alone: take bf16-mixed or 32-true"
        )
