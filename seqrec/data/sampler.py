"""Batches of windows: shuffled, rows of similar length together, divided between processes.

In a step each process trains on one batch. W windows, S steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler, SequentialSampler

from seqrec.data.windows import WindowIndex, ranges
from seqrec.errors import InputError

Int64 = NDArray[np.int64]

# Lengths are similar if they agree in this many leading bits, so they differ by 1/32 at most. Fewer bits make batches
# more random and their padding larger.
LIKE_BITS = 6


@dataclass(frozen=True)
class BatchPlan:
    """The windows of one batch, which a sampler sends to the loader, with `SequenceBatch.weight` and `.continues`."""

    windows: WindowIndex
    weight: float
    continues: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class TrainedSegment:
    """The steps of an epoch that one job trained on, before another one with other settings resumed the run.

    `world_size` processes shared the windows; see `BatchSampler` for the other settings.
    """

    steps: int
    world_size: int
    batch_size: int | None
    max_tokens: int | None


@dataclass(frozen=True)
class _EpochPlan:
    """Steps of an epoch, for all processes: all windows, step after step.

    Attributes:
        bounds: (S + 1,) start of each step in `windows`; the last one is W.
        sequence: (S,) the order of the steps.
        first_ranks: (S,) rank of the process that gets each step's first window; the others follow in turn.
        continues: (W,) `SequenceBatch.continues` of each window; None without `carry_state`.
    """

    windows: WindowIndex
    bounds: Int64
    sequence: Int64
    first_ranks: Int64
    continues: NDArray[np.bool_] | None = None

    def remaining(self, steps: int) -> WindowIndex:
        """Return the windows of all steps but the first ones, in the order of `windows`."""
        begins, ends = self.bounds[:-1], self.bounds[1:]
        left = np.sort(self.sequence[steps:])
        return self.windows[ranges(begins[left], (ends - begins)[left])]


class BatchSampler(DistributedSampler[BatchPlan]):
    """Yields one process's batches. The batches of all processes contain every window of an epoch once.

    Seed, epoch, windows and world size determine an epoch. Windows are ordered longest first and split into steps.
    The windows of a step go to the processes in turn, so all processes take the same number of steps and have a
    similar number of events in each. With `shuffle`, windows of similar length are in random order before the split,
    each step begins with a random process, and the steps are shuffled. Without `bucket` all windows are in random
    order.

    If the last step has fewer windows than processes, they join the step before. A batch may thus have one row more
    than `batch_size` or `max_tokens` allow.

    With `carry_state`, row b of a batch is the window that follows the one in row b of the batch before, as language
    models are trained by truncated back-propagation through time. Users are in random order, each one's windows follow
    from the oldest to the newest, and this sequence of windows is cut into as many runs of equal length as a step has
    rows. A run stays in one row of one process. Rows do not have similar lengths. At most `rows - 1` users an epoch are
    cut between two runs, and the first window of a run continues no other. If the last step has fewer windows than
    processes, these windows are further rows of the first step.

    As a `DistributedSampler` it gets `set_epoch` from Lightning, which then does not shard it a second time.

    Args:
        windows: Makes an epoch's windows from the epoch's random numbers.
        batch_size: Windows a batch and process; None with `max_tokens`.
        max_tokens: Events a batch and process, padding included: rows times the longest row. At least the longest
            window. None with `batch_size`.
        shuffle: Whether each epoch has a new order. Otherwise the longest windows come first, and a lack of memory
            shows at once.
        bucket: Whether rows of similar length are in one batch. Without `shuffle` they always are.
        carry_state: Whether rows continue those of the batch before. The windows of a user must not overlap. Without
            `shuffle` the longest windows come first, and no row continues another.
        seed: Seed of windows and order.
        rank: Number of this process, 0..world_size - 1.
        world_size: Number of processes that share the windows.

    Raises:
        InputError: if a value is out of range, if both or none of `batch_size` and `max_tokens` are given, if
            `max_tokens` is given without `bucket`, or if there are fewer windows than processes.
    """

    def __init__(
        self,
        windows: Callable[[np.random.Generator], WindowIndex],
        *,
        batch_size: int | None = None,
        max_tokens: int | None = None,
        shuffle: bool,
        bucket: bool = True,
        carry_state: bool = False,
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
        if max_tokens is not None and shuffle and not (bucket or carry_state):
            raise InputError(
                f"max_tokens={max_tokens} needs rows of similar length together: bucket by length, or set batch_size"
            )
        self.windows = windows
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.shuffle = shuffle
        self.bucket = bucket or not shuffle
        self.carry_state = carry_state
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self._skipped = 0
        self._segments: tuple[TrainedSegment, ...] = ()
        # The same for each epoch. Windows that cannot be batched show here, at once.
        self._steps = len(self._plan(epoch=0).sequence)

    def resume(self, segments: Sequence[TrainedSegment], steps: int) -> int:
        """Let the next iteration, and only that one, yield the rest of an epoch that other jobs began.

        The windows that they did not train on are ordered and split anew, for this job's processes. Each window is thus
        still trained on once in the epoch. `segments` were trained with other settings than this sampler's, in order;
        `steps` followed with its own settings.

        Returns:
            The number of batches to count as done. With the remaining ones they make up `len`, that of the whole epoch.

        Raises:
            InputError: if the epoch has fewer steps, if a number is negative, or if fewer windows than processes are
                left.
        """
        plan = self._plan(self.epoch, segments)
        if not 0 <= steps <= len(plan.sequence):
            raise InputError(f"cannot skip {steps} batches of an epoch that has {len(plan.sequence)}")
        self._segments, self._skipped = tuple(segments), steps
        return len(self) - len(plan.sequence) + steps

    def num_windows(self, steps: int) -> int:
        """Return the number of windows of all processes in the first `steps` steps of the epoch."""
        plan = self._plan(self.epoch)
        return int(np.diff(plan.bounds)[plan.sequence[:steps]].sum())

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[BatchPlan]:
        # A generator starts when its first batch is requested: torch makes iterators that it never uses.
        segments, self._segments = self._segments, ()
        skipped, self._skipped = self._skipped, 0
        plan = self._plan(self.epoch, segments)
        if not segments and len(plan.sequence) != len(self):
            raise InputError(
                f"windows of epoch {self.epoch} make {len(plan.sequence)} batches, those of epoch 0 made {len(self)}; "
                "their number and lengths must not depend on the epoch"
            )
        targets_a_batch = _num_targets(plan.windows) / (len(plan.sequence) * self.world_size)
        for step in plan.sequence[skipped:]:
            begin, end = plan.bounds[step : step + 2]
            begin += (self.rank - plan.first_ranks[step]) % self.world_size
            own = slice(begin, end, self.world_size)
            mine = plan.windows[own]
            weight = _num_targets(mine) / targets_a_batch if self.bucket or self.carry_state else 1.0
            yield BatchPlan(mine, weight, None if plan.continues is None else plan.continues[own])

    def _plan(self, epoch: int, segments: Sequence[TrainedSegment] = ()) -> _EpochPlan:
        """Return the steps of an epoch after segments, with this sampler's settings."""
        rng = np.random.default_rng((self.seed, epoch))
        windows = self.windows(rng)
        for number, segment in enumerate(segments, start=1):
            windows = self._split(windows, segment, rng).remaining(segment.steps)
            rng = np.random.default_rng((self.seed, epoch, number))
        own = TrainedSegment(0, self.world_size, self.batch_size, self.max_tokens)
        return self._split(windows, own, rng)

    def _split(self, windows: WindowIndex, segment: TrainedSegment, rng: np.random.Generator) -> _EpochPlan:
        """Return all steps of windows, with a segment's settings."""
        if len(windows) < segment.world_size:
            raise InputError(
                f"{len(windows)} windows cannot be divided between {segment.world_size} processes, as each needs one "
                "a step; use fewer processes"
            )
        if self.carry_state and self.shuffle:
            return _plan_of_runs(windows, segment, rng)
        windows = windows[self._order(windows.lengths, rng)]
        starts = split_into_steps(step_sizes(windows.lengths, segment), segment.world_size)
        steps = np.arange(len(starts))
        return _EpochPlan(
            windows,
            bounds=np.append(starts, len(windows)),
            sequence=rng.permutation(steps) if self.shuffle else steps,
            first_ranks=rng.integers(segment.world_size, size=len(steps)) if self.shuffle else steps,
            continues=np.zeros(len(windows), dtype=np.bool_) if self.carry_state else None,
        )

    def _order(self, lengths: Int64, rng: np.random.Generator) -> Int64:
        """Return the order of the windows (W,) before they are split into steps."""
        if not self.shuffle:
            return np.argsort(-lengths, kind="stable")
        order = rng.permutation(len(lengths))
        return order[np.argsort(-like_lengths(lengths[order]), kind="stable")] if self.bucket else order


