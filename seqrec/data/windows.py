"""Windows: the runs of events that become rows of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqrec.data.ragged import ranges
from seqrec.errors import InputError

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class WindowIndex:
    """Windows over a store's events; window i shows events [starts[i], stops[i]) of one user.

    The target of each event is the event behind it, so the last target is the event at `stops[i]`.

    Attributes:
        user_rows: (W,) int64, row of the user in the store.
        starts: (W,) int64.
        stops: (W,) int64, greater than starts.
    """

    user_rows: Int64
    starts: Int64
    stops: Int64

    @property
    def lengths(self) -> Int64:
        """(W,) events a window."""
        return self.stops - self.starts

    def __len__(self) -> int:
        return len(self.user_rows)

    def __getitem__(self, numbers: Int64 | slice) -> WindowIndex:
        """Only the windows of these numbers, in their order."""
        return WindowIndex(self.user_rows[numbers], self.starts[numbers], self.stops[numbers])


def newest_windows(offsets: Int64, stops: Int64, max_length: int) -> WindowIndex:
    """One window a user: its last `max_length` events before `stops`; users with none are left out."""
    starts = np.maximum(offsets, stops - max_length)
    rows = np.flatnonzero(stops > starts)
    return WindowIndex(rows, starts[rows], stops[rows])


def judged_windows(
    offsets: Int64,
    stops: Int64,
    target_stops: Int64,
    max_length: int,
    *,
    most: int | None = None,
    seed: int = 0,
) -> WindowIndex:
    """The newest windows of users who have history and targets, or of a fixed sample of them.

    Args:
        offsets: (num_users,) first event of each user.
        stops: (num_users,) end of each user's history.
        target_stops: (num_users,) end of the events behind it that the user is judged by.
        max_length: Events a window, at most.
        most: Users, at most; None is all.
        seed: Seed of the sample, which depends on nothing else but who can be judged.
    """
    windows = newest_windows(offsets, stops, max_length)
    windows = windows[np.flatnonzero((target_stops > stops)[windows.user_rows])]
    if most is None or most >= len(windows):
        return windows
    return windows[np.sort(np.random.default_rng(seed).permutation(len(windows))[:most])]


class TrainWindows(ABC):
    """Policy that cuts training histories into windows, anew each epoch."""

    @abstractmethod
    def index(self, offsets: Int64, stops: Int64, max_length: int, rng: np.random.Generator) -> WindowIndex:
        """Windows of at most `max_length` events.

        Which windows may depend on `rng`; how many there are, and their lengths up to order, may not, or epochs
        would differ in their number of batches.

        Args:
            offsets: (num_users,) first event of each user.
            stops: (num_users,) end of each user's windows (its last target).
            max_length: Events a window, at most.
            rng: Random numbers of the epoch.
        """


class NewestWindow(TrainWindows):
    """The last `max_length` events of each user, as SASRec trains; older events are never seen."""

    def index(self, offsets: Int64, stops: Int64, max_length: int, rng: np.random.Generator) -> WindowIndex:
        """One window a user."""
        return newest_windows(offsets, stops, max_length)


class StridedWindows(TrainWindows):
    """All events of each user, in windows whose ends lie `stride` events apart, counted from the newest.

    Args:
        stride: Events between the ends of neighbouring windows. None is `max_length`: windows do not overlap
            and each event is a target once. A smaller stride shows events more than once.
    """

    def __init__(self, stride: int | None = None) -> None:
        if stride is not None and stride < 1:
            raise InputError(f"stride={stride} must be at least 1, or null for max_length")
        self.stride = stride

    def index(self, offsets: Int64, stops: Int64, max_length: int, rng: np.random.Generator) -> WindowIndex:
        """Windows of all users, each user's newest first."""
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
    """One run of `max_length` events of each user, drawn anew each epoch, every place as likely as any other.

    Users with fewer events show all of them. Over many epochs a long history is seen as a whole, at the cost of one
    window a user and epoch; the oldest and newest events fall into fewer places, so they are shown less often.
    """

    def index(self, offsets: Int64, stops: Int64, max_length: int, rng: np.random.Generator) -> WindowIndex:
        """One window a user; users with no events are left out."""
        rows = np.flatnonzero(stops > offsets)
        places = np.maximum(stops[rows] - offsets[rows] - max_length, 0) + 1
        starts = offsets[rows] + rng.integers(places)
        return WindowIndex(rows, starts, np.minimum(starts + max_length, stops[rows]))
