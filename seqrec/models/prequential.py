"""Judge each target by itself, from all events before it. B rows, T targets, L events, D width."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol as TypingProtocol

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.evaluation.protocols import Protocol, TrainingCounts
from seqrec.types import HeldOutItems, History, JudgedTargets, RaggedItems, SequenceBatch, TargetRanks

# Events of the prefixes that are held at a time, padding included.
HELD_EVENTS = 1 << 20


class JudgedModel(TypingProtocol):
    """The part of a recommender that judging uses."""

    protocol: Protocol

    def last_states(self, batch: SequenceBatch) -> Tensor:
        """Return the (B, D) states after each row's newest event."""

    def states_before_targets(self, batch: SequenceBatch) -> Tensor:
        """Return the (T, D) states before each target of a prequential batch."""


def judge_batch(
    model: JudgedModel, batch: SequenceBatch, scorer: Scorer, item_counts: TrainingCounts | None = None
) -> JudgedTargets:
    """Rank a batch's held-out items by the model's protocol: from the whole history, or each from the events before it
    if they have positions.

    Raises:
        InputError: if the protocol's `judge` refuses the batch.
    """
    held_out = batch.held_out
    if held_out is None or held_out.positions is None:
        return model.protocol.judge(model.last_states(batch), batch, scorer, item_counts)
    states = model.states_before_targets(batch)
    prefixes = prefix_batches(batch, None)
    parts = [model.protocol.judge(states[part], prefix, scorer, item_counts) for part, prefix in prefixes]
    ranks = TargetRanks(*(torch.cat([getattr(part.ranks, name) for part in parts]) for name in ("better", "tied")))
    first = held_out.offsets[:-1]
    return JudgedTargets(
        user_ids=batch.user_ids,
        history_lengths=held_out.positions[first],
        rows=held_out.rows,
        item_ids=held_out.item_ids,
        ranks=ranks,
        repeated=torch.cat([part.repeated for part in parts]),
        timestamps=held_out.timestamps,
    )


def prefix_batches(batch: SequenceBatch, max_length: int | None) -> Iterator[tuple[slice, SequenceBatch]]:
    """Yield parts of a prequential batch's targets, each target with its user's events before it as a row.

    Args:
        batch: Whole histories, whose held-out items have positions.
        max_length: Events of a row's history at most, the newest; None is all. Seen events are all of them.

    Yields:
        The places of the targets in the batch, and the rows with one held-out item each.
    """
    held_out, history = batch.held_out, batch.history
    assert held_out is not None
    assert held_out.positions is not None
    rows, positions, requests = held_out.rows, held_out.positions, batch.request_times
    size = max(1, HELD_EVENTS // int(positions.max()))
    for begin in range(0, len(rows), size):
        part = slice(begin, begin + size)
        own, known = rows[part], positions[part]
        seen = _newest_before(history.item_ids, own, known, known)
        lengths, items = known, seen
        if max_length is not None:
            lengths = known.clamp_max(max_length)
            items = _newest_before(history.item_ids, own, known, lengths)
        times = None if history.timestamps is None else _newest_before(history.timestamps, own, known, lengths)
        features = {name: _newest_before(x, own, known, lengths) for name, x in (history.features or {}).items()}
        one_each = torch.arange(len(own) + 1, device=rows.device)
        prefix = replace(
            batch,
            history=History(items, lengths, times, features=features or None),
            targets=None,
            user_ids=batch.user_ids[own],
            seen_events=RaggedItems(seen[seen > 0], F.pad(known.cumsum(0), (1, 0))),
            held_out=HeldOutItems(
                held_out.item_ids[part], one_each, None if held_out.timestamps is None else held_out.timestamps[part]
            ),
            request_times=None,
        )
        yield part, prefix if requests is None else prefix.asked_at(requests[own, known - 1])


def _newest_before(column: Tensor, rows: Tensor, stops: Tensor, lengths: Tensor) -> Tensor:
    """Return (T, L) the newest `lengths` (T,) events of `rows` (T,) of a column (B, ..) before `stops` (T,), padded
    with 0; (T, L, W) of a column of vectors.
    """
    steps = torch.arange(int(lengths.max()), device=column.device)
    events = (stops - lengths).unsqueeze(1) + steps
    here = steps < lengths.unsqueeze(1)
    found: Tensor = column[rows.unsqueeze(1), events.where(here, 0)]
    return found.where(here if found.dim() == 2 else here.unsqueeze(-1), 0)
