"""Search of the step size and the batch size, with Lightning's `Tuner`."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.tuner.tuning import Tuner
from numpy.typing import NDArray
from torch import Tensor

from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.progress import STATUS, Progress
from seqrec.errors import InputError, check_at_least
from seqrec.models import SequentialRecommender
from seqrec.runs.lightning_internals import showing_lr_search


@dataclass(frozen=True)
class LrSearch:
    """Result of a range test: step sizes that grow, the mean loss at each, and `suggest_lr` of both."""

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

    Each of `steps` optimizer steps has a larger step size. Weights, optimizer and the position in the data are restored
    afterwards, and nothing is logged. The search trains all parameters with the same step size. Tables with an
    optimizer of their own, such as `RowwiseAdagrad`, keep its step size later.

    Raises:
        InputError: if the range is empty, `steps` is too small, the optimizer has no `lr`, or the loss does not fall.
    """
    if not 0 < min_lr < max_lr:
        raise InputError(f"min_lr={min_lr} must be above 0 and below max_lr={max_lr}")
    check_at_least(20, steps=steps)
    if not hasattr(model, "lr"):
        name = type(model.optimizer).__name__
        raise InputError(f"the optimizer {name} has no lr to search; give it an attribute lr")
    batches: list[Tensor] = []
    # Lightning keeps a smoothed loss, in which the minimum lags.
    hook = model.loss.register_forward_hook(lambda *call: batches.append(call[-1].detach()))
    stage = Progress(STATUS if trainer.is_global_zero else None).stage("searching", steps, unit="steps")
    try:
        with _bare(trainer), showing_lr_search(partial(stage.advance, 1)):
            search = partial(Tuner(trainer).lr_find, model, datamodule=data, min_lr=min_lr, max_lr=max_lr)
            found = search(num_training=steps, early_stop_threshold=None, update_attr=False)
    finally:
        hook.remove()
    assert found is not None
    stage.end()
    lrs = found.results["lr"]
    mean = torch.stack(batches)[: len(lrs) * trainer.accumulate_grad_batches].view(len(lrs), -1).mean(1)
    losses: list[float] = trainer.strategy.broadcast(mean.tolist())
    model.lr = suggest_lr(lrs, losses)
    return LrSearch(model.lr, lrs, losses)


def suggest_lr(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """Return the step size at which the loss is halfway between its level at small step sizes and its minimum.

    Step sizes ascend, and each has the loss of one step, which is smoothed here by the mean of a tenth of them around
    each. Lightning's own suggestion takes the slope by the step size itself. By chance, that slope is largest among the
    smallest step sizes.

    Raises:
        InputError: if too few are finite, or the loss falls no more than by chance.

    Example:
        >>> lrs = [10 ** (-4 + step / 25) for step in range(100)]
        >>> losses = [2.0] * 40 + [2 - step / 20 for step in range(20)] + [1.0] * 20 + [5.0] * 20
        >>> round(suggest_lr(lrs, losses), 2)
        0.01
    """
    values = np.array(losses, dtype=np.float64)
    numbers = int(np.append(~np.isfinite(values), True).argmax())
    window = _window(len(values))
    if numbers < 2 * window:
        found = f"only {numbers} losses are finite, which is too few to judge by"
        raise InputError(f"{found}: search from a smaller min_lr, or take more steps")
    smooth = _smooth(values[:numbers], window)
    first = values[: max(numbers // 4, window)]
    lowest = int(smooth.argmin())
    fall = first.mean() - smooth[lowest]
    if lowest < len(first) or fall < _by_chance(values[:numbers], lowest, len(first), window):
        found = f"the loss falls by {max(fall, 0.0):.2g}, which may be chance, so no step size can be suggested"
        raise InputError(f"{found}: search from a smaller min_lr to a larger max_lr, or take more steps")
    above = np.flatnonzero(smooth[:lowest] >= first.mean() - fall / 2)
    return float(lrs[int(above.max(initial=-1)) + 1])


def find_batch_size(
    trainer: pl.Trainer, model: SequentialRecommender, data: SequenceDataModule, *, max_batch_size: int = 8192
) -> int:
    """Search the largest batch size, a power of 2, that fits into the device's memory, and set it in `data`.

    Each size trains on the longest windows. Weights and optimizer are restored afterwards, and nothing is logged. On a
    CPU only `max_batch_size` and the number of windows end the search, because the system kills processes that need
    too much memory.

    Raises:
        InputError: if several processes train, `max_tokens` is set, or the smallest size does not fit.
    """
    if trainer.world_size > 1:
        raise InputError(f"{trainer.world_size} processes: search with one (devices: 1); each has that size")
    if data.max_tokens is not None:
        raise InputError(f"max_tokens={data.max_tokens} sets the batches, and batch_size is unused: leave it out")
    check_at_least(1, max_batch_size=max_batch_size)
    trials = 1 + int(math.log2(max_batch_size))
    before = data.batch_size
    # Lightning makes the first batches before it sets the first size, and returns max_val itself without trying it.
    data.batch_size, data.longest_first = 1, True
    stage = Progress(STATUS).stage("searching", 2**trials - 1, unit="windows")

    def count(*call: object) -> None:
        if data.batch_size == 1:
            stage.total = min(2**trials, 2 * trainer.num_training_batches) - 1
        stage.advance(data.batch_size, f"batch_size {data.batch_size}")

    hook = model.loss.register_forward_hook(count)
    try:
        with _bare(trainer):
            search = partial(Tuner(trainer).scale_batch_size, model, datamodule=data, steps_per_trial=1)
            found = search(init_val=1, max_trials=trials, max_val=2 * max_batch_size)
    except InputError as error:
        if data.batch_size > 0:
            raise
        data.batch_size = before
        message = "not even a batch of one window fits into memory: lower data.max_length or model.d_model"
        raise InputError(message) from error
    finally:
        data.longest_first = False
        hook.remove()
    assert found is not None
    stage.end()
    return found


def _by_chance(values: NDArray[np.float64], lowest: int, first: int, window: int) -> float:
    # A fall that losses without a trend reach in a hundredth of all searches, as the lowest of all windows is taken.
    # The noise is that of differences between neighbours, in which a trend does not show.
    noise = np.diff(values[: lowest + 1]).std() / 2**0.5
    deviations = -NormalDist().inv_cdf(0.001 * window / len(values))
    in_window = min(window, len(values) - lowest + window // 2)
    return float(deviations * noise * (1 / in_window + 1 / first) ** 0.5)


def _smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    # Mean of the `window` values around each, of fewer at the ends.
    ones = np.ones(window)
    sums: NDArray[np.float64] = np.convolve(values, ones, "same")
    return sums / np.convolve(np.ones(len(values)), ones, "same")


def _window(losses: int) -> int:
    return max(losses // 10, 10)


@contextmanager
def _bare(trainer: pl.Trainer) -> Iterator[None]:
    # Remove loggers, callbacks and the end of training during the search, and what Lightning notes at each run of it.
    notes = logging.getLogger("lightning.pytorch")
    level = notes.level
    notes.setLevel(logging.WARNING)
    callbacks, loggers = trainer.callbacks, trainer.loggers  # type: ignore[attr-defined]
    epochs = trainer.fit_loop.max_epochs
    trainer.callbacks, trainer.loggers = [], []  # type: ignore[attr-defined]
    trainer.fit_loop.max_epochs = -1
    try:
        yield
    finally:
        trainer.callbacks, trainer.loggers = callbacks, loggers  # type: ignore[attr-defined]
        trainer.fit_loop.max_epochs = epochs
        notes.setLevel(level)
