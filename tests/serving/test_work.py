from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from served_models import ITEMS, NUM_ITEMS, best_of, model

from seqrec.errors import (
    BatchEntryError,
    InputError,
    LateEventError,
    SessionStoreError,
    UnknownItemError,
    UnknownUserError,
)
from seqrec.inference.sessions import Event, InMemoryStore, KeptEvents, Request, SessionRecommender
from seqrec.serving.history_work import HistoryWork
from seqrec.serving.metrics import Metrics
from seqrec.serving.work import (
    Count,
    Explain,
    Forget,
    Observe,
    RecommendToHistory,
    SessionWork,
    Sizes,
    done_together,
)


def outcomes(work, batch: Sequence) -> list:
    """What came of each piece of a batch, each exactly once."""
    found = [pair for group in work(batch) for pair in group]
    assert sorted(place for place, _ in found) == list(range(len(batch)))
    return [outcome for _, outcome in sorted(found, key=lambda pair: pair[0])]


@pytest.fixture
def recommender() -> SessionRecommender:
    return SessionRecommender(model())


@pytest.fixture
def work(recommender: SessionRecommender) -> SessionWork:
    return SessionWork(recommender, Metrics())


def test_bad_entries_fail_alone_with_an_error_of_their_own():
    calls = []

    def check(entries: Sequence[int]) -> None:
        if min(entries) < 0:
            raise InputError("bad")

    def do(entries: Sequence[int]) -> list[int]:
        calls.append(list(entries))
        for index, entry in enumerate(entries):
            if entry < 0:
                raise BatchEntryError(f"entry {index} is {entry}", index)
        return [10 * entry for entry in entries]

    found = done_together(do, [[1, 2], [3, -4], [5], [-6], [7, 8, 9]], check)
    assert found[0] == [10, 20]
    assert found[2] == [50]
    assert found[4] == [70, 80, 90]
    # Counted in their own piece of work, not in the batch.
    assert [str(found[place]) for place in (1, 3)] == ["entry 1 is -4", "entry 0 is -6"]
    assert [call for call in calls if min(call) > 0] == [[1, 2, 5, 7, 8, 9]]


@pytest.mark.parametrize("count", [2, 64])
@pytest.mark.parametrize("checked", [True, False], ids=["found by the check", "found by the sessions"])
def test_bad_pieces_cost_their_own_share(count: int, checked: bool):
    done = 0

    def check(entries: Sequence[int]) -> None:
        if checked and -1 in entries:
            raise InputError("bad")

    def do(entries: Sequence[int]) -> Sequence[int]:
        nonlocal done
        done += len(entries)
        if -1 in entries:
            raise BatchEntryError("bad", list(entries).index(-1))
        return entries

    works = [[1] * 99 + [-1 if place % 2 else 1] for place in range(count)]
    found = done_together(do, works, check)
    assert [isinstance(each, BatchEntryError) for each in found] == [bool(place % 2) for place in range(count)]
    # The first try, and each piece once more; without a check each piece takes part in halves of halves.
    tries = 2 if checked else 1 + count.bit_length() - 1
    assert done <= tries * 100 * count


def test_users_without_a_session_do_not_make_the_others_wait(recommender: SessionRecommender):
    recommender.observe_many([Event(user, 10) for user in range(8)])
    batch = [Request(user, 3) for user in range(16)]
    calls = []
    recommend = recommender.recommend_many
    recommender.recommend_many = lambda requests: calls.append(len(requests)) or recommend(requests)  # type: ignore
    found = outcomes(SessionWork(recommender, Metrics()), batch)
    assert [isinstance(each, UnknownUserError) for each in found] == [False] * 8 + [True] * 8
    # All of them, those with a session, each of the others.
    assert sorted(calls) == [1] * 8 + [8, 16]
    assert str(found[9]) == "requests[0]: no event of user=9 is known; observe one first"


def test_a_failure_that_is_nobodys_own_fails_all_that_is_left():
    def do(entries: Sequence[int]) -> list[int]:
        if -1 in entries:
            raise BatchEntryError("bad", list(entries).index(-1))
        raise SessionStoreError("out of reach")

    assert [str(each) for each in done_together(do, [[1], [-1], [2]], lambda entries: None)] == [
        "out of reach",
        "bad",
        "out of reach",
    ]


def test_writes_of_a_batch_keep_their_order(work: SessionWork, recommender: SessionRecommender):
    reference = SessionRecommender(model())
    batch = [
        Observe([Event("u", 10)]),
        Forget("u"),
        Observe([Event("u", 20), Event("v", 30)]),
        Observe([Event("u", 40), Event("u", 31)]),  # item 31 is unknown, so neither is kept
        Observe([Event("u", 50)]),
        Forget("nobody"),
    ]
    found = outcomes(work, batch)
    assert found[1] is True
    assert isinstance(found[3], UnknownItemError)
    assert str(found[3]).startswith("events[1]: item=31 of user='u'")
    assert found[5] is False
    reference.observe_many([Event("u", 20), Event("v", 30), Event("u", 50)])
    for user in ("u", "v"):
        assert recommender.events_seen(user) == reference.events_seen(user)
        assert best_of(recommender, user) == best_of(reference, user)


