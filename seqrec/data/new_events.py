"""The targets of continued training: new events, and windows of older ones. U users, E events, W windows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqrec.data.collate import EventArrays
from seqrec.data.pieces import pieces_of
from seqrec.data.targets import LogTargets
from seqrec.data.windows import WindowIndex, ranges
from seqrec.errors import InputError

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class NewEvents:
    """The choice of what is trained on: events after a time, and a share of the windows without any.

    Attributes:
        after: Time in the log's unit; later events are new.
        replay: Share of older windows among all windows, at least 0 and below 1.

    Example:
        >>> NewEvents(after=1_000, replay=0.25).replay
        0.25
    """

    after: int
    replay: float = 0.0

    def targets(
        self, events: EventArrays, stops: Int64, windows: WindowIndex, seed: int, *, is_random: bool = False
    ) -> LogTargets:
        """Return the targets: the new events before `stops` (U,), and all events of the older windows that are drawn.

        A window is new if it has a new target. Older ones are drawn once, by the seed, so all epochs have the same.

        Args:
            events: The log. Of its own targets, if it has any, only those remain.
            stops: End of the training part of each user.
            windows: (W,) all windows of the log.
            seed: Seed of the draw.
            is_random: Whether other epochs have other windows.

        Raises:
            InputError: if the log has no times, or no new event to train on; or a share of windows is asked for, and
                windows overlap or are random, so that events of a drawn one are in others too.
        """
        if events.timestamps is None:
            raise InputError("warm_start.replay needs timestamps, which tell new events from old ones; leave it out")
        flags = np.concatenate([piece > self.after for piece in pieces_of(events.timestamps)])
        if events.targets is not None:
            flags &= events.targets.flags(len(flags))
        new = LogTargets.from_flags("", [flags])
        if not new.count(np.asarray(events.offsets)[:-1] + 1, stops).any():
            raise InputError(
                f"warm_start.replay={self.replay}: no training event is newer than {self.after}, the end of the "
                "checkpoint's training part: append new events, or leave replay out to train on all"
            )
        if self.replay and (is_random or _overlap(windows)):
            raise InputError(
                f"warm_start.replay={self.replay} is a share of windows, which is only defined if they neither overlap "
                "nor are random: set data.train_windows=StridedWindows without stride, or replay to 0"
            )
        is_new = new.count(windows.starts + 1, windows.stops + 1) > 0
        old = np.flatnonzero(~is_new)
        count = min(len(old), round(self.replay / (1 - self.replay) * int(is_new.sum())))
        drawn = windows[np.sort(np.random.default_rng(seed).permutation(old)[:count])]
        replayed = ranges(drawn.starts + 1, drawn.lengths)
        flags[replayed] = True if events.targets is None else events.targets.at(replayed)
        condition = f"newer than {self.after}, or in {count:,} of {len(old):,} older windows"
        return LogTargets.from_flags(condition, [flags])


def _overlap(windows: WindowIndex) -> bool:
    order = np.argsort(windows.starts, kind="stable")
    return bool((windows.starts[order][1:] < windows.stops[order][:-1]).any())
