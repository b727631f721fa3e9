"""Items for somebody whose history is in the request. B histories, D width, K items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from seqrec.errors import UnknownItemError
from seqrec.inference.sessions import Id, Scored
from seqrec.inference.sessions.entries import scored_lists
from seqrec.inference.sessions.user_state import length_groups, padded
from seqrec.models import Recommender
from seqrec.serving.batcher import Outcomes
from seqrec.serving.metrics import Metrics
from seqrec.serving.work import attempt
from seqrec.types import RaggedItems, SeenItems, SequenceBatch


class RecommendToHistory(NamedTuple):
    """Items for a history, oldest first; the outcome is a list of `Scored`."""

    history: Sequence[Id]
    k: int = 10
    filter_seen: bool = True
    block: Sequence[Id] = ()


class HistoryWork:
    """Does `RecommendToHistory`: encodes each history's newest events, as many as the model was trained with.

    Args:
        model: A recommender in evaluation mode that knows the log's ids.
        metrics: Where batches are counted.
    """

    def __init__(self, model: Recommender, metrics: Metrics) -> None:
        assert model.item_vocabulary is not None
        self._model = model
        self._items = model.item_vocabulary
        self._scorer = model.scorer()
        self._max_length = int(model.hparams.get("max_length", 0)) or None
        self._metrics = metrics

    def __call__(self, works: Sequence[RecommendToHistory]) -> Iterator[Outcomes]:
        """Outcomes of a batch; see `Batcher`."""
        self._metrics.batch("history", len(works))
        found = [attempt(self._known, work.history) for work in works]
        yield [(place, error) for place, error in enumerate(found) if isinstance(error, Exception)]
        places = [place for place, known in enumerate(found) if not isinstance(known, Exception)]
        lengths = [min(len(found[place]), self._max_length or len(found[place])) for place in places]
        for group in length_groups(lengths):
            own = [places[row] for row in group]
            best = self._best([works[place] for place in own], [found[place] for place in own])
            yield list(zip(own, best, strict=True))

    def _known(self, history: Sequence[Id]) -> NDArray[np.int64]:
        """(L,) internal ids.

        Raises:
            UnknownItemError: an item that is not in the catalogue.
        """
        item_ids = self._items.lookup(history)
        unknown = np.flatnonzero(item_ids == 0)
        if len(unknown):
            place = int(unknown[0])
            raise UnknownItemError(
                f"history[{place}]: item={history[place]!r} is not among the {len(self._items):,} items that the model "
                "was trained on; leave it out",
                place,
            )
        return item_ids

    @torch.no_grad()
    def _best(
        self, works: Sequence[RecommendToHistory], histories: Sequence[NDArray[np.int64]]
    ) -> list[list[Scored]]:
        newest = padded([history[-(self._max_length or 0) :] for history in histories])
        events = RaggedItems.from_rows([torch.from_numpy(history) for history in histories])
        batch = SequenceBatch(newest, None, torch.zeros(len(works), dtype=torch.int64), events)
        batch = batch.to(self._model.device)
        hidden = self._hidden(works, histories).to(self._model.device)
        states, most = self._model.last_states(batch), max(work.k for work in works)
        best = self._scorer.top_k(states, most, batch.user_ids, exclude=hidden)
        return scored_lists(best, [work.k for work in works], self._items)

    def _hidden(
        self, works: Sequence[RecommendToHistory], histories: Sequence[NDArray[np.int64]]
    ) -> SeenItems:
        """What may not be recommended to each."""
        parts = []
        for work, history in zip(works, histories, strict=True):
            blocked = self._items.lookup(work.block)
            parts.append(np.concatenate([history, blocked]) if work.filter_seen else blocked)
        rows = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return SeenItems.from_events(
            torch.from_numpy(rows), torch.from_numpy(np.concatenate(parts)), len(parts)
        )
