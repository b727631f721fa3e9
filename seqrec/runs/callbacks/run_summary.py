"""Writes `summary.json` into a run's folder and keeps it up to date."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from seqrec.data.datamodule import SequenceDataModule
from seqrec.errors import InputError, StoppedError
from seqrec.runs import Summary
from seqrec.runs.callbacks.monitoring import RunMonitor
from seqrec.runs.callbacks.resume_points import ResumePoints
from seqrec.runs.callbacks.step_seeds import StepSeeds
from seqrec.runs.config_files import CONFIGS
from seqrec.runs.provenance import git_state, hardware, parameter_counts, versions
from seqrec.runs.trainer_checks import caveats


class RunSummary(pl.Callback):
    """Writes `summary.json` when a command starts, at each epoch's end, and when the run ends in any way.

    See `seqrec.runs.Summary` for its content. The trainer needs a `RunMonitor` too. Without a folder, as in a
    `fast_dev_run`, nothing is written.

    Attributes:
        has_trained: Whether a batch was trained on by this process.
        folder: The run's folder; None without one.
    """

    def __init__(self) -> None:
        self.folder: str | None = None
        self._fitting = False
        self._started = ""
        self._made_with: dict[str, Any] = {}
        self._epochs = 0
        self._steps = 0
        self.has_trained = False
        self._resumed_from: str | None = None
        self._best: dict[str, Any] | None = None
        self._ended: dict[str, Any] | None = None
        self._validated_at = 0
        self._metrics: dict[str, dict[str, float]] = {}
        self._caveats: list[str] = []
        self._checkpoint: str | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Choose the folder, and collect hardware and versions.

        Raises:
            InputError: if the trainer has no `RunMonitor`.
        """
        _monitor(trainer)
        self.folder = trainer.log_dir  # all processes must read it
        self._fitting = trainer.state.fn == TrainerFn.FITTING
        if not self._started:
            self._started = _now()
            self._made_with = {"versions": versions(), "hardware": hardware(), "git": git_state()}
            self._made_with["data"] = _data(trainer) if trainer.is_global_zero else None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the checkpoint that this run resumes from."""
        self._resumed_from = _loaded(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report that the run has started."""
        self._epochs, self._steps = trainer.current_epoch, trainer.global_step
        self._write(trainer, pl_module, "running")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count steps."""
        self._steps, self.has_trained = trainer.global_step, True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the metrics, and whether they are the best."""
        if trainer.sanity_checking:
            return
        values = _numbers(trainer.callback_metrics)
        self._keep("val_", values)
        if not self._fitting:
            self._checkpoint = _loaded(trainer)
        self._caveats = caveats(trainer, pl_module, "val")
        found = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
        if not self._fitting or not found or found[0].monitor not in values:
            return
        metric, sign = str(found[0].monitor), -1 if found[0].mode == "min" else 1
        value = values[metric]
        self._validated_at = trainer.global_step
        if self._best is None or sign * value > sign * self._best["value"]:
            place = {"epoch": trainer.current_epoch, "step": trainer.global_step}
            self._best = {"metric": metric, "value": value, **place}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the run's progress."""
        # A run that ends by steps or by time may end within an epoch.
        self._epochs = trainer.current_epoch + trainer.is_last_batch
        _monitor(trainer).gather(trainer)
        self._write(trainer, pl_module, "running")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report why training ended, and how long ago validation was best."""
        self._ended = {"by": _reason(trainer), "step": trainer.global_step}
        learns = any(parameter.requires_grad for parameter in pl_module.parameters())
        if self.has_trained and learns and self._best is not None:
            rank_zero_info(end_of_training(self._ended, self._best, self._validated_at))

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the metrics."""
        self._keep("test_", _numbers(trainer.callback_metrics))
        self._checkpoint = _loaded(trainer)
        self._caveats = caveats(trainer, pl_module, "test")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Report that the command has finished."""
        _monitor(trainer).gather(trainer)
        self._write(trainer, pl_module, "finished")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Report the reason for the run's end."""
        if self.folder is not None:
            exception.run_folder = self.folder  # type: ignore[attr-defined]  # where the command line keeps the traceback
        by_signal = isinstance(exception, (KeyboardInterrupt, SIGTERMException, StoppedError))
        error = f"{type(exception).__name__}: {exception}".removesuffix(": ")
        self._write(trainer, pl_module, "interrupted" if by_signal else "failed", error)

    def state_dict(self) -> dict[str, Any]:
        """Return the best validation so far."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the resumed run's best validation; commands other than `fit` ignore it."""
        if self._fitting:
            self._best = state_dict["best"]

    def _keep(self, prefix: str, values: Mapping[str, float]) -> None:
        self._metrics[prefix] = {
            name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)
        }

    def _write(self, trainer: pl.Trainer, module: pl.LightningModule, status: str, error: str | None = None) -> None:
        if self.folder is None or not trainer.is_global_zero:
            return
        monitor, saved = _monitor(trainer), trainer.checkpoint_callbacks
        seconds = monitor.clock.seconds
        trained = seconds.get("train", 0.0)
        Summary(
            status=status,
            error=error,
            model=str(getattr(module, "title", type(module).__name__)),
            epochs=self._epochs,
            steps=self._steps,
            events=monitor.events,
            tokens=monitor.tokens,
            targets=monitor.targets,
            target_filter=_target_filter(trainer),
            seconds={name: round(value, 6) for name, value in seconds.items()},
            events_per_second=monitor.events / trained if trained else None,
            tokens_per_second=monitor.tokens / trained if trained else None,
            peak_memory=dict(monitor.peak_memory),
            parameters=parameter_counts(module),
            best=self._best_with_file(trainer),
            ended=self._ended,
            validation=self._metrics.get("val_"),
            test=self._metrics.get("test_"),
            protocol=getattr(getattr(module, "protocol", None), "id", None),
            seeds=_seeds(trainer),
            job=_job(trainer),
            command=_as_typed(sys.argv),
            resume=next(filter(None, (c.resume_command for c in saved if isinstance(c, ResumePoints))), None),
            resumed_from=self._resumed_from,
            started=self._started,
            updated=_now(),
            caveats=self._caveats,
            checkpoint=self._checkpoint,
            **self._made_with,
        ).write(self.folder)

    def _best_with_file(self, trainer: pl.Trainer) -> dict[str, Any] | None:
        files = [c.best_model_path for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        return None if self._best is None else {**self._best, "checkpoint": next(filter(None, files), None)}


def _as_typed(words: Sequence[str]) -> str:
    """Return a command as people type it: the program by its name, and configs of the package by theirs."""
    program, *options = map(Path, words)
    is_ours = program.name == "seqrec" or program.parts[-2:] == ("seqrec", "__main__.py")
    typed = ["seqrec" if is_ours else words[0]]
    for option, word in zip(options, words[1:], strict=True):
        if "\n" in word:
            # A config from inside a checkpoint is text, with lines.
            typed.append("(config of the checkpoint)")
        elif option.is_relative_to(CONFIGS):
            typed.append(option.relative_to(CONFIGS).with_suffix("").as_posix())
        else:
            typed.append(word)
    return shlex.join(typed)


def end_of_training(ended: Mapping[str, Any], best: Mapping[str, Any], validated_at: int) -> str:
    """Return a line for people: when and why training ended, and whether validation still rose.

    Args:
        ended: `by` and `step`, as in a `Summary`.
        best: Likewise.
        validated_at: Update of the last validation.

    Example:
        >>> best = {"metric": "val_NDCG@10", "value": 0.0512, "step": 2600}
        >>> print(end_of_training({"by": "patience", "step": 4200}, best, 4200))
        training ended after 4,200 updates, by patience: val_NDCG@10 was best, 0.0512, after 2,600
    """
    line = f"training ended after {ended['step']:,} updates, by {ended['by']}"
    line += f": {best['metric']} was best, {best['value']:.4f}, after {best['step']:,}"
    rising = ended["by"] == "budget" and best["step"] == validated_at
    return f"{line}, its last validation: a larger budget (trainer.max_steps) may be better" if rising else line


def _reason(trainer: pl.Trainer) -> str:
    lost = EarlyStoppingReason.PATIENCE_EXHAUSTED
    if any(isinstance(c, EarlyStopping) and c.stopping_reason == lost for c in _callbacks(trainer)):
        return "patience"
    epochs = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch
    return "budget" if epochs or 0 <= trainer.max_steps <= trainer.global_step else "a callback"


def _monitor(trainer: pl.Trainer) -> RunMonitor:
    found = [callback for callback in _callbacks(trainer) if isinstance(callback, RunMonitor)]
    if not found:
        raise InputError("RunSummary needs a RunMonitor: Trainer(callbacks=[RunMonitor(), RunSummary()])")
    return found[0]


def _callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    return trainer.callbacks  # type: ignore[attr-defined,no-any-return]  # set by its callback connector


def _loaded(trainer: pl.Trainer) -> str | None:
    return None if trainer.ckpt_path is None else str(trainer.ckpt_path)


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _seeds(trainer: pl.Trainer) -> dict[str, int | None]:
    steps = [callback.seed for callback in _callbacks(trainer) if isinstance(callback, StepSeeds)]
    given = os.environ.get("PL_GLOBAL_SEED")
    run = next(iter(steps), None)
    return {
        "run": int(given) if run is None and given is not None else run,
        "data": getattr(getattr(trainer, "datamodule", None), "seed", None),
    }


def _data(trainer: pl.Trainer) -> dict[str, Any] | None:
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, SequenceDataModule):
        return None
    source, store = data.source, data.store
    described = {"source": source.describe()["name"], "licence": source.licence, "store": str(store.directory)}
    return {**described, "counts": store.manifest["counts"]}


def _target_filter(trainer: pl.Trainer) -> dict[str, Any] | None:
    data = getattr(trainer, "datamodule", None)
    return data.described_targets() if isinstance(data, SequenceDataModule) else None


def _job(trainer: pl.Trainer) -> dict[str, Any]:
    return {
        "ranks": trainer.world_size,
        "nodes": trainer.num_nodes,
        "device": trainer.strategy.root_device.type,
        "strategy": type(trainer.strategy).__name__,
        "precision": str(trainer.precision),
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
    }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
