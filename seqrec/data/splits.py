"""Which events of a user are trained on and which are held out. U users."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from seqrec.data.store import EventStore
from seqrec.data.time_points import events_before, time_quantile
from seqrec.errors import InputError

Int64 = NDArray[np.int64]

STAGES = ("train", "validate", "test", "predict")


class Split(ABC):
    """How each user's events are divided between training, validation and test. Constructor arguments are kept as
    attributes.

    Attributes:
        several_targets: Whether a user may be judged by more than one item.
    """

    several_targets: bool = False

    @property
    def id(self) -> str:
        """Short name with every setting, the part of a protocol's name that tells the split."""
        return type(self).__name__.lower()

    @abstractmethod
    def history_stops(self, store: EventStore, stage: str) -> Int64:
        """Where each user's known history ends in a stage.

        For "validate" and "test" the events behind are the targets, up to `target_stops`. For "train" all targets
        lie before it. For "predict" it is the end of the log.

        Args:
            store: The events.
            stage: One of `STAGES`.

        Returns:
            (U,) int64, index into the store's events: history is [offsets[u], stop[u]).

        Raises:
            InputError: a user with too few events, or no timestamps where the split needs them.
        """

    def target_stops(self, store: EventStore, stage: str) -> Int64:
        """Where the events that each user is judged by end: they are [history_stops[u], target_stops[u]).

        Args:
            store: The events.
            stage: "validate" or "test".

        Returns:
            (U,) int64; the stop of the history where a user is not judged.
        """
        return self.history_stops(store, stage) + 1

    def left_out(self, store: EventStore, stage: str) -> dict[str, int]:
        """How many users are not judged in "validate" or "test", by the reason."""
        return {}


class LeaveOneOut(Split):
    """Newest event of each user for test, the one before for validation, the rest for training.

    Kang & McAuley 2018 (SASRec), section 4.1. It judges users at different times, so events that happened
    after one user's test event are in another's training: compare with it only results that use it too.
    """

    @property
    def id(self) -> str:
        """`loo`."""
        return "loo"

    def history_stops(self, store: EventStore, stage: str) -> Int64:
        """See `Split.history_stops`; training ends before the validation target."""
        return _stops_by_count(
            store, stage, 1, "leave-one-out needs one event each to train, validate and test"
        )


class LastN(Split):
    """The n newest events of each user for test, the n before for validation, the rest for training.

    The user is judged by all n at once, from the history before the first of them; an item that stands among
    them twice counts once. Users are judged at different times, as with `LeaveOneOut`, which is n = 1.

    Args:
        n: Events of each user that are held out for test, and as many for validation; at least 1.

    Raises:
        InputError: `n` below 1.
    """

    def __init__(self, n: int) -> None:
        if n < 1:
            raise InputError(f"n={n} must be at least 1")
        self.n = n
        self.several_targets = n > 1

    @property
    def id(self) -> str:
        """`last5` for n = 5; `loo` for n = 1, which is the same split."""
        return "loo" if self.n == 1 else f"last{self.n}"

    def history_stops(self, store: EventStore, stage: str) -> Int64:
        """See `Split.history_stops`; training ends before the validation targets."""
        reason = f"the split with n={self.n} needs {self.n} each to validate and test and one to train"
        return _stops_by_count(store, stage, self.n, reason)

    def target_stops(self, store: EventStore, stage: str) -> Int64:
        """See `Split.target_stops`."""
        return self.history_stops(store, stage) + self.n


