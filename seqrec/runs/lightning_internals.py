"""Every use of Lightning's private attributes; the test of this module fails if an upgrade of Lightning moves one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.core import saving
from lightning.pytorch.tuner import lr_finder
from torch import Tensor


def attached_trainer(module: pl.LightningModule) -> pl.Trainer | None:
    """Return the trainer that runs a module; None if none does, for which `module.trainer` raises."""
    return module._trainer


def allow_instantiator(name: str) -> None:
    """Let checkpoints be loaded by the function of this dotted name; Lightning refuses others."""
    saving._ALLOWED_INSTANTIATORS.add(name)


def cluster_environment(trainer: pl.Trainer) -> ClusterEnvironment | None:
    """Return the environment that started the processes, such as SLURM's; None for a single process."""
    return trainer._accelerator_connector.cluster_environment


def is_accumulating(trainer: pl.Trainer) -> bool:
    """Return whether the present batch's gradient waits for further batches before the optimiser steps."""
    return trainer.fit_loop._should_accumulate()


def validation_follows(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Return whether the epoch ends or a validation starts after training batch `batch_idx`."""
    if batch_idx + 1 >= trainer.num_training_batches:
        return True
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


@contextmanager
def showing_lr_search(update: Callable[[], object]) -> Iterator[None]:
    """Call `update` after each step of a search of the step size, instead of Lightning's bar, which fills log files."""

    def bar(desc: str, total: int) -> SimpleNamespace:
        return SimpleNamespace(update=update, close=lambda: None)

    module: Any = lr_finder
    before, module.tqdm = module.tqdm, bar
    try:
        yield
    finally:
        module.tqdm = before


def log_step(module: pl.LightningModule, name: str, value: Tensor, *, on_step: bool, weight: float = 1.0) -> None:
    """Log a scalar at every step, as `module.log(name, value, prog_bar=True)` in a fraction of the time.

    The first call of an epoch calls `log`. Later ones pass the value to the object that Lightning created then; `log`
    would copy and compare all settings, and search everything that belongs to the value for tensors to move. The
    module must be inside one of its hooks, and the value on the same device at all steps. Without `on_step` the mean
    of the epoch is logged at its end, in which the value has a `weight`.
    """
    trainer = attached_trainer(module)
    results = None if trainer is None else trainer._results
    key = f"{module._current_fx_name}.{name}"
    logged = None if results is None else results.get(key)
    if results is None or logged is None or logged.has_reset:
        size: Any = weight  # Lightning declares int, and takes any number
        module.log(name, value, prog_bar=True, on_step=on_step, on_epoch=not on_step, batch_size=size)
    else:
        results.update_metrics(key, value, weight)


def wrap_save_checkpoint(trainer: pl.Trainer, context: Callable[[], AbstractContextManager[None]]) -> None:
    """Run each `trainer.save_checkpoint` inside a context, since no hook runs after a checkpoint is written.

    A trainer that is wrapped already is unchanged. `unwrap_save_checkpoint` restores the method.
    """
    if "save_checkpoint" in vars(trainer):
        return
    save = trainer.save_checkpoint

    @wraps(save)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        with context():
            save(*args, **kwargs)

    vars(trainer)["save_checkpoint"] = wrapped


def unwrap_save_checkpoint(trainer: pl.Trainer) -> None:
    """Restore a trainer's own `save_checkpoint`."""
    vars(trainer).pop("save_checkpoint", None)
