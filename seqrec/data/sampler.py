"""Which windows go into which batch: shuffled, rows of like length together, divided between ranks.

A step is what all ranks do at once: one batch each. W windows, S steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler

from seqrec.data.ragged import ranges
from seqrec.data.windows import WindowIndex
from seqrec.errors import InputError

Int64 = NDArray[np.int64]

# Lengths count as alike when they agree in this many leading bits, so they differ by 1/32 at most. Fewer bits make
# batches more random and their padding larger.
LIKE_BITS = 6


@dataclass(frozen=True)
class BatchPlan:
    """The windows of one batch, which a sampler sends to the processes that read them.

    Attributes:
        windows: The batch's rows.
        weight: See `SequenceBatch.weight`.
    """

    windows: WindowIndex
    weight: float


@dataclass(frozen=True)
class TrainedSegment:
    """The part of an epoch that was trained on in one way, before the run was resumed in another.

    Attributes:
        steps: Steps that were taken.
        world_size: Processes that shared the windows.
        batch_size: As of `BatchSampler`.
        max_tokens: As of `BatchSampler`.
    """

    steps: int
    world_size: int
    batch_size: int | None
    max_tokens: int | None


@dataclass(frozen=True)
class _EpochPlan:
    """Steps of an epoch, for all ranks.

    Attributes:
        windows: All windows, those of a step behind each other.
        bounds: (S + 1,) where each step starts in `windows`; the last one is W.
        sequence: (S,) the order of the steps.
        first_ranks: (S,) the rank that each step's first window goes to; the others follow in turn.
    """

    windows: WindowIndex
    bounds: Int64
    sequence: Int64
    first_ranks: Int64

    def behind(self, steps: int) -> WindowIndex:
        """The windows of all steps but the first ones, in the order in which windows were cut."""
        begins, ends = self.bounds[:-1], self.bounds[1:]
        left = np.sort(self.sequence[steps:])
        return self.windows[ranges(begins[left], (ends - begins)[left])]


class BatchSampler(DistributedSampler[BatchPlan]):
    """Yields one rank's batches, every window of an epoch once over all ranks.

    An epoch is fixed by (seed, epoch, windows, world size). Windows are ordered longest first, cut into steps, and
    each step's windows dealt out to the ranks in turn, so that ranks take equally many steps and have like many
    events in each. With `shuffle`, windows of almost the same length are in random order before the cut, another
    rank begins the deal of each step, and the steps are shuffled. Without `bucket` all windows are in random order.

    Where the last step of the cut has fewer windows than there are ranks, they join the step before: so a batch may
    have one row more than `batch_size` or `max_tokens` allow.

    It is a `DistributedSampler` only so that Lightning calls `set_epoch` and does not shard it a second time.

    Args:
        windows: Makes an epoch's windows from the epoch's random numbers.
        batch_size: Windows a batch and rank; None with `max_tokens`.
        max_tokens: Events a batch and rank, padding included: rows times the longest row. At least the longest
            window. None with `batch_size`.
        shuffle: New order each epoch; otherwise longest first, so that lack of memory shows at once.
        bucket: Whether rows of like length go together. Without `shuffle` they always do.
        seed: Seed of windows and order.
        rank: This process, 0..world_size - 1.
        world_size: Processes that share the windows.

    Raises:
        InputError: a value out of range, both or none of `batch_size` and `max_tokens`, `max_tokens` without
            `bucket`, or fewer windows than processes.
    """

    def __init__(
        self,
        windows: Callable[[np.random.Generator], WindowIndex],
        *,
        batch_size: int | None = None,
        max_tokens: int | None = None,
        shuffle: bool,
        bucket: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if (batch_size is None) == (max_tokens is None):
            raise InputError(
                f"batch_size={batch_size} and max_tokens={max_tokens}: give exactly one, and null for the other"
            )
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be at least 1")
        if max_tokens is not None and shuffle and not bucket:
            raise InputError(
                f"max_tokens={max_tokens} needs rows of like length together: bucket by length, or set batch_size"
            )
        self.windows = windows
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.shuffle = shuffle
        self.bucket = bucket or not shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self._skipped = 0
        self._legs: tuple[TrainedSegment, ...] = ()
        # The same for each epoch; made here, so that windows that cannot be batched show at once.
        self._steps = len(self._plan(epoch=0).sequence)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration yields."""
        self.epoch = epoch

    def skip(self, batches: int) -> None:
        """Let the next iteration, and only that one, start behind the first `batches` batches of its epoch.

        `len` stays that of the whole epoch.

        Raises:
            InputError: an epoch has fewer batches, or the number is negative.
        """
        self.resume((), batches)

    def resume(self, legs: Sequence[TrainedSegment], steps: int) -> int:
        """Let the next iteration, and only that one, yield what other jobs left of its epoch.

        The windows that the jobs did not train on are ordered, cut and dealt out anew, to this job's ranks, so that
        each window is still trained on once in the epoch.

        Args:
            legs: What was trained in other ways than this sampler's, in that order.
            steps: Steps that were taken after that in this sampler's way.

        Returns:
            The batches to count as done, so that those which follow make up `len`.

        Raises:
            InputError: the epoch has fewer steps, a number is negative, or there are fewer windows left than ranks.
        """
        plan = self._plan(self.epoch, legs)
        if not 0 <= steps <= len(plan.sequence):
            raise InputError(f"cannot skip {steps} batches of an epoch that has {len(plan.sequence)}")
        self._legs, self._skipped = tuple(legs), steps
        return len(self) - len(plan.sequence) + steps

    def num_windows(self, steps: int) -> int:
        """Windows of all ranks in the first `steps` steps of the epoch."""
        plan = self._plan(self.epoch)
        return int(np.diff(plan.bounds)[plan.sequence[:steps]].sum())

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[BatchPlan]:
        # As a generator this runs when the first batch is asked for: torch makes iterators that it never asks.
        legs, self._legs = self._legs, ()
        skipped, self._skipped = self._skipped, 0
        plan = self._plan(self.epoch, legs)
        if not legs and len(plan.sequence) != len(self):
            raise InputError(
                f"windows of epoch {self.epoch} make {len(plan.sequence)} batches, those of epoch 0 made {len(self)}; "
                "their number and lengths must not depend on the epoch"
            )
        yield from self._batches(plan, skipped)

    def _batches(self, plan: _EpochPlan, skipped: int) -> Iterator[BatchPlan]:
        tokens_a_batch = plan.windows.lengths.sum() / (len(plan.sequence) * self.world_size)
        for step in plan.sequence[skipped:]:
            begin, end = plan.bounds[step : step + 2]
            begin += (self.rank - plan.first_ranks[step]) % self.world_size
            mine = plan.windows[begin : end : self.world_size]
            yield BatchPlan(mine, float(mine.lengths.sum() / tokens_a_batch) if self.bucket else 1.0)

    def _plan(self, epoch: int, legs: Sequence[TrainedSegment] = ()) -> _EpochPlan:
        """What is left of an epoch behind legs, in this sampler's way."""
        rng = np.random.default_rng((self.seed, epoch))
        windows = self.windows(rng)
        for number, leg in enumerate(legs, start=1):
            windows = self._cut(windows, leg, rng).behind(leg.steps)
            rng = np.random.default_rng((self.seed, epoch, number))
        return self._cut(windows, TrainedSegment(0, self.world_size, self.batch_size, self.max_tokens), rng)

    def _cut(self, windows: WindowIndex, leg: TrainedSegment, rng: np.random.Generator) -> _EpochPlan:
        """All steps of windows, in a leg's way."""
        if len(windows) < leg.world_size:
            raise InputError(
                f"{len(windows)} windows cannot be divided between {leg.world_size} processes, as each needs one "
                "a step; use fewer processes"
            )
        windows = windows[self._order(windows.lengths, rng)]
        starts = cut(step_sizes(windows.lengths, leg), leg.world_size)
        steps = np.arange(len(starts))
        return _EpochPlan(
            windows,
            bounds=np.append(starts, len(windows)),
            sequence=rng.permutation(steps) if self.shuffle else steps,
            first_ranks=rng.integers(leg.world_size, size=len(steps)) if self.shuffle else steps,
        )

    def _order(self, lengths: Int64, rng: np.random.Generator) -> Int64:
        """(W,) window numbers in the order in which they are cut."""
        if not self.shuffle:
            return np.argsort(-lengths, kind="stable")
        order = rng.permutation(len(lengths))
        return order[np.argsort(-like_lengths(lengths[order]), kind="stable")] if self.bucket else order


