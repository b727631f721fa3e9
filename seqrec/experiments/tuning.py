"""Step size and batch size by trial, with Lightning's `Tuner`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.tuner.tuning import Tuner
from numpy.typing import NDArray
from torch import Tensor

from seqrec.data.datamodule import SequenceDataModule
from seqrec.errors import InputError
from seqrec.models import SequentialRecommender


@dataclass(frozen=True)
class LrSearch:
    """A range test: training with step sizes that grow from batch to batch.

    Attributes:
        suggestion: See `suggest_lr`.
        lrs: The step sizes.
        losses: Mean loss of the batches of each step.
    """

    suggestion: float
    lrs: list[float]
    losses: list[float]


def find_lr(
    trainer: pl.Trainer,
    model: SequentialRecommender,
    data: SequenceDataModule,
    *,
    min_lr: float = 1e-5,
    max_lr: float = 1.0,
    steps: int = 150,
) -> LrSearch:
    """Search a step size (Cyclical Learning Rates for Training Neural Networks, Smith 2017), and set `model.lr` to it.

    Weights, optimiser and the data's place are afterwards as before, and nothing is logged. All parameters are trained
    with the same step size; tables whose optimiser has one of its own, such as `RowwiseAdagrad`, keep theirs later.

    Args:
        trainer: Trains.
        model: Whose optimiser has an `lr`.
        data: Training windows.
        min_lr: The first step size.
        max_lr: The last one.
        steps: Optimiser steps, each with a larger step size.

    Raises:
        InputError: a range without room, too few steps, an optimiser without `lr`, or losses that do not fall.
    """
    if not 0 < min_lr < max_lr:
        raise InputError(f"min_lr={min_lr} must be above 0 and below max_lr={max_lr}")
    if steps < 2 * _window(steps):
        raise InputError(f"steps={steps} must be at least 20")
    if not hasattr(model, "lr"):
        raise InputError(
            f"the optimizer {type(model.optimizer).__name__} has no lr to search; give it an attribute lr"
        )
    batches: list[Tensor] = []
    # Lightning keeps the loss times the batch's weight, which differs more between batches than the loss does.
    hook = model.loss.register_forward_hook(lambda *call: batches.append(call[-1].detach()))
    try:
        with _bare(trainer):
            found = Tuner(trainer).lr_find(
                model,
                datamodule=data,
                min_lr=min_lr,
                max_lr=max_lr,
                num_training=steps,
                early_stop_threshold=None,
                update_attr=False,
            )
    finally:
        hook.remove()
    assert found is not None
    lrs = found.results["lr"]
    mean = torch.stack(batches)[: len(lrs) * trainer.accumulate_grad_batches].view(len(lrs), -1).mean(1)
    losses: list[float] = trainer.strategy.broadcast(mean.tolist())
    model.lr = suggest_lr(lrs, losses)
    return LrSearch(model.lr, lrs, losses)


def suggest_lr(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """Where the loss has come half the way down from its level at small step sizes to its lowest.

    Lightning's own suggestion takes the slope by the step size itself, which chance makes largest among the smallest.

    Args:
        lrs: Ascending.
        losses: Of one step each; smoothed here by the mean of a tenth of them around each.

    Raises:
        InputError: too few are numbers, or the loss falls no more than it moves by chance.
    """
    values = np.array(losses, dtype=np.float64)
    numbers = int(np.append(~np.isfinite(values), True).argmax())
    window = _window(len(values))
    if numbers < 2 * window:
        raise InputError(
            f"only {numbers} losses are numbers, which is too few to judge by: search from a smaller min_lr, or take "
            "more steps"
        )
    smooth = _smooth(values[:numbers], window)
    first = values[: max(numbers // 4, window)]
    lowest = int(smooth.argmin())
    fall = first.mean() - smooth[lowest]
    if lowest < len(first) or fall < 3 * first.std() / window**0.5:
        raise InputError(
            f"the loss falls by {max(fall, 0.0):.2g}, which may be chance, so no step size can be suggested: search "
            "from a smaller min_lr to a larger max_lr, or take more steps"
        )
    above = np.flatnonzero(smooth[:lowest] >= first.mean() - fall / 2)
    return float(lrs[int(above.max(initial=-1)) + 1])


def find_batch_size(
    trainer: pl.Trainer,
    model: SequentialRecommender,
    data: SequenceDataModule,
    *,
    max_batch_size: int = 8192,
) -> int:
    """Search the largest batch size, a power of 2, whose step fits into the device's memory, and set it in `data`.

    Each size trains on the longest windows that there are. Weights and optimiser are afterwards as before, and nothing
    is logged. On a CPU nothing but `max_batch_size` and the number of windows ends the search, as the system kills
    processes that want too much.

    Args:
        trainer: Trains, as one process.
        model: The model.
        data: Training windows.
        max_batch_size: Largest size that is tried.

    Raises:
        InputError: several ranks, `max_tokens` in place of a batch size, or no room for the smallest size.
    """
    if trainer.world_size > 1:
        raise InputError(
            f"{trainer.world_size} ranks: search with one (devices: 1); the size is that of each rank"
        )
    if data.max_tokens is not None:
        raise InputError(
            f"max_tokens={data.max_tokens} sets the batches, so batch_size has no effect: leave it out"
        )
    if max_batch_size < 1:
        raise InputError(f"max_batch_size={max_batch_size} must be at least 1")
    trials = 1 + int(math.log2(max_batch_size))
    before = data.batch_size
    # Lightning makes the first batches before it sets the first size, and would return max_val itself without a trial.
    data.batch_size, data.longest_first = 1, True
    try:
        with _bare(trainer):
            found = Tuner(trainer).scale_batch_size(
                model,
                datamodule=data,
                steps_per_trial=1,
                init_val=1,
                max_trials=trials,
                max_val=2 * max_batch_size,
            )
    except InputError as error:
        if data.batch_size > 0:
            raise
        data.batch_size = before
        raise InputError(
            "not even a batch of one window fits into memory: lower data.max_length or model.d_model"
        ) from error
    finally:
        data.longest_first = False
    assert found is not None
    return found


def _smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean of the `window` values around each, of fewer at the ends."""
    ones = np.ones(window)
    sums: NDArray[np.float64] = np.convolve(values, ones, "same")
    return sums / np.convolve(np.ones(len(values)), ones, "same")


def _window(losses: int) -> int:
    return max(losses // 10, 10)


@contextmanager
def _bare(trainer: pl.Trainer) -> Iterator[None]:
    """A trainer without loggers, callbacks and an end of training, for as long as it searches."""
    callbacks, loggers = trainer.callbacks, trainer.loggers  # type: ignore[attr-defined]
    epochs = trainer.fit_loop.max_epochs
    trainer.callbacks, trainer.loggers = [], []  # type: ignore[attr-defined]
    trainer.fit_loop.max_epochs = -1
    try:
        yield
    finally:
        trainer.callbacks, trainer.loggers = callbacks, loggers  # type: ignore[attr-defined]
        trainer.fit_loop.max_epochs = epochs
