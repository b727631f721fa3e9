"""The state that a model continues from, per user: its streaming state in a row of a slab, or the newest events.

Shapes: B users, D width of states.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec.catalogue.recommend import trained_length
from seqrec.data.collate import padded_rows
from seqrec.encoders.state import State, StateFormat, weights_digest
from seqrec.errors import InputError, SessionStoreError
from seqrec.inference.sessions.slab import KeptState, Slab, SlabState
from seqrec.models import Recommender, SequentialRecommender
from seqrec.models.streaming import NEWEST_TIME
from seqrec.specs import to_spec
from seqrec.types import History, RaggedItems, SequenceBatch

Int64Array = NDArray[np.int64]

# Events encoded at a time, padding included.
MAX_EVENTS = 1 << 16
# Name under which a state keeps the encoder's output for the newest event.
LAST = "last_state"
# The newest time, if any, is just before that in a state's bytes, and has this number of bytes.
TIME_BYTES = 8
# An event as `ReencodedState` keeps it, for models that read times.
TIMED_EVENT = np.dtype([("item", "<i4"), ("time", "<i8")])


class ItemRows:
    """Items of each of B users, at least one each, as one array, and the times of their events.

    Args:
        flat: (E,) int64 internal item ids, those of the first user first.
        lengths: The number of each user's items.
        times: (E,) int64, for models that read the time of events; None for others.

    Attributes:
        offsets: The items of user b are `flat[offsets[b]:offsets[b + 1]]`.

    Example:
        >>> import numpy as np
        >>> from seqrec.inference.sessions import ItemRows
        >>> rows = ItemRows(np.array([7, 8, 9]), [1, 2])
        >>> len(rows), rows[1].tolist()
        (2, [8, 9])
    """

    def __init__(self, flat: Int64Array, lengths: Iterable[int], times: Int64Array | None = None) -> None:
        self.flat, self.lengths, self.times = flat, list(lengths), times
        self.offsets = list(accumulate(self.lengths, initial=0))

    @staticmethod
    def of(rows: Sequence[Int64Array], times: Sequence[Int64Array] | None = None) -> ItemRows:
        """Return rows as one array."""
        return ItemRows(np.concatenate(rows), map(len, rows), None if times is None else np.concatenate(times))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, place: int) -> Int64Array:
        return self.flat[self.offsets[place] : self.offsets[place + 1]]

    def newest(self, most: int) -> ItemRows:
        """Return the last items of each user, at most this many."""
        if max(self.lengths) <= most:
            return self
        return self._parts([slice(max(begin, end - most), end) for begin, end in pairwise(self.offsets)])

    def of_users(self, places: Sequence[int]) -> ItemRows:
        """Return the items of the users at some places."""
        return self._parts([slice(self.offsets[place], self.offsets[place + 1]) for place in places])

    def _parts(self, parts: Sequence[slice]) -> ItemRows:
        times = None if self.times is None else [self.times[part] for part in parts]
        return ItemRows.of([self.flat[part] for part in parts], times)

    def padded(self) -> History:
        """Return the items as a history on the CPU."""
        lengths, starts = np.array(self.lengths), np.array(self.offsets[:-1])
        times = None if self.times is None else padded_rows(self.times, starts, lengths)
        return History(padded_rows(self.flat, starts, lengths), torch.from_numpy(lengths), times)

    def batch(self, user_ids: Tensor, at: Tensor | None) -> SequenceBatch:
        """Return a batch on the CPU of users (B,) who ask at times (B,), without targets; None is without times."""
        seen = RaggedItems(torch.from_numpy(self.flat), torch.tensor(self.offsets))
        batch = SequenceBatch(self.padded(), None, user_ids, seen)
        return batch if at is None else batch.asked_at(at)

    def int32_bytes(self) -> list[bytes]:
        """Return each user's items as the bytes of int32."""
        items = self.flat.astype(np.int32)
        if len(items) == len(self):
            # Much faster for the most common case.
            found: list[bytes] = items.view("V4").tolist()
            return found
        content = items.tobytes()
        return [content[4 * begin : 4 * end] for begin, end in pairwise(self.offsets)]


class UserState(Protocol):
    """Makes and reads the states of users between events.

    Attributes:
        streams: Whether the cost of an event does not depend on the number of earlier events.
        description: Description for logs.
    """

    streams: bool
    description: str

    def describe(self) -> dict[str, Any]:
        """Return plain values that are equal for models that can continue each other's states."""

    def check(self, description: dict[str, Any]) -> None:
        """Compare a store's description with this model's.

        Raises:
            SessionStoreError: if the store belongs to another model.
        """

    def extend(self, states_before: Sequence[KeptState], item_ids: ItemRows, user_ids: Tensor) -> Sequence[KeptState]:
        """Return the states after further events, at least one per user.

        Args:
            states_before: One per user; no bytes for a user without events so far.
            item_ids: The further events of each user, oldest first; with their times if the model reads them.
            user_ids: (B,) int64 internal ids, 0 for unknown.
        """

    def batches(self, kept: Sequence[KeptState]) -> list[list[int]]:
        """Return groups of users, by their places, that `states` takes together."""

    def states(self, kept: Sequence[KeptState], user_ids: Tensor, at: Tensor | None = None) -> Tensor:
        """Return (B, D) states for the model's scorer.

        Args:
            kept: One state per user.
            user_ids: (B,) int64 internal ids, 0 for unknown.
            at: (B,) int64, when each user asks; None if the model does not read it.
        """


