"""Splits: the events of each user for training, validation and test. U users, E events.

A target filter (`EventStore.select_targets`) leaves the order of a log as it is. Splits hold out targets instead of
events, and the history of a target is everything before it, targets or not. So all other events stay context: they are
read, but neither trained for nor judged.
"""

# Longer than 400 lines because all splits share the search for points in time.

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import datetime, timezone

import numpy as np
from numpy.typing import NDArray

from seqrec.data.pieces import ends_of, events_before, pieces_of, time_quantile
from seqrec.data.segments import plain
from seqrec.data.store import EventStore
from seqrec.data.targets import LogTargets
from seqrec.errors import InputError, check_at_least

Int64 = NDArray[np.int64]

STAGES = ("train", "validate", "test", "predict")


class Split(ABC):
    """Policy that divides each user's events between training, validation and test.

    Constructor arguments are kept as attributes.

    Attributes:
        several_targets: Whether a user may be judged by more than one item.
        prequential: Whether each target is judged by itself, from all events of its user before it.
        train_on_validation: Whether the validation targets are trained on, too, so that validation shows nothing.

    Example:
        >>> from seqrec import LeaveOneOut, Split
        >>> split: Split = LeaveOneOut()
        >>> split.id, split.several_targets
        ('loo', False)
    """

    several_targets: bool = False
    prequential: bool = False
    train_on_validation: bool = False

    @property
    def id(self) -> str:
        """Short name with every setting, for the name of a protocol."""
        return type(self).__name__.lower()

    @abstractmethod
    def history_stops(self, store: EventStore, stage: str) -> Int64:
        """Return the end (U,) int64 of each user's known history in a stage, one of `STAGES`.

        It is an index into the store's events. For "validate" and "test" the targets follow, up to `target_stops`. For
        "train" all targets lie before the stop. For "predict" it is the end of the log.

        Raises:
            InputError: if a user has too few events, or if the split needs timestamps and the log has none.
        """

    def target_stops(self, store: EventStore, stage: str) -> Int64:
        """Return the end (U,) int64 of each user's targets, which are the events [history_stops[u], target_stops[u]).

        In "validate" and "test" it is the stop of the history if a user is not judged. With a target filter, other
        events may be among them; see `judged_ranges`.
        """
        return self.history_stops(store, stage) + 1

    def left_out(self, store: EventStore, stage: str) -> dict[str, int]:
        """Return the number of users who are not judged in "validate" or "test", by reason."""
        return {}

    def hidden_items(self, store: EventStore) -> NDArray[np.bool_] | None:
        """Return (num_items + 1,) True for items that no training batch contains; None if none is hidden."""
        return None


def judged_ranges(split: Split, store: EventStore, stage: str) -> tuple[Int64, Int64]:
    """Return the start and end (U,) of each user's held-out events in "validate" or "test".

    With a target filter, the targets among them are judged; the end is that of the last one, or the start without any.
    """
    stops, ends = split.history_stops(store, stage), split.target_stops(store, stage)
    return (stops, ends) if store.targets is None else (stops, store.targets.last(stops, ends) + 1)


class LeaveOneOut(Split):
    """Newest event of each user for test, the one before for validation, the rest for training.

    Kang & McAuley 2018 (SASRec), section 4.1. Users are judged at different times: events that happened after one
    user's test event are in another's training. Compare its results only with others of the same split.

    With a target filter, the newest target is for test and the target before it for validation. Training ends before
    that one, and events after the last target are unused. A user with one target is only tested, one with two is not
    trained for, and one without any is left out.

    Args:
        train_on_validation: Whether the event before the newest is trained on as well, as in the code of HSTU (Zhai et
            al. 2024). Then no validation metric may choose the epoch, which a fit refuses.

    Example:
        >>> from seqrec import LeaveOneOut
        >>> LeaveOneOut().id, LeaveOneOut(train_on_validation=True).id
        ('loo', 'loo-trainval')
    """

    def __init__(self, *, train_on_validation: bool = False) -> None:
        self.train_on_validation = train_on_validation

    @property
    def id(self) -> str:
        """`loo`, or `loo-trainval` with `train_on_validation`."""
        return "loo-trainval" if self.train_on_validation else "loo"

    def history_stops(self, store: EventStore, stage: str) -> Int64:
        """Return the ends of histories; training ends before the validation target, unless that is trained on."""
        reason = "leave-one-out needs one event each to train, validate and test"
        stage = "test" if stage == "train" and self.train_on_validation else stage
        return _stops_by_count(store, stage, 1, reason)

    def target_stops(self, store: EventStore, stage: str) -> Int64:
        """Return the ends of targets: the test target for validation, the end of the log for test."""
        return _target_stops_by_count(self, store, stage)

    def left_out(self, store: EventStore, stage: str) -> dict[str, int]:
        """Return the number of users without a target to judge, by reason; none without a target filter."""
        return _left_out_by_count(self, store, stage, 1)


