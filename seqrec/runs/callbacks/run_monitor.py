"""How fast a run is, where its time goes, and how much memory it takes."""

from __future__ import annotations

import sys
from functools import partial, wraps
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn

from seqrec.data.datamodule import SequenceDataModule
from seqrec.runs.clock import PhaseClock
from seqrec.types import SequenceBatch

GIB = 1 << 30


class RunMonitor(pl.Callback):
    """Counts events and tokens of all ranks, and seconds by phase; a resumed run goes on counting.

    Every `log_every_n_steps` of the trainer it logs `events/s` (events of the windows trained on), `tokens/s` (padding
    included), both of all ranks by the time of training alone, and `gpu_memory_GiB`, the most memory of tensors on
    the rank's GPU so far. Only then do ranks, and Python and the GPU, wait for each other.
    """

    def __init__(self) -> None:
        self.clock = PhaseClock()
        # Of all ranks when they last told each other; of this rank since then.
        self._events = self._tokens = 0
        self._new_events = torch.zeros((), dtype=torch.int64)
        self._new_tokens = 0
        self._logged = (0, 0, 0.0)
        self._peak: dict[str, int | None] = {"host": None, "device": None, "device_reserved": None}
        self._fitting = False

    @property
    def events(self) -> int:
        """Events trained on by all ranks, when they last told each other."""
        return self._events

    @property
    def tokens(self) -> int:
        """Events and padding trained on by all ranks, when they last told each other."""
        return self._tokens

    @property
    def peak_memory(self) -> dict[str, int | None]:
        """See `Summary.peak_memory`; as of the last `gather`."""
        return dict(self._peak)

    def gather(self, trainer: pl.Trainer) -> None:
        """Add up the counts of all ranks, and take their largest memory; all ranks must call."""
        device = trainer.strategy.root_device
        counts = torch.stack([self._new_events.to(device), torch.tensor(self._new_tokens, device=device)])
        events, tokens = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        self._events, self._tokens = self._events + events, self._tokens + tokens
        self._new_events, self._new_tokens = torch.zeros_like(self._new_events), 0
        now = torch.tensor(memory_peaks(device), device=device)
        peaks = trainer.strategy.reduce(now, reduce_op="max").tolist()
        for name, value in zip(self._peak, peaks, strict=True):
            self._peak[name] = max(value, self._peak[name] or 0) or None

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
        self._time_checkpoints(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the trainer as it was."""
        vars(trainer).pop("save_checkpoint", None)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Stop all clocks; count what only this rank knows where it is the only one."""
        self.clock.stop_all()
        vars(trainer).pop("save_checkpoint", None)
        if trainer.world_size == 1:
            self.gather(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of training."""
        self._new_events = self._new_events.to(pl_module.device)
        self.clock.start("train")
        self._remember()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop it."""
        self.clock.stop("train")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of validation."""
        self.clock.start("validate")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop it."""
        self.clock.stop("validate")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of the test."""
        self.clock.start("test")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop it."""
        self.clock.stop("test")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch, and log when it is time."""
        if isinstance(batch, SequenceBatch):
            # In place and on the device: nobody waits.
            self._new_events += batch.history.lengths.sum()
            self._new_tokens += batch.history.item_ids.numel()
        if trainer.fit_loop._should_accumulate() or not is_logged(trainer, trainer.global_step):
            return
        self.gather(trainer)
        events, tokens, seconds = self._logged
        self._remember()
        if (passed := self._logged[2] - seconds) > 0:
            pl_module.log("events/s", (self._events - events) / passed, batch_size=1)
            pl_module.log("tokens/s", (self._tokens - tokens) / passed, batch_size=1)
        if self._peak["device"] is not None:
            pl_module.log("gpu_memory_GiB", self._peak["device"] / GIB, batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        """Counts and seconds so far."""
        return {
            "events": self._events,
            "tokens": self._tokens,
            "seconds": self.clock.seconds,
            "peak_memory": self.peak_memory,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting where the run that is resumed had come; other commands only read weights."""
        if not self._fitting:
            return
        here = self.clock.seconds.get("prepare", 0.0)
        self._events, self._tokens = state_dict["events"], state_dict["tokens"]
        self._peak = dict(state_dict["peak_memory"])
        self.clock.restore(state_dict["seconds"])
        self.clock.add("prepare", here)

    def _remember(self) -> None:
        self._logged = (self._events, self._tokens, self.clock.seconds.get("train", 0.0))

    def _time_checkpoints(self, trainer: pl.Trainer) -> None:
        # Trainers call nothing behind a checkpoint, so the method of this one is put into a clock.
        if "save_checkpoint" in vars(trainer):
            return
        save = trainer.save_checkpoint

        @wraps(save)
        def timed(*args: Any, **kwargs: Any) -> None:
            self.clock.start("checkpoint")
            try:
                # All ranks take part in saving, and the checkpoint holds what all have counted.
                self.gather(trainer)
                save(*args, **kwargs)
            finally:
                self.clock.stop("checkpoint")

        vars(trainer)["save_checkpoint"] = timed


def is_logged(trainer: pl.Trainer, step: int) -> bool:
    """Whether the trainer logs what is measured of a step, counted from 1."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by its logger connector
    return every > 0 and step % every == 0


def memory_peaks(device: torch.device) -> list[int]:
    """Most bytes so far: resident in memory, of tensors on a GPU, kept by torch on it; 0 where there is no such."""
    host = 0
    if sys.platform != "win32":
        import resource

        # Linux counts in KiB, macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device.type != "cuda":
        return [host, 0, 0]
    return [host, torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)]