class SequentialBatches(BatchSampler, SequentialSampler):  # type: ignore[misc]  # the class is only a mark
    """Batches in the same order at each epoch, which Lightning recognizes by the class."""


def _num_targets(windows: WindowIndex) -> float:
    return float((windows.lengths if windows.num_targets is None else windows.num_targets).sum())


def _plan_of_runs(windows: WindowIndex, segment: TrainedSegment, rng: np.random.Generator) -> _EpochPlan:
    """Return steps in which each row continues that of the step before; see `BatchSampler`."""
    users = np.unique(windows.user_rows, return_inverse=True)[1]
    windows = windows[np.lexsort((windows.starts, rng.permutation(users.max() + 1)[users]))]
    most = int(step_sizes(windows.lengths, segment).min())
    num_steps, last = divmod(len(windows), most)
    if last >= segment.world_size or not num_steps:
        # The first runs are one window longer.
        runs = np.repeat([num_steps + 1, num_steps], [last, most - last if num_steps else 0])
    else:
        runs = np.repeat([num_steps, 1], [most, last])
    first, steps = np.cumsum(runs) - runs, np.arange(runs[0])
    rows = (runs > steps[:, None]).sum(1)
    places = first[ranges(np.zeros_like(rows), rows)] + np.repeat(steps, rows)
    follows = np.ones(len(windows), dtype=np.bool_)
    follows[first] = False
    # After another number of processes, windows that were trained on are missing between others.
    same = (windows.user_rows[1:] == windows.user_rows[:-1]) & (windows.starts[1:] == windows.stops[:-1])
    follows[1:] &= same
    bounds = np.append(0, np.cumsum(rows))
    return _EpochPlan(windows[places], bounds, steps, np.zeros_like(steps), follows[places])