class StreamedState:
    """Keeps the encoder's state and its output for the newest event; see `UserState`.

    Args:
        model: A recommender in evaluation mode.

    Raises:
        InputError: if the model cannot be streamed; with the reason.
    """

    streams = True
    description = "streaming: each event continues the user's state"

    def __init__(self, model: Recommender) -> None:
        reason = why_not_streamed(model)
        if reason is not None:
            raise InputError(f"{model.title} cannot be streamed: {reason}")
        assert isinstance(model, SequentialRecommender)
        self._model = model
        start, one = model.init_state(1), torch.ones(1, dtype=torch.int64, device=model.device)
        last, _ = model.step(one, start, timestamps=one)
        self._format = StateFormat(model.encoder, State({**start.tensors, LAST: last}, start.encoder))
        self._slab = Slab(State({**start.tensors, LAST: torch.zeros_like(last)}, start.encoder))
        tensors = [x for name, x in start.tensors.items() if name != NEWEST_TIME]
        self._in_place = model.encoder.takes_slab_rows and all(
            x.dtype == last.dtype == torch.float32 and x.device.type == "cpu" for x in tensors
        )
        self._encoder = start.encoder
        self._last_bytes = last[0].numel() * last.element_size()
        self._dtype = last.dtype
        self._lock = threading.Lock()

    def describe(self) -> dict[str, Any]:
        """See `UserState.describe`."""
        model = self._model
        parts = {"items": model.items, "users": model.users, "event_time": model.event_time, "read_out": model.read_out}
        digests = {name: weights_digest(part) for name, part in parts.items() if part is not None}
        time = {} if model.time is None else {"time": to_spec(model.time)}
        return {"memory": "states", "state": json.loads(self._format.header), **digests, **time}

    def check(self, description: dict[str, Any]) -> None:
        """See `UserState.check`."""
        if description.get("memory") == "states":
            try:
                self._format.check_header(json.dumps(description.get("state"), separators=(",", ":")).encode())
            except InputError as error:
                raise SessionStoreError(f"the store is of another model: {error}") from error
        _check(description, self.describe())

    def extend(self, states_before: Sequence[KeptState], item_ids: ItemRows, user_ids: Tensor) -> Sequence[KeptState]:
        """See `UserState.extend`; a batch has at most `MAX_EVENTS` events with padding."""
        groups = length_groups(item_ids.lengths)
        if len(groups) == 1:
            with self._lock:
                return self._extended(states_before, item_ids, user_ids)
        new: list[KeptState] = [b""] * len(states_before)
        for places in groups:
            started = [states_before[place] for place in places]
            with self._lock:
                rows = self._extended(started, item_ids.of_users(places), user_ids[places])
            for place, row in zip(places, rows, strict=True):
                new[place] = row
        return new

    @torch.inference_mode()
    def _extended(self, states_before: Sequence[KeptState], item_ids: ItemRows, user_ids: Tensor) -> list[SlabState]:
        model, device = self._model, self._model.device
        before, users = self._slab.before(states_before), user_ids.to(device)
        is_step = len(item_ids.flat) == len(item_ids)
        items = torch.from_numpy(item_ids.flat).to(device)
        times = None if item_ids.times is None else torch.from_numpy(item_ids.times).to(device)
        if is_step and self._in_place:
            after = self._slab.taken(len(before))
            tensors: dict[str, Any] = self._slab.in_place(before, after)
            newest = tensors.pop(LAST)
            if times is not None:
                tensors[NEWEST_TIME] = self._slab.read(NEWEST_TIME, before)
            last, _ = model.step(items, State(tensors, self._encoder), users, times)
            newest.slab.index_copy_(0, newest.after, last)
            if times is not None:
                self._slab.write(NEWEST_TIME, after, times)
            return after
        kept = self._slab.gathered(before, device)
        state = State({name: x for name, x in kept.tensors.items() if name != LAST}, kept.encoder)
        if is_step:
            last, state = model.step(items, state, users, times)
        else:
            history = item_ids.padded().to(device)
            states, state = model.extend(history, state, users)
            last = states[torch.arange(len(users), device=device), history.lengths - 1]
        return self._slab.written(State({**state.tensors, LAST: last}, state.encoder))

    def batches(self, kept: Sequence[KeptState]) -> list[list[int]]:
        """See `UserState.batches`; all users are one group."""
        return [list(range(len(kept)))]

    @torch.no_grad()
    def states(self, kept: Sequence[KeptState], user_ids: Tensor, at: Tensor | None = None) -> Tensor:
        """See `UserState.states`; nothing is encoded."""
        model, begin = self._model, -self._last_bytes
        # A copy, as tensors are writable and bytes are not.
        newest = bytearray(b"".join([state[begin:] for state in kept]))
        last = torch.frombuffer(newest, dtype=self._dtype).view(len(kept), -1).to(model.device)
        if at is not None:
            times = bytearray(b"".join([state[begin - TIME_BYTES : begin] for state in kept]))
            newest_times = torch.frombuffer(times, dtype=torch.int64)
            last = model.at_request(last, newest_times.to(model.device), at.to(model.device))
        return model.to_scoring_space(last)


