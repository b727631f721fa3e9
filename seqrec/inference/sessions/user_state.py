"""The state that a model continues from, per user: its streaming state in a row of a slab, or the newest events.

Shapes: B users, D width of states.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from seqrec.catalogue.recommend import trained_length
from seqrec.data.schema import CATEGORICAL
from seqrec.encoders.state import State, StateFormat, weights_digest
from seqrec.errors import InputError, SessionStoreError
from seqrec.inference.sessions.item_rows import ItemRows
from seqrec.inference.sessions.slab import KeptState, Slab, SlabState
from seqrec.models import Recommender, SequentialRecommender
from seqrec.models.graphed_stream import GraphedStream
from seqrec.models.streaming import NEWEST_TIME
from seqrec.specs import to_spec, with_defaults

# Events encoded at a time, padding included.
MAX_EVENTS = 1 << 16
# Name under which a state keeps the encoder's output for the newest event.
LAST = "last_state"
# The newest time, if any, is just before that in a state's bytes, and has this number of bytes.
TIME_BYTES = 8
# Before the name of a column in the type of an event that is kept.
_FIELD = "column "


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

    States are kept in the memory of the CPU. If the model is on a GPU, those of a batch's users are copied there and
    back, each way in one piece.

    Args:
        model: A recommender in evaluation mode.
        cuda_graphs: Whether one further event of each user is computed by CUDA graphs, recorded now; see
            `seqrec.models.graphed_stream.GraphedStream`. It needs a model on a CUDA device.

    Raises:
        InputError: if the model cannot be streamed, or its step cannot be recorded; with the reason.
    """

    streams = True
    description = "streaming: each event continues the user's state"

    def __init__(self, model: Recommender, *, cuda_graphs: bool = False) -> None:
        reason = why_not_streamed(model)
        if reason is not None:
            raise InputError(f"{model.title} cannot be streamed: {reason}")
        assert isinstance(model, SequentialRecommender)
        self._model = model
        start, one = model.init_state(1), torch.ones(1, dtype=torch.int64, device=model.device)
        columns = model.column_embedding
        features = None if columns is None else {name: x.to(one.device) for name, x in columns.missing(1).items()}
        last, _ = model.step(one, start, timestamps=one, features=features)
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
        self._graphs = self._graphed(model) if cuda_graphs else None

    @staticmethod
    def _graphed(model: SequentialRecommender) -> GraphedStream:
        graphs = GraphedStream(model)
        graphs.prepare()
        return graphs

    def describe(self) -> dict[str, Any]:
        """See `UserState.describe`."""
        model = self._model
        names = ("items", "users", "event_time", "read_out", "column_embedding")
        parts = {name: part for name in names if (part := getattr(model, name)) is not None}
        digests = {name: weights_digest(part) for name, part in parts.items()}
        time = {} if model.time is None else {"time": to_spec(model.time)}
        return {"memory": "states", "state": json.loads(self._format.header), **digests, **time, **_columns_of(model)}

    def check(self, description: dict[str, Any]) -> None:
        """See `UserState.check`."""
        if description.get("memory") == "states":
            try:
                self._format.check_header(json.dumps(description.get("state"), separators=(",", ":")).encode())
            except InputError as error:
                raise SessionStoreError(f"the store is of another model: {error}") from error
        ours = self.describe()
        if "time" in description:
            description = {**description, "time": with_defaults(description["time"], ours.get("time"))}
        _check(description, ours)

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
        before = self._slab.before(states_before)
        is_step = len(item_ids.flat) == len(item_ids)
        items = torch.from_numpy(item_ids.flat)
        times = None if item_ids.times is None else torch.from_numpy(item_ids.times)
        columns = item_ids.of_one_event() if is_step else None
        if is_step and self._graphs is not None:
            kept = self._without_last(before)
            last, state = self._graphs.step(items, kept, user_ids, times, columns)
            return self._slab.written(State({**state.tensors, LAST: last}, state.encoder))
        items, users = items.to(device), user_ids.to(device)
        times = None if times is None else times.to(device)
        features = None if columns is None else {name: x.to(device) for name, x in columns.items()}
        if is_step and self._in_place:
            after = self._slab.taken(len(before))
            tensors: dict[str, Any] = self._slab.in_place(before, after)
            newest = tensors.pop(LAST)
            if times is not None:
                tensors[NEWEST_TIME] = self._slab.read(NEWEST_TIME, before)
            last, _ = model.step(items, State(tensors, self._encoder), users, times, features)
            newest.slab.index_copy_(0, newest.after, last)
            if times is not None:
                self._slab.write(NEWEST_TIME, after, times)
            return after
        state = self._without_last(before)
        if is_step:
            last, state = model.step(items, state, users, times, features)
        else:
            history = item_ids.padded().to(device)
            states, state = model.extend(history, state, users)
            last = states[torch.arange(len(users), device=device), history.lengths - 1]
        return self._slab.written(State({**state.tensors, LAST: last}, state.encoder))

    def _without_last(self, rows: Sequence[SlabState]) -> State:
        """Return a copy of states on the model's device, without the output for the newest event."""
        kept = self._slab.gathered(rows, self._model.device)
        return State({name: x for name, x in kept.tensors.items() if name != LAST}, kept.encoder)

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
        self._event = event_dtype(model)
        self.max_length = length
        reason = why_not_streamed(model)
        self.description = f"re-encoding up to {length} events: {reason or 'asked for'}"

    def describe(self) -> dict[str, Any]:
        """See `UserState.describe`; item ids are the same for all models of a catalogue."""
        times = {"times": True} if reads_times(self._model) else {}
        return {"memory": "events", "max_length": self.max_length, **times, **_columns_of(self._model)}

    def check(self, description: dict[str, Any]) -> None:
        """See `UserState.check`."""
        _check(description, self.describe())

    def extend(self, states_before: Sequence[KeptState], item_ids: ItemRows, user_ids: Tensor) -> Sequence[KeptState]:
        """See `UserState.extend`; nothing is encoded."""
        new, size = item_ids.newest(self.max_length), self._event.itemsize * self.max_length
        events = np.empty(len(new.flat), self._event)
        events["item"] = new.flat
        if new.times is not None:
            events["time"] = new.times
        for name, column in new.columns.items():
            events[_FIELD + name] = column.values
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
        lengths = [len(events) // self._event.itemsize for events in kept]
        flat = np.frombuffer(b"".join(map(bytes, kept)), self._event)
        times = flat["time"] if reads_times(self._model) else None
        columns = {each.name: each.column(flat[_FIELD + each.name]) for each in self._model.event_columns}
        events = ItemRows(flat["item"].astype(np.int64), lengths, times, columns)
        return self._model.last_states(events.batch(user_ids, at).to(self._model.device))


def user_state_of(model: Recommender) -> UserState:
    """Return the cheapest user state that a model supports."""
    return ReencodedState(model) if why_not_streamed(model) else StreamedState(model)


def why_not_streamed(model: Recommender) -> str | None:
    """Return why a model cannot continue from a state; None if it can."""
    if not isinstance(model, SequentialRecommender):
        return f"{model.title} keeps no state"
    if model.positions is not None and not model.encoder.bidirectional:
        return "positions=True cannot be streamed"
    try:
        model.init_state(1)
    except InputError as error:
        return str(error)
    return None


def reads_times(model: Recommender) -> bool:
    """Return whether a model reads the time of events."""
    return isinstance(model, SequentialRecommender) and model.event_time is not None


def event_dtype(model: Recommender) -> np.dtype[Any]:
    """Return the type of an event as `ReencodedState` keeps it."""
    fields: list[Any] = [("item", "<i4"), *([("time", "<i8")] if reads_times(model) else [])]
    for column in model.event_columns:
        number = "<i4" if column.kind == CATEGORICAL else "<f4"
        fields.append((_FIELD + column.name, number, (column.width,) if column.width else ()))
    return np.dtype(fields)


def _columns_of(model: Recommender) -> dict[str, Any]:
    """Return a digest of the columns that a model reads, by the key of a store's description; empty without columns."""
    if not model.event_columns:
        return {}
    text = json.dumps(to_spec(model.event_columns), sort_keys=True)
    return {"columns": hashlib.sha256(text.encode()).hexdigest()[:16]}


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
