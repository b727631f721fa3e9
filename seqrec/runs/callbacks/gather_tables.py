"""Gathers sharded tables while a model is evaluated."""

from __future__ import annotations

import lightning.pytorch as pl
import torch

from seqrec.catalogue.sharding import ShardedEmbedding


class GatherTables(pl.Callback):
    """Gathers all rows of sharded tables in each process for validation, test and prediction.

    Each of these sends the tables once; see `ShardedEmbedding.open_whole`.
    """

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather the tables."""
        for table in sharded_tables(pl_module):
            table.open_whole()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Free the gathered tables, before training changes them."""
        for table in sharded_tables(pl_module):
            table.close_whole()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Free the gathered tables if a run ends in between."""
        self.on_validation_end(trainer, pl_module)


def sharded_tables(model: torch.nn.Module) -> list[ShardedEmbedding]:
    """Return a model's tables that can be sharded over processes, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, ShardedEmbedding)]