class ReencodedState:
    """Keeps the newest events, and encodes them again for each recommendation; see `UserState`.

    For models that cannot be streamed, or to get the scores of training and evaluation, which depend on the newest
    `max_length` events only.

    Args:
        model: A recommender in evaluation mode.
        max_length: Newest events that are kept; None is the model's `max_length`, or 200 if it has none.

    Raises:
        InputError: if `max_length` is below 1 or above the model's number of positions.
    """

    streams = False

    def __init__(self, model: Recommender, *, max_length: int | None = None) -> None:
        own = trained_length(model)
        has_positions = isinstance(model, SequentialRecommender) and model.positions is not None
        length = (own or 200) if max_length is None else max_length
        if length < 1:
            raise InputError(f"max_length={length} must be at least 1")
        if has_positions and own is not None and length > own:
            raise InputError(f"max_length={length} must be at most {own}, for which the model has positions")
        self._model = model
        self._event = TIMED_EVENT if reads_times(model) else np.dtype("<i4")
        self.max_length = length
        reason = why_not_streamed(model)
        self.description = f"re-encoding up to {length} events: {reason or 'asked for'}"

    def describe(self) -> dict[str, Any]:
        """See `UserState.describe`; item ids are the same for all models of a catalogue."""
        times = {"times": True} if self._event == TIMED_EVENT else {}
        return {"memory": "events", "max_length": self.max_length, **times}

    def check(self, description: dict[str, Any]) -> None:
        """See `UserState.check`."""
        _check(description, self.describe())

    def extend(self, states_before: Sequence[KeptState], item_ids: ItemRows, user_ids: Tensor) -> Sequence[KeptState]:
        """See `UserState.extend`; nothing is encoded."""
        new, size = item_ids.newest(self.max_length), self._event.itemsize * self.max_length
        events = new.flat.astype("<i4")
        if new.times is not None:
            events = np.empty(len(new.flat), TIMED_EVENT)
            events["item"], events["time"] = new.flat, new.times
        return [
            (bytes(before) + events[begin:end].tobytes())[-size:]
            for before, (begin, end) in zip(states_before, pairwise(new.offsets), strict=True)
        ]

    def batches(self, kept: Sequence[KeptState]) -> list[list[int]]:
        """See `UserState.batches`; users of similar length, with at most `MAX_EVENTS` events including padding."""
        return length_groups([len(events) // self._event.itemsize for events in kept])

    @torch.no_grad()
    def states(self, kept: Sequence[KeptState], user_ids: Tensor, at: Tensor | None = None) -> Tensor:
        """See `UserState.states`."""
        rows: list[Any] = [np.frombuffer(bytes(events), self._event) for events in kept]
        times = None
        if self._event == TIMED_EVENT:
            rows, times = ([row[name] for row in rows] for name in ("item", "time"))
        events = ItemRows.of([row.astype(np.int64) for row in rows], times)
        return self._model.last_states(events.batch(user_ids, at).to(self._model.device))


def user_state_of(model: Recommender) -> UserState:
    """Return the cheapest user state that a model supports."""
    return ReencodedState(model) if why_not_streamed(model) else StreamedState(model)


def why_not_streamed(model: Recommender) -> str | None:
    """Return why a model cannot continue from a state; None if it can."""
    if not isinstance(model, SequentialRecommender):
        return f"{model.title} keeps no state"
    if model.positions is not None:
        return "positions=True cannot be streamed"
    try:
        model.init_state(1)
    except InputError as error:
        return str(error)
    return None


def reads_times(model: Recommender) -> bool:
    """Return whether a model reads the time of events."""
    return isinstance(model, SequentialRecommender) and model.event_time is not None


def length_groups(lengths: Sequence[int]) -> list[list[int]]:
    """Return groups of rows by place, shortest first: at most `MAX_EVENTS` with padding, or a single row."""
    groups: list[list[int]] = []
    if lengths and len(lengths) * max(lengths) <= MAX_EVENTS:
        return [list(range(len(lengths)))]
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not groups or (len(groups[-1]) + 1) * lengths[place] > MAX_EVENTS:
            groups.append([])
        groups[-1].append(place)
    return groups


def _check(found: dict[str, Any], ours: dict[str, Any]) -> None:
    """Refuse a description with other keys or values, and name the first that differs."""
    for name in (*ours, *found):
        if found.get(name) != ours.get(name):
            raise SessionStoreError(
                f"the store is of another model: its {name} is {found.get(name)!r}, the model's {ours.get(name)!r}; "
                "give each model a store of its own, and observe the events again"
            )
