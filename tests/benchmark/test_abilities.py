from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from seqrec.benchmark.abilities import (
    ABILITIES,
    CANDIDATES,
    COUNTED,
    MARKER,
    MARKERS,
    NUM_ITEMS,
    PAIRS,
    QUESTION,
    QUESTIONS,
    SELECTED,
    Asked,
)

LAG = 40


def drawn(name: str, lag: int = LAG, rows: int = 16) -> Asked:
    return ABILITIES[name].draw(rows, lag, np.random.default_rng(0))


def events_asked(asked: Asked) -> list[tuple[int, int]]:
    return [tuple(event) for event in asked.targets.nonzero().tolist()]


@pytest.mark.parametrize("name", list(ABILITIES))
@pytest.mark.parametrize("lag", [1, 10, 300])
def test_a_model_that_knows_the_place_answers_and_the_place_is_older(name: str, lag: int):
    items, targets, places = drawn(name, lag)
    assert ((items >= 1) & (items <= NUM_ITEMS)).all()
    asked = targets > 0
    assert torch.equal(asked, places >= 0)
    assert asked.any()
    assert torch.equal(items.gather(1, places.clamp_min(0))[asked], targets[asked])
    assert (places < torch.arange(items.shape[1]))[asked].all()


def test_delay_asks_for_the_event_so_many_places_back():
    items, targets, _ = drawn("delay")
    assert torch.equal(targets[:, LAG:], items[:, :-LAG])
    assert not targets[:, :LAG].any()


def test_recall_asks_for_what_followed_the_only_earlier_occurrence():
    asked = drawn("recall")
    events = events_asked(asked)
    assert len(events) == 16 * PAIRS
    few = ABILITIES["recall"].draw(3, LAG, np.random.default_rng(0), kept=2)
    assert few.items.shape == (3, LAG + 8)
    assert len(events_asked(few)) == 6
    for row, event in events:
        before = (asked.items[row, :event] == asked.items[row, event]).nonzero().flatten().tolist()
        assert len(before) == 1
        assert asked.items[row, before[0] + 1] == asked.targets[row, event]
        assert event - before[0] > LAG


def test_selection_asks_for_what_followed_each_marker():
    asked = drawn("selection")
    markers = set(MARKERS.tolist())
    for row in range(16):
        items = asked.items[row].tolist()
        questions = [event for event, target in enumerate(asked.targets[row].tolist()) if target]
        assert sorted(items[event] for event in questions) == sorted(markers)
        behind = {item: items[place + 1] for place, item in enumerate(items[: LAG + 2 * SELECTED]) if item in markers}
        assert {items[event]: int(asked.targets[row, event]) for event in questions} == behind


def test_count_asks_for_the_item_that_was_marked_most_often_and_never_for_one_of_several():
    asked = drawn("count")
    answered = 0
    for row in range(16):
        items, counts = asked.items[row].tolist(), {}
        assert items.count(MARKER) == COUNTED
        assert items.count(QUESTION) == QUESTIONS
        for event, item in enumerate(items):
            if item == MARKER:
                counts[items[event + 1]] = counts.get(items[event + 1], 0) + 1
            elif item == QUESTION:
                most = [candidate for candidate, count in counts.items() if count == max(counts.values())]
                assert int(asked.targets[row, event]) == (most[0] if len(most) == 1 else 0)
                answered += len(most) == 1
        assert len(counts) <= CANDIDATES
    assert answered > 16


def test_histories_are_drawn_anew_but_repeat_with_the_generator():
    def equal(one: Tensor, other: Tensor) -> bool:
        return torch.equal(one, other)

    first, again = drawn("recall"), drawn("recall")
    assert equal(first.items, again.items)
    assert not equal(first.items[0], first.items[1])
