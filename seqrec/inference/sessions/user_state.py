"""What a model goes on from, user by user, as bytes: its streaming state, or the newest events themselves.

Shapes: B users, D width of states.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec.data.collate import padded_rows
from seqrec.encoders.state import State, StateFormat, weights_digest
from seqrec.errors import InputError, SessionStoreError
from seqrec.inference.sessions.rows import StateRows
from seqrec.models import Recommender, SequentialRecommender
from seqrec.types import History, RaggedItems, SequenceBatch

Int64Array = NDArray[np.int64]

# Events encoded at a time, padding included.
MAX_EVENTS = 1 << 16
# Under which name a state keeps what the encoder said behind the newest event.
LAST = "last_state"


class UserState(Protocol):
    """How a model remembers users between events.

    Attributes:
        streams: Whether an event costs the same whatever the number of events before.
        description: What it does, in words.
    """

    streams: bool
    description: str

    def describe(self) -> dict[str, Any]:
        """What states_before depend on, as plain values: equal for models that may go on from each other's."""

    def check(self, description: dict[str, Any]) -> None:
        """Compare a store's description with this model's.

        Raises:
            SessionStoreError: it is of another model.
        """

    def extend(
        self, states_before: Sequence[bytes | None], item_ids: Sequence[Int64Array], user_ids: Tensor
    ) -> list[bytes]:
        """Memories behind further events, at least one of each user.

        Args:
            states_before: One a user; None for a user without events so far.
            item_ids: The further events of each, oldest first.
            user_ids: (B,) int64 internal ids, 0 for unknown.
        """

    def batches(self, states_before: Sequence[bytes]) -> list[list[int]]:
        """Places of users whose states are made together."""

    def states(self, states_before: Sequence[bytes], user_ids: Tensor) -> Tensor:
        """(B, D) states as the model's scorer takes them."""


class StreamedState:
    """The encoder's state, and what it said behind the newest event; see `UserState`.

    Args:
        model: A recommender in evaluation mode.

    Raises:
        InputError: the model cannot be streamed; the message says why.
    """

    streams = True
    description = "streaming: each event goes on from the user's state"

    def __init__(self, model: Recommender) -> None:
        reason = why_not_streamed(model)
        if reason is not None:
            raise InputError(f"{model.title} cannot be streamed: {reason}")
        assert isinstance(model, SequentialRecommender)
        self._model = model
        start = model.init_state(1)
        last, _ = model.step(torch.ones(1, dtype=torch.int64, device=model.device), start)
        like = State({**start.tensors, LAST: last}, start.encoder)
        self._format = StateFormat(model.encoder, like)
        self._rows = StateRows(like)
        (self._start,) = self._rows.to_rows(
            State({**start.tensors, LAST: torch.zeros_like(last)}, start.encoder)
        )

    def describe(self) -> dict[str, Any]:
        """See `UserState.describe`."""
        model = self._model
        tables = {"items": model.items, "users": model.users}
        digests = {name: weights_digest(table) for name, table in tables.items() if table is not None}
        return {"memory": "states", "state": json.loads(self._format.header), **digests}

    def check(self, description: dict[str, Any]) -> None:
        """See `UserState.check`."""
        if description.get("memory") == "states":
            try:
                self._format.check_header(
                    json.dumps(description.get("state"), separators=(",", ":")).encode()
                )
            except InputError as error:
                raise SessionStoreError(f"the store is of another model: {error}") from error
        _check(description, self.describe())

    def extend(
        self, states_before: Sequence[bytes | None], item_ids: Sequence[Int64Array], user_ids: Tensor
    ) -> list[bytes]:
        """See `UserState.extend`: one step or extension, unless that would be more than `MAX_EVENTS` with padding."""
        new = [b""] * len(states_before)
        for places in length_groups([len(row) for row in item_ids]):
            begun = [states_before[place] or self._start for place in places]
            rows = self._extended(begun, [item_ids[place] for place in places], user_ids[places])
            for place, row in zip(places, rows, strict=True):
                new[place] = row
        return new

    def _extended(
        self, states_before: Sequence[bytes], item_ids: Sequence[Int64Array], user_ids: Tensor
    ) -> list[bytes]:
        model, device = self._model, self._model.device
        users = user_ids.to(device)
        kept = self._rows.from_rows(states_before, device)
        state = State({name: x for name, x in kept.tensors.items() if name != LAST}, kept.encoder)
        history = padded(item_ids).to(device)
        if history.item_ids.shape[1] == 1:
            last, state = model.step(history.item_ids[:, 0], state, users)
        else:
            states, state = model.extend(history, state, users)
            last = states[torch.arange(len(users), device=device), history.lengths - 1]
        return self._rows.to_rows(State({**state.tensors, LAST: last}, state.encoder))

    def batches(self, states_before: Sequence[bytes]) -> list[list[int]]:
        """See `UserState.batches`: all together."""
        return [list(range(len(states_before)))]

    @torch.no_grad()
    def states(self, states_before: Sequence[bytes], user_ids: Tensor) -> Tensor:
        """See `UserState.states`; nothing is encoded."""
        return self._model.to_scoring_space(
            self._rows.from_rows(states_before, self._model.device).tensors[LAST]
        )


