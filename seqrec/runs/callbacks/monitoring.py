"""Monitoring: a run's throughput, time by phase, memory and gradient norm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from seqrec.catalogue.sharding import ShardedEmbedding, total_norm
from seqrec.data.datamodule import SequenceDataModule
from seqrec.ops.row_gradients import sum_rows
from seqrec.runs.lightning_internals import is_accumulating, unwrap_save_checkpoint, wrap_save_checkpoint
from seqrec.runs.measurement import PhaseClock, memory_peaks
from seqrec.types import SequenceBatch

GIB = 1 << 30


class RunMonitor(pl.Callback):
    """Counts events and tokens of all processes, and seconds by phase; a resumed run continues the counts.

    Every `log_every_n_steps` of the trainer it logs `events/s` (events of the windows trained on) and `tokens/s`
    (padding included), both of all processes and per second of training, and `gpu_memory_GiB`, the peak memory of
    tensors on the process's GPU. Only then do processes wait for each other, and Python for the GPU.

    Attributes:
        clock: Seconds by phase.
        events: Events trained on by all processes, as of the last `gather`.
        tokens: Events and padding trained on by all processes, as of the last `gather`.
        targets: Targets trained on by all processes, as of the last `gather`.
        peak_memory: See `Summary.peak_memory`; as of the last `gather`.
    """

    def __init__(self) -> None:
        self.clock = PhaseClock()
        self.events = self.tokens = self.targets = 0
        self.peak_memory: dict[str, int | None] = {"host": None, "device": None, "device_reserved": None}
        # Counts of this process since the last `gather`.
        self._new_events = self._new_targets = torch.zeros((), dtype=torch.int64)
        self._new_tokens = 0
        self._logged = (0, 0, 0.0)
        self._fitting = False

    def gather(self, trainer: pl.Trainer) -> None:
        """Add up the counts of all processes, and keep their largest memory; all processes must call it."""
        device = trainer.strategy.root_device
        new = (self._new_events.to(device), torch.tensor(self._new_tokens, device=device), self._new_targets.to(device))
        events, tokens, targets = trainer.strategy.reduce(torch.stack(new), reduce_op="sum").tolist()
        self.events, self.tokens, self.targets = self.events + events, self.tokens + tokens, self.targets + targets
        self._new_events, self._new_targets = torch.zeros_like(self._new_events), torch.zeros_like(self._new_targets)
        self._new_tokens = 0
        now = torch.tensor(memory_peaks(device), device=device)
        peaks = trainer.strategy.reduce(now, reduce_op="max").tolist()
        for name, value in zip(self.peak_memory, peaks, strict=True):
            self.peak_memory[name] = max(value, self.peak_memory[name] or 0) or None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Start to measure checkpoints and memory."""
        self._fitting = trainer.state.fn == TrainerFn.FITTING
        device = trainer.strategy.root_device
        if device.type == "cuda":
            self.clock.synchronise = partial(torch.cuda.synchronize, device)
            torch.cuda.reset_peak_memory_stats(device)
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, SequenceDataModule):
            self.clock.add("prepare", data.prepare_seconds)
            data.prepare_seconds = 0.0
        wrap_save_checkpoint(trainer, partial(self._checkpoint_phase, trainer))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the trainer."""
        unwrap_save_checkpoint(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stop all clocks, and add this process's counts if it is the only one."""
        self.clock.stop_all()
        unwrap_save_checkpoint(trainer)
        if trainer.world_size == 1:
            self.gather(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of training."""
        self._new_events = self._new_events.to(pl_module.device)
        self._new_targets = self._new_targets.to(pl_module.device)
        self.clock.start("train")
        self._remember()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop it."""
        self.clock.stop("train")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of validation or of the test."""
        self.clock.start("test" if trainer.testing else "validate")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop it."""
        self.clock.stop("test" if trainer.testing else "validate")

    on_test_start, on_test_end = on_validation_start, on_validation_end

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch, and log every `log_every_n_steps`."""
        if isinstance(batch, SequenceBatch):
            # On the device, so that Python does not wait for it.
            self._new_events = self._new_events + batch.history.lengths.sum()
            self._new_targets = self._new_targets + batch.is_target.sum()
            self._new_tokens += batch.history.item_ids.numel()
        if is_accumulating(trainer) or not is_logged(trainer, trainer.global_step):
            return
        self.gather(trainer)
        events, tokens, seconds = self._logged
        self._remember()
        if (passed := self._logged[2] - seconds) > 0:
            pl_module.log("events/s", (self.events - events) / passed, batch_size=1)
            pl_module.log("tokens/s", (self.tokens - tokens) / passed, batch_size=1)
        if self.peak_memory["device"] is not None:
            pl_module.log("gpu_memory_GiB", self.peak_memory["device"] / GIB, batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        """Return the counts and seconds so far."""
        return {
            "events": self.events,
            "tokens": self.tokens,
            "targets": self.targets,
            "seconds": self.clock.seconds,
            "peak_memory": dict(self.peak_memory),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the counts of the resumed run; commands other than `fit` ignore them."""
        if not self._fitting:
            return
        here = self.clock.seconds.get("prepare", 0.0)
        self.events, self.tokens = state_dict["events"], state_dict["tokens"]
        # Older checkpoints are of runs in which all events were targets.
        self.targets = state_dict.get("targets", self.events)
        self.peak_memory = dict(state_dict["peak_memory"])
        self.clock.restore(state_dict["seconds"])
        self.clock.add("prepare", here)

    def _remember(self) -> None:
        self._logged = (self.events, self.tokens, self.clock.seconds.get("train", 0.0))

    @contextmanager
    def _checkpoint_phase(self, trainer: pl.Trainer) -> Iterator[None]:
        self.clock.start("checkpoint")
        try:
            # All processes take part in saving, and the checkpoint contains the counts of all.
            self.gather(trainer)
            yield
        finally:
            self.clock.stop("checkpoint")


class GradientNorm(pl.Callback):
    """Logs `gradient_norm`, the L2 norm of all gradients before clipping, every `log_every_n_steps` of the trainer.

    If tables have row-sparse gradients, `gradient_norm_tables` is the norm of these only. Gradients are averaged over
    processes, and unscaled in fp16. Nothing is logged under FSDP and model parallelism, because no process has all
    gradients.
    """

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure the gradients of the step that follows."""
        split = isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy))
        if split or not is_logged(trainer, trainer.global_step + 1):
            return
        dense, tables = gradient_norms(pl_module)
        norm = dense if tables is None else torch.hypot(dense, tables)
        pl_module.log("gradient_norm", norm, batch_size=1)
        if tables is not None:
            pl_module.log("gradient_norm_tables", tables, batch_size=1)


@torch.no_grad()
def gradient_norms(module: torch.nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return L2 norms of the dense and of the row-sparse gradients, None if no gradient is row-sparse.

    Parameters without a gradient count as 0. All processes must call it if tables are sharded.
    """
    spread = {id(m.weight) for m in module.modules() if isinstance(m, ShardedEmbedding) and m.is_spread}
    gradients = [(id(p), p.grad) for p in module.parameters() if p.grad is not None]
    dense = [gradient for _, gradient in gradients if not gradient.is_sparse]
    # A row that occurs twice counts as its sum.
    rows = {number: sum_rows(gradient)[1] for number, gradient in gradients if gradient.is_sparse}
    whole = [values for number, values in rows.items() if number not in spread]
    own = [values for number, values in rows.items() if number in spread]
    return total_norm(dense, []), total_norm(whole, own) if rows else None


def is_logged(trainer: pl.Trainer, step: int) -> bool:
    """Return whether the trainer logs measurements of a step, counted from 1."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by its logger connector
    return every > 0 and step % every == 0