def test_an_event_that_came_late_fails_alone(work: SessionWork, recommender: SessionRecommender):
    batch = [Observe([Event("u", 10, time)]) for time in (5, 3, 6)]
    found = outcomes(work, batch)
    assert isinstance(found[1], LateEventError)
    assert recommender.events_seen("u") == 2
    # Also one that would not have been late in another order.
    batch = [Observe([Event("v", 30, 7)]), Observe([Event("u", 20, 9)]), Observe([Event("u", 30, 8)])]
    assert [isinstance(each, LateEventError) for each in outcomes(work, batch)] == [False, False, True]
    assert (recommender.events_seen("u"), recommender.events_seen("v")) == (3, 1)


def test_a_damaged_session_fails_alone():
    store = InMemoryStore()
    recommender = SessionRecommender(model(), store)
    work = SessionWork(recommender, Metrics())
    outcomes(work, [Observe([Event(user, 10)]) for user in ("a", "b", "c")])
    (row,) = store.get_many([b"b"])
    store.put_many([(b"b", row[:-1] + b"?")])
    batch = [Observe([Event("c", 30), Event("a", 20)]), Observe([Event("a", 10), Event("b", 20)]), Count()]
    found = outcomes(work, [*batch, *(Request(user, 3) for user in ("a", "b", "c"))])
    assert [isinstance(each, InputError) for each in found] == [False, True, False, False, True, False]
    assert recommender.events_seen("a") == 2


def test_lists_of_different_length_in_one_batch(work: SessionWork, recommender: SessionRecommender):
    recommender.observe_many([Event("u", 30), Event("v", 50)])
    block = best_of(recommender, "u")[:3]
    batch = [
        Request("u", 2),
        Request("v", NUM_ITEMS),
        Request("u", 4, block=block),
        Request("u", NUM_ITEMS, filter_seen=False, block=[str(item) for item in ITEMS[1:]]),
    ]
    found = [[scored.item for scored in each] for each in outcomes(work, batch)]
    assert found[0] == best_of(recommender, "u", 2)
    assert found[1] == best_of(recommender, "v", NUM_ITEMS)
    assert len(found[1]) == NUM_ITEMS - 1
    assert found[2] == best_of(recommender, "u", 7)[3:]
    assert found[3] == [ITEMS[0]]


def test_histories_in_one_batch_are_answered_as_alone():
    made = model()
    work = HistoryWork(made, Metrics())
    with torch.random.fork_rng():
        torch.manual_seed(1)
        # Some longer than the 30 events that the model was trained with.
        lengths = (1, 3, 30, 31, 80)
        histories = [[ITEMS[int(row)] for row in torch.randint(NUM_ITEMS, (size,))] for size in lengths]
    batch = [RecommendToHistory(history, 5, size % 2 == 0) for history, size in zip(histories, lengths, strict=True)]
    batch.insert(2, RecommendToHistory([10, 11]))
    found = outcomes(work, batch)
    assert isinstance(found[2], UnknownItemError)
    assert str(found[2]).startswith("history[1]: item=11 is not among the 40 items")
    for place, each in enumerate(batch):
        if place == 2:
            continue
        (alone,) = outcomes(work, [each])
        assert [scored.item for scored in found[place]] == [scored.item for scored in alone]
        if each.filter_seen:
            assert {scored.item for scored in alone}.isdisjoint(each.history)
    # What the model was not trained to see is seen all the same where it must not be recommended.
    newest = RecommendToHistory(histories[-1][-30:], 5, filter_seen=False)
    (expected,) = outcomes(work, [newest])
    (whole,) = outcomes(work, [newest._replace(history=histories[-1])])
    assert [scored.item for scored in whole] == [scored.item for scored in expected]


def test_work_is_as_large_as_its_events_and_the_states_it_moves():
    size_of = Sizes(row_bytes=4 << 20, max_length=300)
    assert size_of(Observe([Event("u", 10), Event("v", 10), Event("u", 20)])) == 3 + 2 * 128
    assert size_of(Request("u", block=[10, 20])) == 3 + 128
    assert size_of(RecommendToHistory([10, 20], block=[30])) == 3
    assert size_of(Count()) == size_of(Forget("u")) == 1
    # Each event is left out once. Long histories are encoded once, without the oldest events.
    for count, size in ((3, 9), (256, 256**2), (257, 257), (10_000, 300)):
        assert size_of(Explain(KeptEvents(0, [10] * count, None, ()), 10, "u")) == size
