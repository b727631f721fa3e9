"""Models around an encoder: events as they come, and what each contributes. B users, L events, D width."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from seqrec.catalogue.table import ItemEmbedding
from seqrec.encoders import SequenceEncoder
from seqrec.encoders.layers import LearnedPositions
from seqrec.encoders.state import State
from seqrec.errors import InputError
from seqrec.models.base import Recommender
from seqrec.models.explain import Explanation, Method, explain
from seqrec.types import History


class StreamedRecommender(Recommender):
    """A recommender around an encoder, whose states are kept from one event to the next.

    Attributes:
        encoder: The sequence encoder.
        items: Vectors of items.
        positions: Learned positions, with which events cannot be streamed; None without.
        users: Vectors of users; None without.
    """

    encoder: SequenceEncoder
    items: ItemEmbedding
    positions: LearnedPositions | None
    users: ItemEmbedding | None

    @abstractmethod
    def to_scoring_space(self, states: Tensor) -> Tensor:
        """States (..., D) in the form whose dot products with the scorer's item vectors are scores."""

    def init_state(
        self,
        batch_size: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """The state before users' first events; `step` and `extend` go on from there, in evaluation mode.

        Up to `max_length` events the states that follow are those of `forward`. What encoders make of more is said in
        `SequenceEncoder`.

        Args:
            batch_size: Users.
            device: None is where the weights are.
            dtype: Of embedded events; None is that of the weights.

        Raises:
            InputError: a model with learned positions, or what `SequenceEncoder.init_state` refuses.
        """
        self._refuse_learned_positions()
        max_length = int(self.hparams["max_length"])
        return self.encoder.init_state(batch_size, max_length=max_length, device=device, dtype=dtype)

    def step(self, item_ids: Tensor, state: State, user_ids: Tensor | None = None) -> tuple[Tensor, State]:
        """States behind one further event of each user, at a cost that does not depend on those before.

        Args:
            item_ids: (B,) int64, items of the catalogue.
            state: Behind the events before; not written to.
            user_ids: (B,) int64, 0 for unknown, the same at each call; None is unknown for all.

        Returns:
            (B, D) states, and the state behind the event.

        Raises:
            InputError: an item that is not in the catalogue, or what `SequenceEncoder.step` refuses.
        """
        if item_ids.dim() != 1:
            raise InputError(f"item_ids must be (B,), got {tuple(item_ids.shape)}; use `extend` for several")
        return self.encoder.step(self._further_events(item_ids, user_ids), state)

    def extend(self, history: History, state: State, user_ids: Tensor | None = None) -> tuple[Tensor, State]:
        """States of any number of further events of each user.

        Args:
            history: (B, L) the new events alone; here a length may be 0, which leaves that user's state as it is.
            state: Behind the events before; not written to.
            user_ids: (B,) int64, 0 for unknown, the same at each call; None is unknown for all.

        Returns:
            (B, L, D) states, meaningless at padding, and the state behind each user's newest event.

        Raises:
            InputError: an item that is not in the catalogue, or what `SequenceEncoder.extend` refuses.
        """
        # What stands at padding is never seen, but an id behind the catalogue could not be embedded.
        item_ids = torch.where(history.valid, history.item_ids, 1)
        return self.encoder.extend(self._further_events(item_ids, user_ids), history.lengths, state)

    def explain(
        self,
        history: Sequence[Any] | History,
        item: Any,
        *,
        method: Method = "leave_one_out",
        stream: bool = False,
        user: Any = None,
        batch_size: int = 64,
    ) -> Explanation:
        """What each event of a history contributes to the score of an item.

        - "leave_one_out": by how much the score drops when the history is without the event; newer events then move
          up by one place. Exact, at the price of encoding L histories. Contributions do not add up to anything: of two
          events that say the same, neither may matter alone. Of a single event it is the score less the baseline.
        - "gradient_x_input": the score's gradient by the event's item vector, times that vector; one pass forward and
          back. Contributions add up to the score less the baseline only where the score is linear in the events;
          otherwise they tell how it changes when events are scaled by a little. Layer norms hide scale, so that they
          may be far smaller than the score.

        Args:
            history: The log's own item ids, oldest first, unknown ones dropped with a warning. Or a `History` of one
                row, and then all ids are internal ones.
            item: The item whose score is explained.
            method: As above.
            stream: Whether the score is that of a stream over all events (`init_state`, then `step`), instead of that
                of the newest `max_length` in one pass.
            user: The user, for models with user embeddings; None and unknown users have none.
            batch_size: Histories that are encoded at a time.

        Raises:
            InputError: an item that is not in the catalogue, a history without a known one, a log's id where the model
                knows no vocabulary, a method that there is not, or a stream of a model that cannot be streamed.
        """
        return explain(self, history, item, method=method, stream=stream, user=user, batch_size=batch_size)

    def add_positions(self, x: Tensor, history: History, user_ids: Tensor | None) -> Tensor:
        """What the encoder gets of a history's scaled item vectors (B, L, D): these with positions and users."""
        if self.positions is not None:
            x = x + self.positions(history)
        if self.users is not None and user_ids is not None:
            x = x + self.users(user_ids).unsqueeze(1)
        return x

    def as_streaming(self, x: Tensor, user_ids: Tensor | None) -> Tensor:
        """States (B, L, D) of a stream of scaled item vectors (B, L, D) from its start, with gradients.

        Raises:
            InputError: as for `init_state`.
        """
        state = self.init_state(len(x))
        if self.users is not None and user_ids is not None:
            x = x + self.users(user_ids).unsqueeze(1)
        return self.encoder.advance(x, None, state.tensors)[0]

    def _further_events(self, item_ids: Tensor, user_ids: Tensor | None) -> Tensor:
        """Embedded events (B, D) or (B, L, D) of a stream."""
        self._refuse_learned_positions()
        num_items = self.items.num_items
        if item_ids.numel():
            least, most = (int(item) for item in item_ids.aminmax())
            if not 1 <= least <= most <= num_items:
                raise InputError(
                    f"item_ids hold {least}..{most}, but the catalogue has items 1..{num_items}; leave unknown items "
                    "out"
                )
        with torch.inference_mode():
            x: Tensor = self.items(item_ids) * self.encoder.d_model**0.5
            if self.users is not None and user_ids is not None:
                users: Tensor = self.users(user_ids)
                x = x + (users if x.dim() == 2 else users.unsqueeze(1))
        return x

    def _refuse_learned_positions(self) -> None:
        if self.positions is not None:
            raise InputError(
                "positions=True cannot be streamed: learned positions count back from the newest event, so that each "
                "new event changes the vectors of all others; train with positions: false, and for SASRec and "
                "MoEMaTrRec with rotary: true, which counts distances between events instead"
            )