class ReencodedState:
    """The newest events, which are encoded again whenever a user wants items; see `UserState`.

    For models that cannot be streamed, and for those that shall say just what they say of the newest `max_length`
    events in training and evaluation.

    Args:
        model: A recommender in evaluation mode.
        max_length: Newest events that are kept; None is the model's `max_length`, or 200 where it has none.

    Raises:
        InputError: `max_length` is below 1 or more than the model has positions for.
    """

    streams = False

    def __init__(self, model: Recommender, *, max_length: int | None = None) -> None:
        own = int(model.hparams.get("max_length", 0))
        has_positions = isinstance(model, SequentialRecommender) and model.positions is not None
        length = (own or 200) if max_length is None else max_length
        if length < 1:
            raise InputError(f"max_length={length} must be at least 1")
        if has_positions and length > own:
            raise InputError(f"max_length={length} must be at most {own}, for which the model has positions")
        self._model = model
        self.max_length = length
        reason = why_not_streamed(model)
        self.description = f"re-encoding up to {length} events: {reason or 'asked for'}"

    def describe(self) -> dict[str, Any]:
        """See `UserState.describe`: item ids mean the same to every model of the catalogue."""
        return {"memory": "events", "max_length": self.max_length}

    def check(self, description: dict[str, Any]) -> None:
        """See `UserState.check`."""
        _check(description, self.describe())

    def extend(
        self, states_before: Sequence[bytes | None], item_ids: Sequence[Int64Array], user_ids: Tensor
    ) -> list[bytes]:
        """See `UserState.extend`; nothing is encoded."""
        size = 4 * self.max_length
        return [
            ((memory or b"") + new[-self.max_length :].astype("<i4").tobytes())[-size:]
            for memory, new in zip(states_before, item_ids, strict=True)
        ]

    def batches(self, states_before: Sequence[bytes]) -> list[list[int]]:
        """See `UserState.batches`: users of like length together, at most `MAX_EVENTS` with padding."""
        return length_groups([len(memory) // 4 for memory in states_before])

    @torch.no_grad()
    def states(self, states_before: Sequence[bytes], user_ids: Tensor) -> Tensor:
        """See `UserState.states`."""
        rows = [np.frombuffer(memory, "<i4").astype(np.int64) for memory in states_before]
        history = padded(rows)
        seen = RaggedItems.from_rows([torch.from_numpy(row) for row in rows])
        return self._model.last_states(SequenceBatch(history, None, user_ids, seen).to(self._model.device))


def user_state_of(model: Recommender) -> UserState:
    """The cheapest memory that a model can have."""
    return ReencodedState(model) if why_not_streamed(model) else StreamedState(model)


def why_not_streamed(model: Recommender) -> str | None:
    """Why a model cannot go on from a state; None where it can."""
    if not isinstance(model, SequentialRecommender):
        return f"{model.title} keeps no state"
    if model.positions is not None:
        return "positions=True cannot be streamed"
    try:
        model.init_state(1)
    except InputError as error:
        return str(error)
    return None


def padded(rows: Sequence[Int64Array]) -> History:
    """Rows of item ids, at least one event each, as a history on the CPU."""
    lengths = np.array([len(row) for row in rows])
    item_ids = padded_rows(np.concatenate(rows), np.cumsum(lengths) - lengths, lengths)
    return History(item_ids, torch.from_numpy(lengths))


def length_groups(lengths: Sequence[int]) -> list[list[int]]:
    """Places of rows that go together, shortest rows first: at most `MAX_EVENTS` with padding, or a single row."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not groups or (len(groups[-1]) + 1) * lengths[place] > MAX_EVENTS:
            groups.append([])
        groups[-1].append(place)
    return groups


def _check(found: dict[str, Any], ours: dict[str, Any]) -> None:
    """Refuse a description whose keys or values differ, and name the first of them."""
    for name in (*ours, *found):
        if found.get(name) != ours.get(name):
            raise SessionStoreError(
                f"the store is of another model: its {name} is {found.get(name)!r}, the model's {ours.get(name)!r}; "
                "give each model a store of its own, and observe the events again"
            )