class LastN(Split):
    """The n newest events of each user for test, the n before for validation, the rest for training.

    A user is judged by all n at once, from the history before the first of them; a repeated item counts once. Users
    are judged at different times, as with `LeaveOneOut`, which is n = 1.

    With a target filter, n counts targets, and users without 2 n targets are not judged in validation, those without n
    in neither; what is not held out is trained for.

    Args:
        n: Events of each user that are held out for test, and as many for validation; at least 1.

    Raises:
        InputError: if `n` is below 1.

    Example:
        >>> from seqrec import LastN
        >>> LastN(5).id, LastN(5).several_targets
        ('last5', True)
    """

    def __init__(self, n: int) -> None:
        check_at_least(1, n=n)
        self.n = n
        self.several_targets = n > 1

    @property
    def id(self) -> str:
        """`last5` for n = 5; `loo` for n = 1, which is the same split."""
        return "loo" if self.n == 1 else f"last{self.n}"

    def history_stops(self, store: EventStore, stage: str) -> Int64:
        """Return the ends of histories; training ends before the validation targets."""
        reason = f"the split with n={self.n} needs {self.n} each to validate and test and one to train"
        return _stops_by_count(store, stage, self.n, reason)

    def target_stops(self, store: EventStore, stage: str) -> Int64:
        """Return the ends of targets: the first test target for validation, the end of the log for test."""
        return _target_stops_by_count(self, store, stage)

    def left_out(self, store: EventStore, stage: str) -> dict[str, int]:
        """Return the number of users without targets to judge, by reason; none without a target filter."""
        return _left_out_by_count(self, store, stage, self.n)


