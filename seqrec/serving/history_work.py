"""Work of requests that bring or name a history, in batches in which a bad request fails alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from seqrec.catalogue.recommend import best_items_of_each, trained_length
from seqrec.data.columns import Column
from seqrec.errors import InputError, UnknownItemError
from seqrec.inference.sessions import Scored
from seqrec.inference.sessions.entries import (
    history_columns,
    history_times,
    recommend_options,
    request_time,
    scored_lists,
)
from seqrec.inference.sessions.item_rows import ItemRows
from seqrec.inference.sessions.user_state import length_groups, reads_times
from seqrec.models import Recommender, SequentialRecommender
from seqrec.models.explain import method_for
from seqrec.models.similar_items import ItemSimilarity
from seqrec.serving.batcher import Outcomes
from seqrec.serving.metrics import Metrics
from seqrec.serving.work import Explain, Explained, FindSimilar, Probe, RecommendToHistory, attempt, places_of
from seqrec.types import RaggedItems


class KnownHistory(NamedTuple):
    """Internal item ids (L,) of a history, times (L,) and columns of its events, and when it is asked for, if they are
    read.
    """

    item_ids: NDArray[np.int64]
    times: NDArray[np.int64] | None
    columns: dict[str, Column]
    at: int | None


class HistoryWork:
    """Does `Probe`, `FindSimilar`, `Explain` and `RecommendToHistory`: encodes each history's newest events, as
    training did.

    The model is in evaluation mode and knows the log's ids.
    """

    def __init__(self, model: Recommender, metrics: Metrics) -> None:
        assert model.item_vocabulary is not None
        self._model = model
        self._items = model.item_vocabulary
        self._scorer = model.scorer()
        self._max_length, self._reads_times = trained_length(model), reads_times(model)
        self._metrics = metrics
        self._similarity: ItemSimilarity | None = None

    def __call__(self, works: Sequence[Any]) -> Iterator[Outcomes]:
        """Yield the outcomes of a batch; see `Batcher`."""
        yield [(place, None) for place, work in enumerate(works) if isinstance(work, Probe)]
        if similar := [(place, work) for place, work in enumerate(works) if isinstance(work, FindSimilar)]:
            self._metrics.batch("similar", len(similar))
            yield places_of(similar, self._similar([work for _, work in similar]))
        for place, work in enumerate(works):
            if isinstance(work, Explain):
                self._metrics.batch("explain", 1)
                yield [(place, attempt(self._explained, work))]
        asked = [place for place, work in enumerate(works) if isinstance(work, RecommendToHistory)]
        if not asked:
            return
        self._metrics.batch("history", len(asked))
        found = {place: attempt(self._known, works[place]) for place in asked}
        yield [(place, error) for place, error in found.items() if isinstance(error, Exception)]
        places = [place for place, known in found.items() if not isinstance(known, Exception)]
        counts = [len(found[place].item_ids) for place in places]
        lengths = [min(count, self._max_length or count) for count in counts]
        for group in length_groups(lengths):
            own = [places[row] for row in group]
            best = self._best([works[place] for place in own], [found[place] for place in own])
            yield list(zip(own, best, strict=True))

    def _known(self, work: RecommendToHistory) -> KnownHistory:
        """Return a history as the model reads it.

        Raises:
            UnknownItemError: if an item is not in the catalogue.
            InputError: if times or columns are missing or not in order, or the model does not read the time of
                requests.
        """
        history = work.history
        item_ids = self._items.lookup(history)
        unknown = np.flatnonzero(item_ids == 0)
        if len(unknown):
            place = int(unknown[0])
            raise UnknownItemError(
                f"history[{place}]: item={history[place]!r} is not among the {len(self._items):,} items that the model "
                "was trained on; leave it out",
                place,
            )
        times, at = None, request_time(self._model, work.at, "")
        if self._reads_times or work.times is not None:
            times = history_times(work.times, len(history), "the history")
        if at is not None and times is not None and at < times[-1]:
            raise InputError(f"at={at} is before the newest event, at {times[-1]}, of history: ask at a later time")
        columns = history_columns(work.columns, self._model.event_columns, len(history), "the history")
        return KnownHistory(item_ids, times if self._reads_times else None, columns, at)

    @torch.no_grad()
    def _best(self, works: Sequence[RecommendToHistory], known: Sequence[KnownHistory]) -> list[list[Scored]]:
        newest, histories = slice(-(self._max_length or 0), None), [each.item_ids for each in known]
        times = [each.times[newest] for each in known if each.times is not None]
        at = [each.at for each in known if each.at is not None]
        columns = [{name: column.taken(newest) for name, column in each.columns.items()} for each in known]
        rows = ItemRows.of([history[newest] for history in histories], times or None, columns)
        users, asked = torch.zeros(len(works), dtype=torch.int64), torch.tensor(at) if at else None
        events = RaggedItems.from_rows([torch.from_numpy(history) for history in histories])
        batch = replace(rows.batch(users, asked), seen_events=events).to(self._model.device)
        options = [
            recommend_options(work.k, work.filter_seen, work.block, self._items, candidates=work.candidates)
            for work in works
        ]
        states = self._model.last_states(batch)
        best = best_items_of_each(self._scorer, states, batch.user_ids, histories, options)
        return scored_lists(best, [own.top_k for own in options], self._items)

    def _explained(self, work: Explain) -> Explained:
        model, items, times = self._model, work.events.items, work.events.times
        if not isinstance(model, SequentialRecommender):
            raise InputError(f"{model.title} reads no sequence of events, so its recommendations have no explanations")
        (item_id,) = self._items.lookup([work.item]).tolist()
        if not item_id:
            raise UnknownItemError(f"item={work.item!r} is not among the {len(self._items):,} items of the model")
        places = np.flatnonzero(self._items.lookup(items))[-(self._max_length or 0) :].tolist()
        if not places:
            raise InputError("none of the user's kept events has an item of the model's catalogue")
        taken = {name: [values[place] for place in places] for name, values in (work.events.columns or {}).items()}
        own_times = None if times is None else [times[place] for place in places]
        history = [items[place] for place in places]
        known = self._known(RecommendToHistory(history, at=work.at, times=own_times, columns=taken))
        rows = ItemRows.of([known.item_ids], None if known.times is None else [known.times], [known.columns])
        users = model.user_vocabulary if model.users is not None else None
        user = 0 if users is None else int(users.lookup([work.user])[0])
        found = model.explain(rows.padded(), item_id, method=method_for(len(places)), user=user, at=known.at)
        contributions: list[float | None] = [None] * len(items)
        for place, contribution in zip(places, found.contributions.tolist(), strict=True):
            contributions[place] = contribution
        return Explained(contributions, found.score, found.method)

    def _similar(self, works: Sequence[FindSimilar]) -> list[Any]:
        """Return the items most similar to those of some requests, or why there are none."""
        try:
            # Made for the first request, as it may copy the item table.
            self._similarity = self._similarity or self._model.item_similarity()
        except InputError as error:
            return [error] * len(works)
        items = self._items
        outcomes: list[Any] = [
            UnknownItemError(f"item={work.item!r} is not among the {len(items):,} items of the model") for work in works
        ]
        item_ids = items.lookup([work.item for work in works])
        known = np.flatnonzero(item_ids).tolist()
        if known:
            asked = [works[place] for place in known]
            options = [recommend_options(work.k, True, (), items, candidates=work.candidates) for work in asked]
            ids = torch.from_numpy(item_ids[known]).to(self._model.device)
            with torch.no_grad():
                states = self._similarity.states(ids)
            # The item itself counts as seen.
            own = list(item_ids[known].reshape(-1, 1))
            best = best_items_of_each(self._similarity.scorer, states, torch.zeros_like(ids), own, options)
            for place, found in zip(known, scored_lists(best, [work.k for work in asked], items), strict=True):
                outcomes[place] = found
        return outcomes
