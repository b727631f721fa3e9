"""A search among candidates is the full ranking without the other items, for every kind of scorer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqrec.catalogue.candidates import Candidates
from seqrec.catalogue.recommend import RecommendOptions, best_items_of_each
from seqrec.catalogue.scorer import Scorer
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError
from seqrec.models.baselines.neighbors import NeighborScorer
from seqrec.types import Recommendations, SeenItems

VOCABULARY = Vocabulary(["apple", "bread", "cheese", "dill"])


def of_neighbours(states: Tensor, vectors: Tensor) -> tuple[Scorer, Tensor]:
    items = len(vectors)
    generator = torch.Generator().manual_seed(items)
    neighbours = torch.randint(0, items, (items, 3), generator=generator)
    neighbours[0] = 0
    weights = torch.randint(0, 4, (items, 3), generator=generator).float()
    histories = (states.abs().sum(1).long() % (items - 1) + 1).unsqueeze(1)
    return NeighborScorer(neighbours, weights, vectors[:, 0].double()), histories


# Small integers of both signs: products and sums are exact, with many ties.
SCORERS: dict[str, Callable[[Tensor, Tensor], tuple[Scorer, Tensor]]] = {
    "compiled": lambda states, vectors: (Scorer(vectors), states),
    "float64": lambda states, vectors: (Scorer(vectors.double(), score_budget=40), states.double()),
    "bfloat16": lambda states, vectors: (Scorer(vectors.bfloat16()), states),
    "neighbours": of_neighbours,
}


def random_sets(generator: torch.Generator, users: int, items: int, share: float) -> SeenItems:
    rows, columns = (torch.rand((users, items), generator=generator) < share).nonzero().T
    return SeenItems.from_events(rows, columns + 1, users)


def filtered(every: Recommendations, allowed: Tensor, k: int) -> tuple[list[list[float]], list[list[int]]]:
    """The first k of a full ranking that are allowed, and what stands for missing ones."""
    scores, item_ids = [], []
    for some, ids in zip(every.scores.tolist(), every.item_ids.tolist(), strict=True):
        kept = [(s, i) for s, i in zip(some, ids, strict=True) if i in set(allowed.tolist())][:k]
        kept += [(-torch.inf, 0)] * (k - len(kept))
        scores.append([s for s, _ in kept])
        item_ids.append([i for _, i in kept])
    return scores, item_ids


@pytest.mark.parametrize("kind", SCORERS)
@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    users=st.integers(0, 9),
    items=st.integers(2, 90),
    share=st.sampled_from([0.01, 0.1, 0.24, 0.26, 0.7, 1.0]),
    excludes=st.sampled_from([None, 0.3, 1.0]),
    blocks=st.booleans(),
    data=st.data(),
)
def test_candidates_are_ranked_as_among_all_items(
    kind: str, users: int, items: int, share: float, excludes: float | None, blocks: bool, data: st.DataObject
):
    k = data.draw(st.integers(1, items))
    generator = torch.Generator().manual_seed(users + 100 * items)
    states, vectors = (torch.randint(-1, 2, (n, 5), generator=generator).float() for n in (users, items + 1))
    if kind in ("float64", "bfloat16"):
        # The order of equal scores is torch's there, so there are none.
        vectors = torch.cat([vectors, torch.linspace(-0.5, 0.5, items + 1).unsqueeze(1)], 1)
        states = torch.cat([states, torch.ones(users, 1)], 1)
    scorer, states = SCORERS[kind](states, vectors)
    allowed = (torch.rand(items, generator=generator) < share).nonzero().flatten() + 1
    exclude = None if excludes is None else random_sets(generator, users, items, excludes)
    blocked = (torch.rand(items, generator=generator) < 0.2).nonzero().flatten() + 1 if blocks else None
    user_ids = torch.arange(users)
    every = scorer.top_k(states, items, user_ids, exclude=exclude, blocked=blocked)
    found = scorer.top_k(states, k, user_ids, exclude=exclude, blocked=blocked, allowed=allowed)
    scores, item_ids = filtered(every, allowed, k)
    assert found.user_ids.equal(user_ids)
    if users:
        assert found.scores.tolist() == scores
    if kind != "neighbours" and users:
        assert found.item_ids.tolist() == item_ids
    # A neighbourhood has ties, which torch orders as it likes; the scores above are the same.
    assert (torch.isin(found.item_ids, allowed) | (found.item_ids == 0)).all()
    assert found.item_ids.shape == (users, k)


def test_cosine_scores_of_few_candidates_differ_in_rounding_only():
    generator = torch.Generator().manual_seed(0)
    table, states = torch.randn(400, 9, generator=generator), torch.randn(7, 9, generator=generator)
    scorer, users = Scorer(table, unit_columns=8), torch.arange(7)
    every = scorer.top_k(states, 399, users)
    for count in (5, 99, 100, 300):
        allowed = (torch.randperm(399, generator=generator)[:count] + 1).sort().values
        found = scorer.top_k(states, 5, users, allowed=allowed)
        scores, item_ids = filtered(every, allowed, 5)
        assert found.item_ids.tolist() == item_ids
        torch.testing.assert_close(found.scores, torch.tensor(scores), rtol=1e-5, atol=1e-5)


def test_users_may_each_have_their_own_candidates():
    generator = torch.Generator().manual_seed(0)
    table, states = torch.randn(200, 8, generator=generator), torch.randn(6, 8, generator=generator)
    scorer, users = Scorer(table), torch.arange(6)
    some, few = torch.arange(1, 150), torch.tensor([4, 9, 77])
    seen = [
        np.array([5, 9]),
        np.array([], np.int64),
        np.array([77]),
        np.array([1]),
        np.array([2]),
        np.array([4, 9, 77]),
    ]
    options = [
        RecommendOptions(5, True, None, None, some),
        RecommendOptions(2, True),
        RecommendOptions(4, True, torch.tensor([4]), None, few),
        RecommendOptions(3, False, None, None, some),
        RecommendOptions(1, True, torch.arange(1, 100)),
        RecommendOptions(2, True, None, None, few),
    ]
    together = best_items_of_each(scorer, states, users, seen, options)
    assert together.user_ids.equal(users)
    for row, own in enumerate(options):
        alone = best_items_of_each(scorer, states[row : row + 1], users[row : row + 1], seen[row : row + 1], [own])
        k = own.top_k
        assert together.item_ids[row, :k].equal(alone.item_ids[0])
        assert together.scores[row, :k].equal(alone.scores[0])
    assert sorted(together.item_ids[2].tolist()) == [0, 0, 0, 0, 9]
    assert not together.item_ids[5].any()


def test_candidates_have_their_items_once_in_order():
    assert Candidates([3, 1, 3], 4).item_ids.tolist() == [1, 3]
    assert Candidates.of_mask([False, True, False, False, True]).item_ids.tolist() == [1, 4]
    assert Candidates.of_mask(torch.tensor([False, True])).item_ids.tolist() == [1]
    chosen = Candidates.of_items(["cheese", "apple"], VOCABULARY)
    assert chosen.item_ids.tolist() == [1, 3]
    assert (len(chosen), repr(chosen)) == (2, "Candidates(2 of 4 items)")
    assert (chosen & Candidates([3, 4], 4)).item_ids.tolist() == [3]


ITEM_TABLE = polars.DataFrame({"item_id": ["apple", "bread"], "kind": ["fruit", "loaf"]})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Candidates([], 4), "item_ids is empty, so nothing would be left"),
        (lambda: Candidates([0, 1], 4), r"item_ids has 0, and internal ids are 1\.\.num_items=4"),
        (lambda: Candidates([1, 5], 4), r"item_ids has 5, and internal ids are 1\.\.num_items=4"),
        (lambda: Candidates.of_items([], VOCABULARY), "items has no item id, so nothing would be left"),
        (
            lambda: Candidates.of_items("apple", VOCABULARY),
            r"items='apple' must be a collection of item ids, as in \['ap",
        ),
        (lambda: Candidates.of_items(7, VOCABULARY), "items=7 must be a collection of item ids"),
        (lambda: Candidates.of_items([True], VOCABULARY), "items: external id True must be an integer or a string"),
        (
            lambda: Candidates.of_items(["apple", "beer", "chips"], VOCABULARY),
            r"items has 'beer', which is not in the catalogue of 4 items; leave out such ids \(2 of 3\)",
        ),
        (lambda: Candidates.of_mask([True, False]), r"mask of shape \(2,\) and type bool must be bool .*, False at 0"),
        (lambda: Candidates.of_mask([0, 1]), r"mask of shape \(2,\) and type int64 must be bool"),
        (lambda: Candidates.of_mask([False, False]), "mask is True for none of 1 items"),
        (lambda: Candidates([1], 4) & Candidates([2], 4), r"Candidates\(1 of 4 items\) and .* have no item in common"),
        (
            lambda: Candidates([1], 4) & Candidates([1], 5),
            "candidates is of a catalogue of 5 items, but the model has 4",
        ),
        (
            lambda: Candidates.where("kind = 'fish'", ITEM_TABLE, VOCABULARY),
            r"condition=\"kind = 'fish'\" leaves none of the 4 items; kind is never 'fish'",
        ),
        (
            lambda: Candidates.where("sort = 'fruit'", ITEM_TABLE, VOCABULARY, argument="where"),
            r"where=\"sort = 'fruit'\": it has the column 'sort', which items do not have; columns: kind$",
        ),
        (
            lambda: Candidates.where("kind = 1", 5, VOCABULARY),
            "items=5 must be an event store, a polars frame, or a file",
        ),
    ],
)
def test_bad_candidates_are_refused(make: Callable[[], Any], message: str):
    with pytest.raises(InputError, match=message):
        make()


def test_candidates_of_another_catalogue_are_refused():
    same, other = Vocabulary(["apple", "bread", "cheese", "dill"]), Vocabulary(["a", "b", "c", "d"])
    chosen = Candidates.of_items(["apple"], VOCABULARY)
    chosen.check_catalogue(4, same)
    with pytest.raises(InputError, match="candidates is of a catalogue with other item ids than the model's 4"):
        chosen.check_catalogue(4, other)
    with pytest.raises(InputError, match="candidates is of a catalogue with other item ids"):
        chosen.check_catalogue(4, Vocabulary(np.array([1, 2, 3, 4])))
    Candidates([1], 4).check_catalogue(4, other)