class GlobalTime(Split):
    """One point in time for all users: later events are for test, those of some time before it for validation.

    Training uses only events before `validation_from`, of all users. A user is judged in validation by its events
    from `validation_from` up to `test_from`, and in test by those from `test_from` on, all at once, given the
    history before that point. So no model has seen a user's future, or another's (Ji et al. 2023, A Critical Study on
    Data Leakage in Recommender System Offline Evaluation).

    A user is not judged in a stage if it has no event in that time, or fewer than `warm_up` before it. `left_out`
    counts such users. Their events before `validation_from` are trained on like all others. With a target filter, only
    targets of that time are judged; quantiles and `warm_up` still count all events.

    Args:
        test_from: Start of the test time: a time in the log's unit, a date or time such as "2020-09-14" or
            "2020-09-14 12:00" (UTC unless it has a zone), or a number above 0 and below 1 for that quantile of all
            events' times. For dates, the size of the log's times shows whether they are in seconds, or thousandths,
            millionths or billionths of them, since 1970.
        validation_from: Start of the validation time, of the same kind and not after `test_from`. If it is later than
            the whole log, all events are trained on, and no user can be judged.
        warm_up: Events that a user must have before it is judged, at least 1: before a stage's time, or before the
            target if `prequential`.
        prequential: Whether each event of a stage's time is judged by itself, from all events of its user before it,
            also those of the same time, as a server would be asked (Gama et al. 2013, On Evaluating Stream Learning
            Algorithms). A user's metrics are then means over its events. The model's weights stay those of the
            training. Models that can be streamed read each history once and see all of it; others see the newest
            `max_length` events before each target, which costs a history for each.

    Raises:
        InputError: if a value is out of range.

    Example:
        >>> from seqrec import GlobalTime
        >>> GlobalTime(test_from=0.9, validation_from=0.8).id
        'time0.9-val0.8-warm1'
    """

    def __init__(
        self,
        test_from: float | str = 0.9,
        validation_from: float | str = 0.8,
        *,
        warm_up: int = 1,
        prequential: bool = False,
    ) -> None:
        for name, point in (("test_from", test_from), ("validation_from", validation_from)):
            if isinstance(point, str):
                _seconds(name, point)
        if isinstance(test_from, str) != isinstance(validation_from, str):
            given = f"test_from={test_from} and validation_from={validation_from}"
            raise InputError(f"{given}: give two dates or two numbers")
        if _is_quantile(test_from) != _is_quantile(validation_from):
            raise InputError(
                f"test_from={test_from} and validation_from={validation_from}: give two times in the log's unit, or "
                "two quantiles above 0 and below 1"
            )
        if not _number(validation_from) < _number(test_from):
            raise InputError(f"validation_from={validation_from} must lie before test_from={test_from}")
        if warm_up < 1:
            raise InputError(f"warm_up={warm_up} must be at least 1: a user without history cannot be encoded")
        self.test_from = test_from
        self.validation_from = validation_from
        self.warm_up = warm_up
        self.prequential = prequential
        # Each list has one target, whose recall is the hit rate.
        self.several_targets = not prequential

    @property
    def id(self) -> str:
        """`time0.9-val0.8-warm1` with the defaults, followed by `-prequential` if it is that."""
        each = "-prequential" if self.prequential else ""
        return f"time{_text(self.test_from)}-val{_text(self.validation_from)}-warm{self.warm_up}{each}"

    def history_stops(self, store: EventStore, stage: str) -> Int64:
        """Return the ends of histories; those for training end at `validation_from`."""
        if stage == "predict":
            return np.asarray(store.offsets)[1:].astype(np.int64)
        stops = self._since(store, stage)
        if not self.prequential or stage == "train":
            return stops
        # A user's first events are no targets, but they are known to the next ones.
        warm = np.asarray(store.offsets)[:-1] + self.warm_up
        return np.minimum(np.maximum(stops, warm), self._ends(store, stage)).astype(np.int64)

    def target_stops(self, store: EventStore, stage: str) -> Int64:
        """Return the ends of targets: `test_from` for validation, the end of the log for test."""
        offsets = np.asarray(store.offsets)
        starts, ends = self._stage(store, stage)
        return np.where(starts - offsets[:-1] >= self.warm_up, ends, starts).astype(np.int64)

    def left_out(self, store: EventStore, stage: str) -> dict[str, int]:
        """Return the number of users who are not judged in "validate" or "test", by reason."""
        starts, ends = self._stage(store, stage)
        # Finding a point in time reads all times of the log.
        since = self._since(store, stage) if self.prequential else starts
        known, name = starts - np.asarray(store.offsets)[:-1], "event"
        absent, some = ends == since, ends > starts
        if (targets := store.targets) is not None:
            absent, some, name = targets.count(since, ends) == 0, targets.count(starts, ends) > 0, "target"
        judged = some & (known >= self.warm_up)
        return {
            f"no {name} in its time": int(absent.sum()),
            f"fewer than {self.warm_up} event(s) before": int((~absent & ~judged).sum()),
        }

    def _stage(self, store: EventStore, stage: str) -> tuple[Int64, Int64]:
        """Return the start and end (U,) of each user's targets in a stage."""
        return self.history_stops(store, stage), self._ends(store, stage)

    def _since(self, store: EventStore, stage: str) -> Int64:
        """Return the start (U,) of each user's events in the time of a stage; for "train", the end of them."""
        point = self.test_from if stage == "test" else self.validation_from
        return self._stops(store, point, may_be_later=stage == "train")

    def _ends(self, store: EventStore, stage: str) -> Int64:
        """Return the end (U,) of each user's events in the time of a stage."""
        if stage == "test":
            return np.asarray(store.offsets)[1:].astype(np.int64)
        return self._stops(store, self.test_from)

    def _stops(self, store: EventStore, point: float | str, *, may_be_later: bool = False) -> Int64:
        """Return the end (U,) of each user's events before a point, which `may_be_later` than the log."""
        if store.timestamps is None:
            raise InputError(
                f"{store.directory}: the log has no timestamps, which GlobalTime divides by; use LeaveOneOut or LastN"
            )
        times, offsets = plain(store.timestamps), np.asarray(store.offsets)
        if not isinstance(point, str) and _is_quantile(point):
            time: float = time_quantile(times, point)
        else:
            first, last = ends_of(pieces_of(times))
            time = in_units(point, last)
            if not first < time or (time > last and not may_be_later):
                shown = f"{point}, which is {time:,.0f}," if isinstance(point, str) else f"{time:,}"
                raise InputError(
                    f"{shown} is not between the log's first time, {first:,}, and its last, {last:,}: give times in "
                    "the log's unit (a log of times with fractions is in millionths), or quantiles such as 0.9"
                )
        return offsets[:-1] + events_before(times, offsets, time)


