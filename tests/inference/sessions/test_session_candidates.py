"""Sessions recommend among candidates, each request among its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars
import pytest

from seqrec.catalogue.candidates import Candidates
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import BatchEntryError
from seqrec.inference.sessions import Request, SessionRecommender
from seqrec.models import SequentialRecommender

Build = Callable[..., SequentialRecommender]
ITEMS = polars.DataFrame({"item_id": range(10, 301, 10), "size": [float(number % 5) for number in range(30)]})


@pytest.fixture
def sessions(build: Build) -> SessionRecommender:
    found = SessionRecommender(build())
    for user, items in {"ada": [10, 20, 50], "bob": [300], "eve": [70, 80]}.items():
        for item in items:
            found.observe(user, item)
    return found


def test_a_request_gets_the_first_of_its_candidates(sessions: SessionRecommender):
    large = Candidates.where("size >= 3", ITEMS, sessions.model.item_vocabulary)
    allowed = set(ITEMS.filter(polars.col("size") >= 3)["item_id"])
    for filter_seen in (True, False):
        every = sessions.recommend("ada", 27, filter_seen=filter_seen)
        expected = [scored for scored in every if scored.item in allowed]
        assert sessions.recommend("ada", 4, filter_seen=filter_seen, candidates=large) == expected[:4]
    found = sessions.recommend("ada", 30, candidates=large)
    assert {scored.item for scored in found} == allowed - {50}
    assert [scored.item for scored in sessions.recommend("ada", 3, candidates=[50, "60"])] == [60]
    assert sessions.recommend("ada", 3, candidates=[50]) == []


def test_requests_of_a_batch_have_their_own_candidates(sessions: SessionRecommender):
    large = Candidates.where("size >= 3", ITEMS, sessions.model.item_vocabulary)
    requests = [
        Request("ada", 4, candidates=large),
        Request("bob", 6),
        Request("eve", 2, candidates=[70, 80, 90]),
        Request("bob", 5, False, candidates=large),
        Request("ada", 3, block=[60, 90], candidates=[60, 90, 100]),
    ]
    together = sessions.recommend_many(requests)
    assert together == [sessions.recommend_many([request])[0] for request in requests]
    assert [scored.item for scored in together[2]] == [90]
    assert [scored.item for scored in together[4]] == [100]


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([10, 11], "candidates has 11, which is not in the catalogue of 30 items"),
        ([], "candidates has no item id"),
        ("10", "candidates='10' must be a collection of item ids"),
        ([None], "candidates item=None must be a whole number of 64 bits or a text"),
        (["\ud800"], "candidates item=.* must be a whole number of 64 bits or a text of Unicode characters"),
        (Candidates([1], 5), "candidates is of a catalogue of 5 items, but the model has 30"),
        (
            Candidates.of_items([1], Vocabulary(np.arange(30))),
            "candidates is of a catalogue with other item",
        ),
    ],
)
def test_bad_candidates_are_refused_with_their_place(sessions: SessionRecommender, candidates: Any, message: str):
    requests = [Request("ada"), Request("bob", candidates=candidates)]
    with pytest.raises(BatchEntryError, match=rf"requests\[1\]: {message}") as caught:
        sessions.recommend_many(requests)
    assert caught.value.index == 1
