"""Continue users' states by further events, and in training by their next windows.

B users or rows of a batch, L events, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from seqrec.catalogue.distributed import gather_objects
from seqrec.catalogue.table import ItemEmbedding
from seqrec.encoders import SequenceEncoder
from seqrec.encoders.column_embedding import ColumnEmbedding
from seqrec.encoders.event_time import TimeEmbedding, given_times, needed_times
from seqrec.encoders.layers import LearnedPositions, Tensors, Times
from seqrec.encoders.state import State
from seqrec.errors import InputError
from seqrec.models.recommender import Recommender
from seqrec.ops.event_input import added
from seqrec.types import NO_TIME, History, SequenceBatch

# The tensor of a stream's state with the time of the newest event, if the model reads times.
NEWEST_TIME = "newest_time"
# Entry of a checkpoint: the states of each process's rows.
CARRIED = "carried_state"
_FIX = "train MambaRec, RecMamba, GRU4Rec, HRNN or Samba, or set carry_state=False"


class StreamingRecommender(Recommender):
    """The part of `SequentialRecommender` that continues states; the attributes are documented there."""

    encoder: SequenceEncoder
    items: ItemEmbedding
    users: ItemEmbedding | None
    positions: LearnedPositions | None
    event_time: TimeEmbedding | None
    column_embedding: ColumnEmbedding | None

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Return the state before users' first events, from which `step` and `extend` continue in evaluation mode.

        Up to `max_length` events, the states that follow are those of `forward`. `SequenceEncoder` documents what
        encoders make of more events.

        Args:
            batch_size: Users.
            device: None is the weights' device.
            dtype: Type of embedded events; None is the weights' type.

        Raises:
            InputError: if the model has learned positions, or `SequenceEncoder.init_state` refuses.
        """
        self._refuse_learned_positions()
        max_length = int(self.hparams["max_length"])
        state = self.encoder.init_state(batch_size, max_length=max_length, device=device, dtype=dtype)
        if self.event_time is None:
            return state
        newest = next(iter(state.tensors.values())).new_full((batch_size,), NO_TIME, dtype=torch.int64)
        return State({**state.tensors, NEWEST_TIME: newest}, state.encoder)

    def step(
        self,
        item_ids: Tensor,
        state: State,
        user_ids: Tensor | None = None,
        timestamps: Tensor | None = None,
        features: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, State]:
        """Return the states after one more event per user, at a cost that does not depend on earlier events.

        Args:
            item_ids: (B,) int64, items of the catalogue.
            state: State after the earlier events; unchanged.
            user_ids: (B,) int64, 0 for unknown, the same at each call; None means unknown for all.
            timestamps: (B,) int64, times of the events; needed with `time`, else unused.
            features: Columns of the events as in `History.features`, but (B,) and (B, W); needed with `event_columns`.

        Returns:
            (B, D) states before any time of a request is read (`at_request`), and the state after the event.

        Raises:
            InputError: if an item is not in the catalogue, a time is missing or before that of the event before, a
                column is missing, or `SequenceEncoder.step` refuses.
        """
        _refuse_several(item_ids)
        return self._step(item_ids, state, user_ids, timestamps, features, check=True)

    def check_step(
        self,
        item_ids: Tensor,
        state: State,
        timestamps: Tensor | None = None,
        features: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Refuse what `step` refuses. Values on a GPU are waited for; events may be on another device than the state.

        Raises:
            InputError: as `step`, but for shapes that do not fit and training mode.
        """
        _refuse_several(item_ids)
        self.encoder.check_state(state)
        self._refuse_learned_positions()
        self._refuse_unknown(item_ids, features)
        if self.event_time is not None:
            newest = _separated(state)[1]
            times = given_times(timestamps).to(newest.device)
            _refuse_going_back(times < newest, times, newest)

    def checked_step(
        self,
        item_ids: Tensor,
        state: State,
        user_ids: Tensor | None = None,
        timestamps: Tensor | None = None,
        features: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, State]:
        """Compute `step` for arguments that `check_step` has seen. Reads no values, so it can be recorded."""
        return self._step(item_ids, state, user_ids, timestamps, features, check=False)

    def _step(
        self,
        item_ids: Tensor,
        state: State,
        user_ids: Tensor | None,
        timestamps: Tensor | None,
        features: Mapping[str, Tensor] | None,
        *,
        check: bool,
    ) -> tuple[Tensor, State]:
        if self.event_time is None:
            return self.encoder.step(self._further_events(item_ids, user_ids, features, check=check), state)
        encoder_state, newest = _separated(state)
        times = given_times(timestamps)
        if check:
            _refuse_going_back(times < newest, times, newest)
        x, events = self._further_events(item_ids, user_ids, features, (times, newest), check=check), None
        # Without a `History` if it is not read: its columns of one event take as long to make as the step.
        if self.encoder.reads_gaps:
            events = History(item_ids.unsqueeze(1), torch.ones_like(item_ids), times.unsqueeze(1), newest)
        states, after = self.encoder.step(x, encoder_state, events)
        return states, State({**after.tensors, NEWEST_TIME: times}, after.encoder)

    def extend(self, history: History, state: State, user_ids: Tensor | None = None) -> tuple[Tensor, State]:
        """Return the states of any number of further events per user.

        Args:
            history: (B, L) the new events alone. A length may be 0 here, which leaves that user's state unchanged.
            state: State after the earlier events; unchanged.
            user_ids: (B,) int64, 0 for unknown, the same at each call; None means unknown for all.

        Returns:
            (B, L, D) states before any time of a request is read (`at_request`), meaningless at padding, and the
            state after each user's newest event.

        Raises:
            InputError: if an item is not in the catalogue, a time is missing or before that of the event before, a
                column is missing, or `SequenceEncoder.extend` refuses.
        """
        # Padding is never seen, but its ids must be ones that can be embedded.
        item_ids = torch.where(history.valid, history.item_ids, 1)
        if self.event_time is None:
            x = self._further_events(item_ids, user_ids, history.features)
            return self.encoder.extend(x, history.lengths, state)
        encoder_state, newest = _separated(state)
        history = replace(history, time_before=newest)
        times, before = needed_times(history), history.times_before
        _refuse_going_back((times < before) & history.valid, times, before)
        x = self._further_events(item_ids, user_ids, history.features, (times, before))
        states, after = self.encoder.extend(x, history.lengths, encoder_state, history)
        times = torch.cat([newest.unsqueeze(1), times], 1)
        newest = times.gather(1, history.lengths.unsqueeze(1)).squeeze(1)
        return states, State({**after.tensors, NEWEST_TIME: newest}, after.encoder)

    def _further_events(
        self,
        item_ids: Tensor,
        user_ids: Tensor | None,
        features: Mapping[str, Tensor] | None,
        times: Times | None = None,
        *,
        check: bool = True,
    ) -> Tensor:
        """Return embedded events (B, D) or (B, L, D) of a stream; `times` are theirs and those of the events before."""
        self._refuse_learned_positions()
        columns = self.column_embedding
        if check and item_ids.device.type != "cpu":
            # A wrong code would end all work on a GPU. On a CPU it is refused where it is read.
            self._refuse_unknown(item_ids, features)
        with torch.inference_mode():
            parts = [self.items.parts(item_ids, scale=self.encoder.d_model**0.5, least=int(check))]
            if times is not None:
                parts.append(cast("TimeEmbedding", self.event_time).parts(*times))
            if columns is not None:
                parts.append(columns.parts(features, item_ids.shape, check=check))
            rows = [row for each, _ in parts for row in each]
            vectors = [vector for _, each in parts for vector in each]
            if user_ids is not None and (users := self.users) is not None:
                vectors.append(users(user_ids) if item_ids.dim() == 1 else users(user_ids).unsqueeze(1))
            try:
                return added(rows, vectors)
            except IndexError:
                self._refuse_unknown(item_ids, features)
                raise

    def _refuse_unknown(self, item_ids: Tensor, features: Mapping[str, Tensor] | None) -> None:
        """Refuse items that are not in the catalogue, and values that columns do not have."""
        if self.column_embedding is not None:
            self.column_embedding.check(features, item_ids.shape)
        least, most = (int(item) for item in item_ids.aminmax()) if item_ids.numel() else (1, 1)
        if not 1 <= least <= most <= self.items.num_items:
            raise InputError(
                f"item_ids hold {least}..{most}, but the catalogue has items 1..{self.items.num_items}; leave unknown "
                "items out"
            )

    def _refuse_learned_positions(self) -> None:
        self.encoder.refuse_bidirectional()
        if self.positions is not None:
            raise InputError(
                "positions=True cannot be streamed: learned positions count back from the newest event, so that each "
                "new event changes the vectors of all others; train with positions: false, and for SASRec and "
                "MoEMaTrRec with rotary: true, which counts distances between events instead"
            )


class CarriedState:
    """States of an encoder after the windows of a batch, from which the next batch continues.

    Gradients end at the start of a window (truncated back-propagation through time, An Efficient Gradient-Based
    Algorithm for On-Line Training of Recurrent Network Trajectories, Williams & Peng 1990, with both lengths those of a
    window).

    Args:
        encoder: An encoder that can be streamed.
        max_length: Events a window.
        positions: Whether events get learned positions.

    Raises:
        InputError: if the encoder has no state, or one that grows with the window, or positions are learned.
    """

    def __init__(self, encoder: SequenceEncoder, max_length: int, *, positions: bool) -> None:
        if positions:
            raise InputError(
                "carry_state=True and positions=True do not go together: learned positions count back from the newest "
                "event of a window; set positions=False"
            )
        like, name = next(encoder.parameters()), type(encoder).__name__
        if not encoder.can_stream:
            raise InputError(f"carry_state=True needs an encoder with a recurrent state, but {name} has none: {_FIX}")
        sizes = [
            {part: x.shape for part, x in encoder.zero_state(1, length, like).items()}
            for length in (max_length, 2 * max_length)
        ]
        if sizes[0] != sizes[1]:
            raise InputError(
                f"carry_state=True needs a state of constant size, but that of {name} depends on max_length="
                f"{max_length}, because attention sees so many events or more: {_FIX}; give Samba a window of at most "
                f"{max_length}"
            )
        self._max_length = max_length
        self._rows: Tensors = {}

    def advance(self, encoder: SequenceEncoder, x: Tensor, batch: SequenceBatch) -> Tensor:
        """Return the states (B, L, D) of embedded events x (B, L, D), and keep what the next batch continues from.

        Raises:
            InputError: if the batch has no `continues`.
        """
        if batch.continues is None:
            raise InputError(
                "carry_state=True needs batches whose rows continue those of the batch before (`continues`), but these "
                "are shuffled: train with SequenceDataModule and data.train_windows=StridedWindows, or set "
                "carry_state=False"
            )
        zero = encoder.zero_state(len(x), self._max_length, x)
        before = {name: _continued(self._rows.get(name), start, batch.continues) for name, start in zero.items()}
        history = batch.history
        states, after = encoder.advance(x, history.valid, before, *encoder.times_of(history))
        self._rows = {name: each.detach() for name, each in after.items()}
        return states

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Put the states of all processes' rows into a checkpoint; all processes must call."""
        checkpoint[CARRIED] = gather_objects({name: each.cpu() for name, each in self._rows.items()})

    def load(self, checkpoint: dict[str, Any], rank: int, world_size: int) -> None:
        """Take the states of this process's rows from a checkpoint.

        If another number of processes trained, no row continues another in the first batch, and none are taken.
        """
        ranks = checkpoint.get(CARRIED, [])
        self._rows = ranks[rank] if len(ranks) == world_size else {}


def _separated(state: State) -> tuple[State, Tensor]:
    """Return the encoder's part of a state, and the times (B,) of the newest events."""
    tensors = dict(state.tensors)
    newest = tensors.pop(NEWEST_TIME, None)
    if newest is None:
        raise InputError("the state has no time of the newest event, so it is of another model: use `init_state`")
    return State(tensors, state.encoder), newest


def _refuse_several(item_ids: Tensor) -> None:
    if item_ids.dim() != 1:
        raise InputError(f"item_ids must be (B,), got {tuple(item_ids.shape)}; use `extend` for several")


def _refuse_going_back(gone_back: Tensor, times: Tensor, before: Tensor) -> None:
    """Refuse times (B,) or (B, L) where `gone_back` says that they are earlier than `before`."""
    if gone_back.any():
        place = tuple(gone_back.nonzero()[0].tolist())
        raise InputError(
            f"timestamps of row {place[0]} go back: {int(times[place])} after {int(before[place])}; give events in the "
            "order of time"
        )


def _continued(kept: Tensor | None, start: Tensor, continues: Tensor) -> Tensor:
    """Return a tensor (B, ...) of the state: kept rows where `continues` (B,), those of `start` elsewhere."""
    # At the start of an epoch more rows may begin than the last batch had, and none continues.
    if kept is None or len(kept) < len(start):
        return start
    # A checkpoint is read to the CPU.
    kept = kept[: len(start)].to(start.device)
    return torch.where(continues.view(-1, *[1] * (start.dim() - 1)), kept, start)
