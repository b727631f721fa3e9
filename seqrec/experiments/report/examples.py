"""Examples for a run's page: histories of some users, and what the model recommends to them, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec.catalogue.item_columns import ItemColumns, shortened
from seqrec.catalogue.recommend import RecommendOptions, recommend_block
from seqrec.data.progress import Progress
from seqrec.data.store import EventStore
from seqrec.errors import InputError
from seqrec.evaluation.results import Results
from seqrec.inference.bulk.users import BulkUsers
from seqrec.inference.loading import load_with_store
from seqrec.models import Recommender, SequentialRecommender
from seqrec.models.explain import Method, method_for

Int64 = NDArray[np.int64]
TOP_K, SHOWN_EVENTS, SHOWN_TARGETS = 10, 12, 3


@dataclass(frozen=True)
class Event:
    """An item of a history, and how much it raises the score of the first recommendation; None if not explained."""

    item: str
    contribution: float | None


@dataclass(frozen=True)
class Example:
    """A user's newest events, oldest first, and recommendations, best first.

    Attributes:
        user: The log's id.
        length: Events of the whole history.
        events: The newest of them.
        targets: Held-out items with their rank in the test; at most `SHOWN_TARGETS`.
        recommended: Item, score and whether it is held out.
    """

    user: str
    length: int
    events: tuple[Event, ...]
    targets: tuple[tuple[str, str], ...]
    recommended: tuple[tuple[str, float, bool], ...]


@dataclass(frozen=True)
class Examples:
    """Examples of users who were drawn with a fixed seed.

    Attributes:
        users: The examples.
        method: How contributions were computed; None if the model cannot be explained.
        titles: Column of the item table that names items; None if they have only ids.
    """

    users: tuple[Example, ...]
    method: Method | None
    titles: str | None


def make_examples(
    ckpt: str, results: Results | None, count: int, *, store: str | None = None, progress: Progress | None = None
) -> Examples:
    """Draw users, and recommend to them as the test did: by the events before their first held-out item.

    Args:
        ckpt: A checkpoint or a run's folder.
        results: Ranks of the test; without them, users are drawn from the log, with their whole histories.
        count: Number of users.
        store: Folder of the event store that the model was trained on; None is the folder that it had then.
        progress: Shows how many examples are made; None shows nothing.

    Raises:
        InputError: if the checkpoint or the store is missing or damaged, or the results are of another log.
    """
    model, log = load_with_store(ckpt, store=store)
    log.finish_check()
    maker = _Maker(model, log, results)
    rows = maker.drawn(count)
    drawn = (progress or Progress()).each("examples", rows, "users")
    return Examples(tuple(maker.example(int(row)) for row in drawn), maker.method, maker.titles)


class _Maker:
    """Makes examples from a model and its log."""

    def __init__(self, model: Recommender, store: EventStore, results: Results | None) -> None:
        self.model, self.store = model, store
        self.users = BulkUsers(store, model, own=True, part_users=1 << 14)
        self.columns = ItemColumns(store.item_columns, store.item_vocabulary)
        self.titles = self.columns.title_column
        self.results = results
        settings = {} if results is None else results.header.settings
        self.options = RecommendOptions(min(TOP_K, store.num_items), bool(settings.get("filter_seen", True)))
        self.method: Method | None = None
        if isinstance(model, SequentialRecommender):
            self.method = method_for(int(model.hparams["max_length"]))

    def drawn(self, count: int) -> Int64:
        """Return rows (count,) of users in the store, all with a history."""
        rng = np.random.default_rng(0)
        lengths = np.diff(np.asarray(self.store.offsets))
        known = np.flatnonzero(lengths)
        if self.results is not None:
            with_history = self.results.frame.filter(self.results.frame["history_length"] > 0)["user_id"].unique()
            found = self.store.user_vocabulary.lookup_series(with_history.sort())
            if not (found > 0).any():
                raise InputError(f"{self.results.name} has none of the users of {self.store.directory}; test it again")
            known = found[found > 0] - 1
        return np.sort(rng.choice(known, min(count, len(known)), replace=False))

    def example(self, row: int) -> Example:
        """Return the example of a user of the store."""
        begin, end = (int(place) for place in self.store.offsets[row : row + 2])
        user = self.store.user_vocabulary.external_ids(np.array([row + 1]))[0]
        targets: list[dict[str, Any]] = []
        if self.results is not None:
            targets = self.results.frame.filter(self.results.frame["user_id"] == user).sort("timestamp").to_dicts()
            end = min(end, begin + targets[0]["history_length"])
        held_out = self.store.item_vocabulary.lookup([each["item_id"] for each in targets]) if targets else ()
        block, _ = self.users.block(np.array([row]), np.array([end - begin]))
        at = None
        if self.model.reads_request_time and self.store.timestamps is not None:
            at = targets[0]["timestamp"] if targets else int(self.store.timestamps[end - 1])
            block = block.asked_at([at])
        best = recommend_block(self.model, block, self.options, batch_size=1)
        pairs = [(int(i), float(s)) for i, s in zip(best.item_ids[0], best.scores[0], strict=True) if i > 0]
        newest = np.asarray(self.store.item_ids[max(begin, end - SHOWN_EVENTS) : end]).astype(np.int64)
        shares: Sequence[float | None] = [None] * len(newest)
        if isinstance(self.model, SequentialRecommender) and self.method and pairs:
            ((_, batch),) = block.batches(int(self.model.hparams["max_length"]), batch_size=1)
            explained = self.model.explain(batch.history, pairs[0][0], method=self.method, user=row + 1, at=at)
            found = explained.contributions.tolist()
            shares = ([None] * len(newest) + found)[-len(newest) :]
        names = self._names([*newest.tolist(), *(item for item, _ in pairs), *held_out])
        return Example(
            user=shortened(str(user)),
            length=end - begin,
            events=tuple(Event(names[item], share) for item, share in zip(newest.tolist(), shares, strict=True)),
            targets=tuple((names[int(item)], _rank(each)) for item, each in zip(held_out, targets, strict=True))[
                :SHOWN_TARGETS
            ],
            recommended=tuple((names[item], score, item in held_out) for item, score in pairs),
        )

    def _names(self, item_ids: Sequence[int]) -> dict[int, str]:
        """Return what people call items, by internal id: the title and the log's id, or the id alone."""
        ids = np.unique(np.array(item_ids, np.int64))
        external = self.store.item_vocabulary.external_ids(ids)
        names = (shortened(str(each)) for each in external)
        titled = zip(ids.tolist(), names, self.columns.titles(ids), strict=True)
        return {item: name if title is None else f"{title} ({name})" for item, name, title in titled}


def _rank(target: dict[str, Any]) -> str:
    first, last = target["better"] + 1, target["better"] + target["tied"] + 1
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"