def _is_quantile(point: float | str) -> bool:
    return not isinstance(point, str) and 0 < point < 1


def _seconds(name: str, date: str) -> float:
    """Return the seconds since 1970 of a date or time in ISO form."""
    try:
        moment = datetime.fromisoformat(date.strip().replace("Z", "+00:00"))
    except ValueError as error:
        raise InputError(f"{name}={date!r} is no date such as 2020-09-14, nor a number") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def _number(point: float | str) -> float:
    return _seconds("time", point) if isinstance(point, str) else point


def in_units(point: float | str, latest: int, name: str = "time") -> float:
    """Return a point in time in the unit of a log with times up to `latest`, which only a date does not have yet.

    Raises:
        InputError: if it is text, but no date; the message has the `name` of the argument.
    """
    return _seconds(name, point) * units_a_second(latest) if isinstance(point, str) else point


def units_a_second(latest: int) -> int:
    """Return 1, 1,000, 10^6 or 10^9: the unit in which times up to `latest` are dates of this age."""
    return next((unit for unit in (1, 10**3, 10**6) if latest < 10**11 * unit), 10**9)


def _text(point: float | str) -> str:
    if isinstance(point, str):
        return point.strip().replace(" ", "T")
    # All digits, the same for a whole time as an int and as a float.
    return str(int(point)) if float(point).is_integer() else str(point)


def _stops_by_count(store: EventStore, stage: str, n: int, reason: str) -> Int64:
    """Return stops (U,) if the `n` newest targets are for test and as many before for validation."""
    held_out = {"train": 2, "validate": 2, "test": 1, "predict": 0}[stage] * n
    least = 2 * n + 1
    offsets = np.asarray(store.offsets)
    if store.targets is not None:
        return _stops_by_targets(store.targets, offsets, n, held_out)
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


def _stops_by_targets(targets: LogTargets, offsets: Int64, n: int, held_out: int) -> Int64:
    """Return the place (U,) of the first of each user's `held_out` newest targets; the end of the log without any.

    A user with fewer targets has as many multiples of `n` held out as there are.
    """
    stops, counts = offsets[1:].astype(np.int64), targets.count(offsets[:-1], offsets[1:])
    held = np.minimum(held_out, counts // n * n)
    rows = np.flatnonzero(held)
    stops[rows] = targets.select(targets.rank(offsets[1:][rows]) - held[rows])
    return stops


def _target_stops_by_count(split: Split, store: EventStore, stage: str) -> Int64:
    if stage == "validate":
        return split.history_stops(store, "test")
    return np.asarray(store.offsets)[1:].astype(np.int64)


def _left_out_by_count(split: Split, store: EventStore, stage: str, n: int) -> dict[str, int]:
    if (targets := store.targets) is None:
        return {}
    offsets = np.asarray(store.offsets)
    needed = 2 * n if stage == "validate" else n
    few = targets.count(offsets[:-1], offsets[1:]) < needed
    first = split.history_stops(store, stage) == offsets[:-1]
    return {f"fewer than {needed} target(s)": int(few.sum()), "no event before": int((first & ~few).sum())}