class GlobalTime(Split):
    """One time point for all users: what happens from it on is for test, a time before it for validation.

    Training sees only events before `validation_from`, of all users. A user is judged in validation by its events
    from `validation_from` up to `test_from`, and in test by those from `test_from` on, all at once, from its
    history before that point; so no model has seen a user's future, or another's (Ji et al. 2023, A Critical Study on
    Data Leakage in Recommender System Offline Evaluation).

    Users are not judged in a stage who have no event in its time, or fewer than `warm_up` before it. They are
    counted (`left_out`); their events before `validation_from` are trained on as all others.

    Args:
        test_from: Start of the test time: a time in the log's unit, or a number above 0 and below 1 for that
            quantile of all events' times.
        validation_from: Start of the validation time, of the same kind and not after `test_from`.
        warm_up: Events that a user must have before a stage's time to be judged in it, at least 1.

    Raises:
        InputError: values out of range.
    """

    several_targets = True

    def __init__(self, test_from: float = 0.9, validation_from: float = 0.8, *, warm_up: int = 1) -> None:
        if _is_quantile(test_from) != _is_quantile(validation_from):
            raise InputError(
                f"test_from={test_from} and validation_from={validation_from}: give two times in the log's unit, or "
                "two quantiles above 0 and below 1"
            )
        if not validation_from < test_from:
            raise InputError(f"validation_from={validation_from} must lie before test_from={test_from}")
        if warm_up < 1:
            raise InputError(
                f"warm_up={warm_up} must be at least 1: a user without history cannot be encoded"
            )
        self.test_from = test_from
        self.validation_from = validation_from
        self.warm_up = warm_up

    @property
    def id(self) -> str:
        """`time0.9-val0.8-warm1` with the defaults."""
        return f"time{_text(self.test_from)}-val{_text(self.validation_from)}-warm{self.warm_up}"

    def history_stops(self, store: EventStore, stage: str) -> Int64:
        """See `Split.history_stops`; for "train" what lies before `validation_from`."""
        if stage == "predict":
            return np.asarray(store.offsets)[1:].astype(np.int64)
        return self._stops(store, self.test_from if stage == "test" else self.validation_from)

    def target_stops(self, store: EventStore, stage: str) -> Int64:
        """See `Split.target_stops`."""
        offsets = np.asarray(store.offsets)
        starts = self.history_stops(store, stage)
        ends = offsets[1:] if stage == "test" else self._stops(store, self.test_from)
        return np.where(starts - offsets[:-1] >= self.warm_up, ends, starts).astype(np.int64)

    def left_out(self, store: EventStore, stage: str) -> dict[str, int]:
        """See `Split.left_out`."""
        offsets = np.asarray(store.offsets)
        starts = self.history_stops(store, stage)
        ends = offsets[1:] if stage == "test" else self._stops(store, self.test_from)
        absent = ends == starts
        return {
            "no event in its time": int(absent.sum()),
            f"fewer than {self.warm_up} event(s) before": int(
                (~absent & (starts - offsets[:-1] < self.warm_up)).sum()
            ),
        }

    def _stops(self, store: EventStore, point: float) -> Int64:
        """(U,) where each user's events before a point end."""
        if store.timestamps is None:
            raise InputError(
                f"{store.directory}: the log has no timestamps, which GlobalTime divides by; use LeaveOneOut or LastN"
            )
        times, offsets = np.asarray(store.timestamps), np.asarray(store.offsets)
        time = time_quantile(times, point) if _is_quantile(point) else point
        return offsets[:-1] + events_before(times, offsets, time)


def _is_quantile(point: float) -> bool:
    return 0 < point < 1


def _text(point: float) -> str:
    """All digits, whether a whole time came as an int or as a float."""
    return str(int(point)) if float(point).is_integer() else str(point)


def _stops_by_count(store: EventStore, stage: str, n: int, reason: str) -> Int64:
    """(U,) stops where the `n` newest events are for test and as many before for validation."""
    held_out = {"train": 2, "validate": 2, "test": 1, "predict": 0}[stage] * n
    least = 2 * n + 1
    offsets = np.asarray(store.offsets)
    counts = np.diff(offsets)
    short = np.flatnonzero(counts < least)
    if len(short):
        (user,) = np.asarray(store.user_vocabulary.external_ids(short[:1] + 1)).tolist()
        raise InputError(
            f"{store.directory}: {len(short)} user(s) have fewer than {least} events, the first is "
            f"user {user!r} with {counts[short[0]]}; {reason}: set --data.filters.min_user_events {least} to leave "
            "such users out"
        )
    return (offsets[1:] - held_out).astype(np.int64)