def step_sizes(lengths: Int64, segment: TrainedSegment) -> Int64:
    """Return the number of windows (W,) in a step that starts at each window; windows are in the order of the split."""
    if segment.max_tokens is None:
        assert segment.batch_size is not None
        return np.full(len(lengths), segment.batch_size * segment.world_size)
    longest = int(lengths.max())
    if segment.max_tokens < longest:
        raise InputError(
            f"max_tokens={segment.max_tokens} cannot hold the longest window, {longest} events; raise it, or lower "
            "max_length"
        )
    # With rounded lengths the number of steps does not depend on the shuffling of similar lengths.
    return segment.world_size * (segment.max_tokens // np.minimum(like_lengths(lengths), longest))


def like_lengths(lengths: Int64) -> Int64:
    """Return lengths rounded up to 6 leading bits: less than 1/32 more, and equal for similar lengths."""
    # Integers only: processes on different machines must agree, but their logarithms might not.
    bits = np.frexp(lengths.astype(np.float64))[1]
    shift = np.maximum(bits - LIKE_BITS, 0)
    rounded: Int64 = -(-lengths >> shift) << shift
    return rounded


def split_into_steps(sizes: Int64, least: int) -> Int64:
    """Split a row of W windows into steps, and return the start (S,) of each, ascending from 0.

    `sizes` (W,) are the numbers of windows in a step that starts there. A last step of fewer than `least` windows joins
    the step before.
    """
    changes = np.flatnonzero(np.diff(sizes)) + 1
    runs, begin = [], 0
    # Sizes are constant over long runs, so this loop runs over lengths, not over windows.
    for end, size in zip([*changes.tolist(), len(sizes)], sizes[[0, *changes]].tolist(), strict=True):
        runs.append(np.arange(begin, end, size))
        begin += len(runs[-1]) * size
    starts = np.concatenate(runs)
    return starts[:-1] if len(starts) > 1 and len(sizes) - starts[-1] < least else starts
