"""The best items: every backend gives the lists of a sort of all scores, ties included."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec.errors import InputError
from seqrec.ops.best_items import MOST_ITEMS, best_items
from seqrec.types import SeenItems


def excluded_items(generator: torch.Generator, users: int, rows: int, share: float) -> SeenItems:
    places, items = (torch.rand((users, rows), generator=generator) < share).nonzero().T
    return SeenItems.from_events(places, items, users)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    users=st.integers(0, 70),
    items=st.integers(1, 700),
    width=st.integers(1, 40),
    share=st.sampled_from([None, 0.0, 0.3, 0.99]),
    blocks=st.booleans(),
    allows=st.sampled_from([None, 0.0, 0.02, 0.5, 1.0]),
    data=st.data(),
)
def test_lists_are_those_of_a_sort(
    cpp: None,
    users: int,
    items: int,
    width: int,
    share: float | None,
    blocks: bool,
    allows: float | None,
    data: st.DataObject,
):
    k = data.draw(st.integers(1, items))
    generator = torch.Generator().manual_seed(users + items)
    # Small integers: sums are exact, and many scores are equal.
    states, vectors = (torch.randint(-1, 2, (n, width), generator=generator).float() for n in (users, items + 1))
    excluded = None if share is None else excluded_items(generator, users, items + 1, share)
    blocked = (torch.rand(items + 1, generator=generator) < 0.2).nonzero().flatten() if blocks else None
    chosen = torch.rand(items, generator=generator) < (allows or 0)
    allowed = None if allows is None else chosen.nonzero().flatten() + 1
    found, expected = (
        best_items(states, vectors, k, excluded=excluded, blocked=blocked, allowed=allowed, backend=backend)
        for backend in ("cpp", "reference")
    )
    assert found[0].equal(expected[0])
    assert found[1].equal(expected[1])


@pytest.mark.parametrize("k", [1, 100, 2999])
def test_every_variant_that_runs_here_agrees(variant: None, k: int):
    generator = torch.Generator().manual_seed(k)
    states, vectors = torch.randn(9, 37, generator=generator), torch.randn(3000, 37, generator=generator)
    (scores, item_ids), (expected, _) = (best_items(states, vectors, k, backend=name) for name in ("cpp", "reference"))
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores, (vectors[item_ids] @ states.unsqueeze(2)).squeeze(2), rtol=1e-4, atol=1e-4)


def test_neither_threads_nor_other_users_change_a_bit(cpp: None, monkeypatch: pytest.MonkeyPatch):
    states, vectors = torch.randn(75, 20), torch.randn(900, 20)
    whole = best_items(states, vectors, 30, backend="cpp")
    for threads in (2, 3, 40):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        again = best_items(states, vectors, 30, backend="cpp")
        assert all(one.equal(other) for one, other in zip(again, whole, strict=True))
    alone = [best_items(state.unsqueeze(0), vectors, 30, backend="cpp") for state in states]
    for place, part in enumerate(whole):
        assert torch.cat([each[place] for each in alone]).equal(part)


def test_scores_of_allowed_items_have_the_bits_of_a_search_of_all(variant: None):
    states, vectors = torch.randn(35, 41), torch.randn(700, 41)
    scores, item_ids = best_items(states, vectors, 699, backend="cpp")
    for count in (1, 7, 255, 256, 600):
        allowed = (torch.randperm(699)[:count] + 1).sort().values
        found, found_ids = best_items(states, vectors, count, allowed=allowed, backend="cpp")
        kept = torch.isin(item_ids, allowed)
        assert found.equal(scores[kept].view(35, count))
        assert found_ids.equal(item_ids[kept].view(35, count))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_what_is_no_number_or_minus_infinity_is_left_out(backend: str, request: pytest.FixtureRequest):
    if backend == "cpp":
        request.getfixturevalue("cpp")
    vectors = torch.tensor([[9.0], [1.0], [math.nan], [math.inf], [-math.inf], [-0.0], [0.0]])
    scores, item_ids = best_items(torch.tensor([[1.0], [math.nan]]), vectors, 6, backend=backend)
    assert item_ids.tolist() == [[3, 1, 5, 6, 0, 0], [0] * 6]
    assert scores[0].tolist() == [math.inf, 1, 0, 0, -math.inf, -math.inf]


def test_a_long_list_is_refused(cpp: None):
    with pytest.raises(InputError, match=r"backend='cpp' has no more than 4,096 items per user"):
        best_items(torch.ones(1, 2), torch.ones(MOST_ITEMS + 9, 2), MOST_ITEMS + 1, backend="cpp")
    _, item_ids = best_items(torch.ones(1, 2), torch.ones(MOST_ITEMS + 9, 2), MOST_ITEMS + 1)
    assert item_ids[0].equal(torch.arange(1, MOST_ITEMS + 2))
