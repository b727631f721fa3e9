"""Launches a training step on a GPU as two CUDA graphs instead of hundreds of kernels."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from seqrec.catalogue.sharding import ShardedEmbedding
from seqrec.catalogue.table import ItemEmbedding
from seqrec.data.datamodule import SequenceDataModule
from seqrec.errors import InputError, check_at_least
from seqrec.training.graphs import GraphedLoss
from seqrec.training.losses import Loss
from seqrec.training.recorder import CudaRecorder, Recorder


class GraphedStep(pl.Callback):
    """Records forward and backward pass as CUDA graphs, one pair for each padded length, and launches those.

    Small models at short histories keep a GPU waiting for Python, which launches each kernel by itself. A graph is
    launched at once. Losses, gradients and draws are those of the same padded batch without graphs. The optimiser,
    gradient clipping, accumulation, checks of the loss and logging stay as they are. Supported are one GPU and DDP, all
    precisions, dense and row-sparse item tables, and the objectives with `Loss.takes_padding`.

    Tests on a CPU prove the padding and the bookkeeping, with a stand-in that computes the passes again. Those in
    `tests/gpu/test_cuda_graphs.py` prove the graphs themselves: run them on your GPU first.

    Histories are padded to 32, 48, 64, 96, 128, .. events, or to the longest window: at most half as many events more,
    which the GPU computes too. Batches with fewer rows, such as an epoch's last one, and shapes beyond `max_graphs` are
    computed without a graph; their number is printed at the end. The first batch of a shape takes about a second. All
    graphs share the memory of the largest step, and hold another copy of the gradients.

    Args:
        enabled: Whether steps are recorded.
        max_graphs: Most padded lengths that are recorded.

    Example:
        >>> from seqrec.runs.callbacks import GraphedStep
        >>> GraphedStep().max_graphs
        20
    """

    def __init__(self, enabled: bool = True, *, max_graphs: int = 20) -> None:
        check_at_least(1, max_graphs=max_graphs)
        self.enabled = enabled
        self.max_graphs = max_graphs
        self._loss: GraphedLoss | None = None

    def recorder(self, device: torch.device) -> Recorder:
        """Return what records the passes.

        Raises:
            InputError: if the device has no CUDA graphs.
        """
        if device.type != "cuda":
            raise InputError(
                f"GraphedStep needs a CUDA device, and this run is on {device.type}: set trainer.accelerator=gpu, or "
                "graphed_step.enabled=false"
            )
        return CudaRecorder(device)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prepare the recording.

        Raises:
            InputError: if the device, the strategy, the model, its objective, its tables or the batches do not fit.
        """
        if not self.enabled:
            return
        recorder = self.recorder(trainer.strategy.root_device)
        loss = _checked_loss(trainer, pl_module)
        data = _data_of(trainer)
        self._loss = GraphedLoss(
            pl_module,
            recorder,
            num_rows=None if data is None else data.batch_size,
            max_length=pl_module.hparams["max_length"] if data is None else data.max_length,
            needs_seen=loss.needs_seen,
            max_graphs=self.max_graphs,
        )
        pl_module.graphed_loss = self._loss  # type: ignore[assignment]  # nn.Module declares tensors and modules

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Free the graphs, and print how many batches were computed by them."""
        if (loss := self._loss) is not None:
            rank_zero_info(
                f"GraphedStep: {loss.recorded:,} batches by CUDA graphs of {loss.num_graphs} lengths, {loss.eager:,} "
                "without"
            )
        self._free(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Free the graphs."""
        self._free(pl_module)

    def _free(self, pl_module: pl.LightningModule) -> None:
        if self._loss is not None:
            self._loss = pl_module.graphed_loss = None  # type: ignore[assignment]


def _data_of(trainer: pl.Trainer) -> SequenceDataModule | None:
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, SequenceDataModule) else None


def _checked_loss(trainer: pl.Trainer, module: Any) -> Loss:
    """Return the model's objective; refuse what cannot be recorded."""
    if not hasattr(module, "graphed_loss"):
        raise InputError(f"{type(module).__name__} has no step that GraphedStep can record; leave it out")
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        name = type(trainer.strategy).__name__
        raise InputError(f"GraphedStep supports one GPU or DDP, not {name}; set trainer.strategy=ddp")
    data = _data_of(trainer)
    if data is not None and data.max_tokens is not None:
        raise InputError(
            f"GraphedStep needs batches of equal rows, but data.max_tokens={data.max_tokens} makes their number depend "
            "on lengths; set data.batch_size instead"
        )
    loss: Loss = module.loss
    if not loss.takes_padding:
        drawing = "" if loss.negatives is None else f" with {type(loss.negatives).__name__}"
        raise InputError(
            f"GraphedStep pads batches, which model.loss={type(loss).__name__}{drawing} does not support: use BCE, "
            "GBCE, SampledSoftmax or FullSoftmax with uniform or popularity negatives, or leave GraphedStep out"
        )
    if getattr(module, "heads", None) is not None:
        raise InputError("GraphedStep records the loss of the item alone: leave it or model.heads out")
    if getattr(module, "carried", None) is not None:
        raise InputError("GraphedStep cannot record a state that changes with each batch: leave it or carry_state out")
    _check_tables(module)
    if any(getattr(part, "recompute", False) or part._compiled_call_impl is not None for part in module.modules()):
        raise InputError(
            "GraphedStep cannot record a compiled encoder or recomputed blocks: leave execution.compile and "
            "execution.activation_checkpointing false"
        )
    return loss


def _check_tables(module: nn.Module) -> None:
    tables = [part for part in module.modules() if isinstance(part, ItemEmbedding)]
    if any(isinstance(table.table, ShardedEmbedding) for table in tables):
        raise InputError("GraphedStep cannot record item_table.sharded, whose rows processes exchange: leave one out")
    if any(table.content is not None for table in tables):
        raise InputError(
            "GraphedStep cannot record item_table.content and user_columns, which are read from the CPU: leave one out"
        )