def step_sizes(lengths: Int64, leg: TrainedSegment) -> Int64:
    """(W,) windows of the step that would start at each window; windows are in cutting order."""
    if leg.max_tokens is None:
        assert leg.batch_size is not None
        return np.full(len(lengths), leg.batch_size * leg.world_size)
    longest = int(lengths.max())
    if leg.max_tokens < longest:
        raise InputError(
            f"max_tokens={leg.max_tokens} cannot hold the longest window, {longest} events; raise it, or lower "
            "max_length"
        )
    # Rounded lengths, so that the number of steps does not hang on how like lengths are shuffled.
    return leg.world_size * (leg.max_tokens // np.minimum(like_lengths(lengths), longest))


def like_lengths(lengths: Int64) -> Int64:
    """Lengths rounded up to 6 leading bits: less than 1/32 more, and the same for lengths that are almost alike."""
    # Integers alone: ranks on different machines must agree, which their logarithms might not.
    bits = np.frexp(lengths.astype(np.float64))[1]
    shift = np.maximum(bits - LIKE_BITS, 0)
    rounded: Int64 = -(-lengths >> shift) << shift
    return rounded


def cut(sizes: Int64, least: int) -> Int64:
    """Where steps start in a row of W windows.

    Args:
        sizes: (W,) windows of the step that would start there.
        least: Windows that the last step must have, or it joins the step before.

    Returns:
        (S,) ascending, the first one is 0.
    """
    changes = np.flatnonzero(np.diff(sizes)) + 1
    runs, begin = [], 0
    # Sizes are constant over long runs, so this loops over lengths, not over windows.
    for end, size in zip([*changes.tolist(), len(sizes)], sizes[[0, *changes]].tolist(), strict=True):
        runs.append(np.arange(begin, end, size))
        begin += len(runs[-1]) * size
    starts = np.concatenate(runs)
    return starts[:-1] if len(starts) > 1 and len(sizes) - starts[-1] < least else starts
