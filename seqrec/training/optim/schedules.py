"""Step-size schedules. Updates are counted from 0; w updates of warm-up, T updates in all."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from seqrec.errors import InputError, check_at_least

Ratio = Callable[[int], float]


class Schedule(ABC):
    """Share of the step size at each update; arguments are kept as attributes because checkpoints store them."""

    @abstractmethod
    def ratio(self, total_steps: float) -> Ratio:
        """Return the share of the step size at update 0, 1, ...; T is infinite if the run has no end.

        Raises:
            InputError: if the schedule needs an end, or a later one.
        """

    def build(self, optimizer: Optimizer, total_steps: float) -> LRScheduler:
        """Return a scheduler of all groups, each relative to its own step size; step it after each of T updates.

        Raises:
            InputError: see `ratio`.
        """
        return LambdaLR(optimizer, self.ratio(total_steps))


class LinearWarmup(Schedule):
    """`min(1, (update + 1) / w)`: rises in equal steps, then stays (Goyal et al. 2017, section 2.2).

    Args:
        warmup_steps: Updates w until the step size is reached.

    Raises:
        InputError: if `warmup_steps` is below 1.

    Example:
        >>> from seqrec import LinearWarmup
        >>> ratio = LinearWarmup(warmup_steps=4).ratio(total_steps=100)
        >>> [ratio(update) for update in (0, 1, 3, 50)]
        [0.25, 0.5, 1.0, 1.0]
    """

    def __init__(self, warmup_steps: int) -> None:
        check_at_least(1, warmup_steps=warmup_steps)
        self.warmup_steps = warmup_steps

    def ratio(self, total_steps: float) -> Ratio:
        """Return the share of the step size by update."""
        return lambda update: _warmup(update, self.warmup_steps)


class WarmupCosine(Schedule):
    """Linear warm-up, then half a cosine from 1 to `min_ratio` at the end (Loshchilov & Hutter 2017, equation 5).

    Args:
        warmup_steps: Updates w of `LinearWarmup`; 0 for none.
        min_ratio: Share of the step size at update T and after it.

    Raises:
        InputError: if `warmup_steps` is below 0, or `min_ratio` outside 0..1.

    Example:
        >>> from seqrec import WarmupCosine
        >>> ratio = WarmupCosine(warmup_steps=2, min_ratio=0.1).ratio(total_steps=12)
        >>> [round(ratio(update), 3) for update in (0, 2, 7, 12)]
        [0.5, 1.0, 0.55, 0.1]
    """

    def __init__(self, warmup_steps: int, *, min_ratio: float = 0.0) -> None:
        check_at_least(0, warmup_steps=warmup_steps)
        self.warmup_steps = warmup_steps
        if not 0 <= min_ratio <= 1:
            raise InputError(f"min_ratio={min_ratio} must be between 0 and 1")
        self.min_ratio = min_ratio

    def ratio(self, total_steps: float) -> Ratio:
        """Return the share of the step size by update."""
        if math.isinf(total_steps):
            raise InputError("WarmupCosine needs the run's end: set trainer.max_epochs or trainer.max_steps")
        if self.warmup_steps >= total_steps:
            raise InputError(
                f"warmup_steps={self.warmup_steps} must be below the {total_steps} steps of the run: "
                "warm up for fewer, or train longer"
            )

        def ratio(update: int) -> float:
            if update < self.warmup_steps:
                return _warmup(update, self.warmup_steps)
            done = min(1.0, (update - self.warmup_steps) / (total_steps - self.warmup_steps))
            return self.min_ratio + (1 - self.min_ratio) * (1 + math.cos(math.pi * done)) / 2

        return ratio


class InverseSquareRoot(Schedule):
    """`min((update + 1) / w, sqrt(w / (update + 1)))`, the Transformer's schedule (Vaswani et al. 2017, equation 3).

    The paper's peak depends on width and w; here it is the optimiser's step size.

    Args:
        warmup_steps: Updates w of linear warm-up.

    Raises:
        InputError: if `warmup_steps` is below 1.

    Example:
        >>> from seqrec import InverseSquareRoot
        >>> ratio = InverseSquareRoot(warmup_steps=4).ratio(total_steps=100)
        >>> [ratio(update) for update in (0, 3, 15)]
        [0.25, 1.0, 0.5]
    """

    def __init__(self, warmup_steps: int) -> None:
        check_at_least(1, warmup_steps=warmup_steps)
        self.warmup_steps = warmup_steps

    def ratio(self, total_steps: float) -> Ratio:
        """Return the share of the step size by update."""
        warmup = self.warmup_steps
        return lambda update: min(_warmup(update, warmup), math.sqrt(warmup / (update + 1)))


def _warmup(update: int, warmup_steps: int) -> float:
    # The first update counts as 1, because an update with step size 0 would be wasted.
    return min(1.0, (update + 1) / warmup_steps)
