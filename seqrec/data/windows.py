"""Windows: runs of events that become rows of a batch. U users, W windows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from seqrec.data.targets import LogTargets
from seqrec.errors import InputError

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class WindowIndex:
    """Windows over a store's events; window i contains events [starts[i], stops[i]) of one user.

    The target of each event is the next event, so the last target is the event at `stops[i]`.

    Attributes:
        user_rows: (W,) int64, row of the user in the store.
        starts: (W,) int64.
        stops: (W,) int64, greater than starts.
        num_targets: (W,) int64, number of events in a window whose next event is a target; None is all of them.
    """

    user_rows: Int64
    starts: Int64
    stops: Int64
    num_targets: Int64 | None = None

    @property
    def lengths(self) -> Int64:
        """(W,) events a window."""
        return self.stops - self.starts

    def __len__(self) -> int:
        return len(self.user_rows)

    def __getitem__(self, numbers: Int64 | slice) -> WindowIndex:
        """Return the windows with these numbers, in their order."""
        targets = None if self.num_targets is None else self.num_targets[numbers]
        return WindowIndex(self.user_rows[numbers], self.starts[numbers], self.stops[numbers], targets)

    def with_targets(self, targets: LogTargets, *, slide: bool) -> WindowIndex:
        """Return the windows with their numbers of targets, each at least 1.

        A window without any is left out, or if `slide` it moves forward up to the user's next target, which must exist.
        """
        starts, stops = self.starts, self.stops
        found = targets.count(starts + 1, stops + 1)
        if not slide:
            return replace(self, num_targets=found)[np.flatnonzero(found)]
        empty = np.flatnonzero(found == 0)
        following = targets.select(targets.rank(stops[empty] + 1))
        stops = stops.copy()
        stops[empty] = following
        return WindowIndex(self.user_rows, stops - self.lengths, stops, np.maximum(found, 1))


def newest_windows(offsets: Int64, stops: Int64, max_length: int) -> WindowIndex:
    """Return one window a user: its last `max_length` events before `stops`. Users with none are left out."""
    starts = np.maximum(offsets, stops - max_length)
    rows = np.flatnonzero(stops > starts)
    return WindowIndex(rows, starts[rows], stops[rows])


def judged_windows(
    offsets: Int64, stops: Int64, target_stops: Int64, max_length: int, *, most: int | None = None, seed: int = 0
) -> WindowIndex:
    """Return the newest windows of users who have history and targets, or of a fixed sample of `most` of them.

    The history of each user is between its `offsets` and `stops` (U,); the targets follow, up to `target_stops` (U,).
    For equal seeds and users the sample is the same.
    """
    windows = newest_windows(offsets, stops, max_length)
    return _sample(windows[np.flatnonzero((target_stops > stops)[windows.user_rows])], most, seed)


def prequential_windows(
    offsets: Int64, stops: Int64, target_stops: Int64, *, most: int | None = None, seed: int = 0
) -> WindowIndex:
    """Return the whole history of each user up to the event before its last target, as `judged_windows` does."""
    rows = np.flatnonzero((target_stops > stops) & (stops > offsets))
    return _sample(WindowIndex(rows, offsets[rows].astype(np.int64), target_stops[rows] - 1), most, seed)


def _sample(windows: WindowIndex, most: int | None, seed: int) -> WindowIndex:
    if most is None or most >= len(windows):
        return windows
    return windows[np.sort(np.random.default_rng(seed).permutation(len(windows))[:most])]


def ranges(starts: Int64, counts: Int64) -> Int64:
    """Return `starts[i], starts[i] + 1, ..., starts[i] + counts[i] - 1` for each i, one range after the other."""
    before = np.cumsum(counts) - counts
    numbers: Int64 = np.arange(counts.sum()) + np.repeat(starts - before, counts)
    return numbers


class TrainWindows(ABC):
    """Policy that cuts training histories into windows, anew each epoch.

    With a target filter, `stops` are each user's last training target, and windows without a target are not trained on.

    Attributes:
        random: Whether the choice of windows depends on `rng`. If a window without a target turns up then, it moves
            forward to the user's next target, because the number of windows must not depend on the epoch.

    Example:
        >>> import numpy as np
        >>> from seqrec import NewestWindow, TrainWindows
        >>> policy: TrainWindows = NewestWindow()
        >>> index = policy.index(np.array([0, 5]), np.array([5, 7]), max_length=3, rng=np.random.default_rng(0))
        >>> index.starts.tolist(), index.stops.tolist()
        ([2, 5], [5, 7])
    """

    random: bool = False

    @abstractmethod
    def index(self, offsets: Int64, stops: Int64, max_length: int, rng: np.random.Generator) -> WindowIndex:
        """Return windows of at most `max_length` events.

        The choice of windows may depend on `rng`. Their number, and their lengths up to order, may not, or epochs
        would differ in their number of batches.

        Args:
            offsets: (U,) first event of each user.
            stops: (U,) end of each user's windows (its last target).
            max_length: Events a window, at most.
            rng: Random numbers of the epoch.
        """


class NewestWindow(TrainWindows):
    """The last `max_length` events of each user, as SASRec trains. Older events are unused.

    Example:
        >>> import numpy as np
        >>> from seqrec import NewestWindow
        >>> len(NewestWindow().index(np.array([0, 5]), np.array([5, 5]), 3, np.random.default_rng(0)))
        1
    """

    def index(self, offsets: Int64, stops: Int64, max_length: int, rng: np.random.Generator) -> WindowIndex:
        """Return one window a user. Users without events are left out."""
        return newest_windows(offsets, stops, max_length)


class StridedWindows(TrainWindows):
    """All events of each user, in windows with ends `stride` events apart, counted from the newest.

    Args:
        stride: Events between the ends of neighbouring windows. None is `max_length`: windows do not overlap
            and each event is a target once. With a smaller stride events are in several windows.

    Raises:
        InputError: if `stride` is below 1.

    Example:
        >>> import numpy as np
        >>> from seqrec import StridedWindows
        >>> index = StridedWindows(stride=2).index(np.array([0]), np.array([5]), 3, np.random.default_rng(0))
        >>> index.starts.tolist(), index.stops.tolist()
        ([2, 0], [5, 3])
    """

    def __init__(self, stride: int | None = None) -> None:
        if stride is not None and stride < 1:
            raise InputError(f"stride={stride} must be at least 1, or null for max_length")
        self.stride = stride

    def index(self, offsets: Int64, stops: Int64, max_length: int, rng: np.random.Generator) -> WindowIndex:
        """Return the windows of all users, each user's newest first."""
        stride = self.stride or max_length
        if stride > max_length:
            raise InputError(f"stride={stride} exceeds max_length={max_length}: events between would be lost")
        counts = np.maximum(stops - offsets, 0)
        # The oldest window is the first that reaches the user's first event.
        windows = np.where(counts > 0, -(-np.maximum(counts - max_length, 0) // stride) + 1, 0)
        rows = np.repeat(np.arange(len(offsets)), windows)
        nth = ranges(np.zeros_like(windows), windows)
        ends = stops[rows] - nth * stride
        return WindowIndex(rows, np.maximum(offsets[rows], ends - max_length), ends)


class RandomCrop(TrainWindows):
    """One run of `max_length` events of each user, drawn anew each epoch, with every place equally likely.

    Users with fewer events have all of them in the window. Over many epochs the whole of a long history is used, at
    the cost of one window a user and epoch. The oldest and newest events are in fewer of the places, so less often.

    Example:
        >>> import numpy as np
        >>> from seqrec import RandomCrop
        >>> index = RandomCrop().index(np.array([0]), np.array([1000]), 10, np.random.default_rng(0))
        >>> index.lengths.tolist()
        [10]
    """

    random = True

    def index(self, offsets: Int64, stops: Int64, max_length: int, rng: np.random.Generator) -> WindowIndex:
        """Return one window a user. Users without events are left out."""
        rows = np.flatnonzero(stops > offsets)
        places = np.maximum(stops[rows] - offsets[rows] - max_length, 0) + 1
        starts = offsets[rows] + rng.integers(places)
        return WindowIndex(rows, starts, np.minimum(starts + max_length, stops[rows]))
