"""Sessions recommend what the model says of the whole history."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from seqrec.data.vocabulary import Vocabulary
from seqrec.encoders import ENCODERS
from seqrec.errors import BatchEntryError, InputError, LateEventError, UnknownItemError, UnknownUserError
from seqrec.inference.sessions import (
    Event,
    ReencodedState,
    Request,
    Scored,
    SessionRecommender,
    SQLiteStore,
    StreamedState,
    UserHistory,
    user_state,
)
from seqrec.models import Markov, Popularity, Recommender
from seqrec.models.baselines.item_knn import ItemKNN

Build = Callable[..., Recommender]
FullPass = Callable[..., list[Scored]]

HISTORIES = {"ada": [10, 50, 50, 300, 70], "bob": [20], 7: [300, 10, 20, 30, 40, 50, 60, 70, 80, 90]}


def same(found: Sequence[Scored], expected: Sequence[Scored]) -> None:
    assert [each.item for each in found] == [each.item for each in expected]
    np.testing.assert_allclose([e.score for e in found], [e.score for e in expected], rtol=0, atol=1e-5)


def interleaved(histories: dict) -> list[Event]:
    """All first events, all second ones, ..; a user's events in order."""
    longest = max(map(len, histories.values()))
    return [Event(user, items[t]) for t in range(longest) for user, items in histories.items() if t < len(items)]


@pytest.mark.parametrize("name", [name for name in ENCODERS if not ENCODERS[name].bidirectional])
@pytest.mark.parametrize("durable", [False, True])
def test_sessions_say_what_the_full_pass_says(
    name: str, durable: bool, build: Build, full_pass: FullPass, tmp_path: Path
):
    model = build(name)
    with SessionRecommender(model, SQLiteStore(tmp_path / "s.db") if durable else None) as sessions:
        assert sessions.streams
        one_by_one, rest = interleaved(HISTORIES)[:6], interleaved(HISTORIES)[6:]
        for event in one_by_one:
            sessions.observe(*event)
        sessions.observe_many(rest)
        assert len(sessions) == 3
        for user, items in HISTORIES.items():
            assert sessions.events_seen(user) == len(items)
            same(sessions.recommend(user, 5), full_pass(model, items))
            same(
                sessions.recommend(user, 30, filter_seen=False),
                full_pass(model, items, 30, filter_seen=False),
            )
        requests = [Request("bob", 3), Request(7, 30), Request("ada", 4, False), Request("bob", 1)]
        found = sessions.recommend_many(requests)
        for request, best in zip(requests, found, strict=True):
            same(best, full_pass(model, HISTORIES[request.user], request.k, filter_seen=request.filter_seen))


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("SASRec", {"positions": True}, "positions=True cannot be streamed"),
        ("MambaRec", {"positions": True}, "positions=True cannot be streamed"),
        ("MoEMaTrRec", {"causal": False}, "causal=False sees newer events and cannot be streamed"),
        ("BERT4Rec", {"positions": True}, "BERT4Rec sees newer events and cannot be streamed"),
    ],
)
def test_models_that_cannot_be_streamed_encode_the_newest_events_again_and_say_so(
    name: str,
    arguments: dict[str, bool],
    reason: str,
    build: Build,
    full_pass: FullPass,
    caplog: pytest.LogCaptureFixture,
):
    model = build(name, **arguments)
    with caplog.at_level(logging.INFO, logger="seqrec"):
        sessions = SessionRecommender(model)
    assert not sessions.streams
    assert f"re-encoding up to 12 events: {reason}" in caplog.text
    long = {"eve": [10 * (1 + t % 29) for t in range(40)]}
    sessions.observe_many(interleaved({**HISTORIES, **long}))
    for user, items in HISTORIES.items():
        same(sessions.recommend(user, 5), full_pass(model, items))
    # The model sees the newest events; all of them are seen.
    same(
        sessions.recommend("eve", 9, filter_seen=False),
        full_pass(model, long["eve"][-12:], 9, filter_seen=False),
    )
    assert [each.item for each in sessions.recommend("eve", 9)] == [300]
    assert sessions.events_seen("eve") == 40


def test_a_model_that_streams_can_be_told_to_encode_again(build: Build, full_pass: FullPass):
    model = build()
    sessions = SessionRecommender(model, memory=ReencodedState(model, max_length=3))
    assert not sessions.streams
    sessions.observe_many(interleaved(HISTORIES))
    same(
        sessions.recommend(7, 30, filter_seen=False),
        full_pass(model, HISTORIES[7][-3:], 30, filter_seen=False),
    )
    with pytest.raises(InputError, match="max_length=0 must be at least 1"):
        ReencodedState(model, max_length=0)
    with pytest.raises(InputError, match="max_length=13 must be at most 12, for which the model has positions"):
        ReencodedState(build(positions=True), max_length=13)
    with pytest.raises(InputError, match=r"MambaRec cannot be streamed: positions=True cannot be streamed"):
        StreamedState(build(positions=True))


@pytest.mark.parametrize("baseline", [Popularity, Markov, ItemKNN])
def test_baselines_recommend_to_sessions(baseline: type[Recommender], full_pass: FullPass):
    model = baseline(30)
    model.item_vocabulary = Vocabulary(np.arange(10, 301, 10))
    for buffer in model.buffers():
        values = np.random.default_rng(0).integers(1, 31, buffer.shape)
        values[0] = 0
        buffer.copy_(buffer.new_tensor(values))
    sessions = SessionRecommender(model.eval())
    assert not sessions.streams
    sessions.observe_many(interleaved(HISTORIES))
    requests = [Request(user, 5) for user in HISTORIES]
    for request, best in zip(requests, sessions.recommend_many(requests), strict=True):
        same(best, full_pass(model, HISTORIES[request.user]))


def test_bad_events_are_refused_before_anything_changes(build: Build):
    sessions = SessionRecommender(build())
    sessions.observe("ada", 10, 100)
    good = [Event("ada", 20, 101), Event("new", 20)]
    lone = "half \ud800"
    for bad, error, message in (
        (Event("ada", 11), UnknownItemError, "events[2]: item=11 of user='ada' is not among the 30 items"),
        (Event("ada", "x"), UnknownItemError, "events[2]: item='x' of user='ada' is not among the 30 items"),
        (
            Event("ada", 10, 99),
            LateEventError,
            "events[2]: time=99 of user='ada' is before the user's newest",
        ),
        (
            Event("ada", True),
            BatchEntryError,
            "events[2]: item=True must be a whole number of 64 bits or a text",
        ),
        (Event("ada", 1.0), BatchEntryError, "events[2]: item=1.0 must be"),
        (Event(None, 10), BatchEntryError, "events[2]: user=None must be"),
        (Event(2**63, 10), BatchEntryError, "events[2]: user=of many digits must be"),
        (Event(10**5000, 10), BatchEntryError, "events[2]: user=of many digits must be"),
        (Event(lone, 10), BatchEntryError, r"events[2]: user='half \ud800' must be"),
        (Event("ada", lone), BatchEntryError, "events[2]: item="),
        (Event("ada", 10, 1.5), BatchEntryError, "events[2]: time=1.5 of user='ada' must be a whole number"),
        (Event("ada", 10, 2**63), BatchEntryError, "events[2]: time="),
        (Event("ada", 10, True), BatchEntryError, "events[2]: time=True"),
    ):
        with pytest.raises(error, match=re.escape(message)) as caught:
            sessions.observe_many([*good, bad])
        assert caught.value.index == 2
    assert sessions.events_seen("ada") == 1
    assert "new" not in sessions
    assert len(sessions) == 1


def test_events_without_times_follow_and_equal_times_are_fine(build: Build, full_pass: FullPass):
    model = build()
    sessions = SessionRecommender(model)
    for item, time in ((10, None), (20, -5), (30, -5), (40, None), (50, 0), (60, 0)):
        sessions.observe("ada", item, time)
    with pytest.raises(LateEventError, match=r"events\[0\]: time=-1 of user='ada' is before .* at 0; send"):
        sessions.observe("ada", 70, -1)
    same(sessions.recommend("ada", 5), full_pass(model, [10, 20, 30, 40, 50, 60]))


def test_bad_requests_are_refused(build: Build):
    sessions = SessionRecommender(build())
    sessions.observe("ada", 10)
    with pytest.raises(UnknownUserError, match=r"requests\[1\]: no event of user='bob' is known") as caught:
        sessions.recommend_many([Request("ada"), Request("bob")])
    assert caught.value.index == 1
    for k in (0, -1, 31, 2.0, True, None):
        with pytest.raises(InputError, match=rf"requests\[0\]: k={k} must be a whole number between 1 and .* 30 items"):
            sessions.recommend("ada", k)
    with pytest.raises(InputError, match=r"requests\[0\]: user=\[1\] must be"):
        sessions.recommend([1])
    with pytest.raises(InputError, match=r"requests\[1\]: block item=1.5 must be a whole number"):
        sessions.recommend_many([Request("ada"), Request("ada", block=[20, 1.5])])
    assert sessions.recommend_many([]) == []
    sessions.observe_many([])


def test_a_forgotten_user_is_unknown_and_begins_anew(build: Build, full_pass: FullPass):
    model = build()
    sessions = SessionRecommender(model)
    sessions.observe_many(interleaved(HISTORIES))
    assert 7 in sessions
    assert "7" in sessions
    assert sessions.forget("7")
    assert not sessions.forget(7)
    assert 7 not in sessions
    assert sessions.events_seen(7) == 0
    with pytest.raises(UnknownUserError):
        sessions.recommend(7)
    sessions.observe(7, 20)
    same(sessions.recommend(7, 5), full_pass(model, [20]))


def test_only_the_items_met_last_are_hidden_where_their_number_is_bounded(build: Build):
    sessions = SessionRecommender(build(), max_seen=3)
    sessions.observe_many([Event("ada", item) for item in (10, 20, 30, 10, 40)])
    shown = {each.item for each in sessions.recommend("ada", 30)}
    assert shown == set(range(10, 301, 10)) - {30, 10, 40}
    nothing = SessionRecommender(build(), max_seen=0)
    nothing.observe("ada", 10)
    assert len(nothing.recommend("ada", 30)) == 30
    with pytest.raises(InputError, match="max_seen=-1 must be at least 0"):
        SessionRecommender(build(), max_seen=-1)


def test_histories_from_elsewhere_become_sessions_once(
    build: Build, full_pass: FullPass, caplog: pytest.LogCaptureFixture
):
    model, asked = build(), []

    def history_of(user: object) -> UserHistory | None:
        asked.append(user)
        return {"ada": UserHistory([10, 20, 999], 50), "empty": UserHistory([])}.get(user)

    sessions = SessionRecommender(model, history_of=history_of)
    same(sessions.recommend("ada", 5), full_pass(model, [10, 20]))
    assert "left out 1 of 3 events in the history of user='ada'" in caplog.text
    assert "ada" in sessions
    with pytest.raises(LateEventError):
        sessions.observe("ada", 30, 49)
    sessions.observe_many([Event("ada", 30, 50), Event("bob", 10), Event("empty", 10)])
    same(sessions.recommend("ada", 5), full_pass(model, [10, 20, 30]))
    same(sessions.recommend("bob", 5), full_pass(model, [10]))
    assert asked == ["ada", "bob", "empty"]
    with pytest.raises(UnknownUserError):
        sessions.recommend("nobody")


def test_each_user_has_the_vector_that_training_gave(build: Build, full_pass: FullPass):
    model = build(user_embedding=True, num_users=3)
    model.user_vocabulary = Vocabulary(["ada", "bob", "eve"])
    for memory in (StreamedState(model), ReencodedState(model)):
        sessions = SessionRecommender(model, memory=memory)
        sessions.observe_many(interleaved(HISTORIES))
        for user, user_id in (("ada", 1), ("bob", 2), (7, 0)):
            same(sessions.recommend(user, 5), full_pass(model, HISTORIES[user], user_id=user_id))
    assert full_pass(model, [20], user_id=2) != full_pass(model, [20], user_id=0)


def test_threads_lose_no_event(build: Build, full_pass: FullPass):
    model = build()
    sessions = SessionRecommender(model)
    errors = []

    def work(user: int) -> None:
        try:
            for t in range(20):
                sessions.observe_many([Event(user, 10 + 10 * t), Event("shared", 10)])
                sessions.recommend(user, 5)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(user,)) for user in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sessions.events_seen("shared") == 80
    same(sessions.recommend("shared", 5), full_pass(model, [10] * 80))
    for user in range(4):
        assert sessions.events_seen(user) == 20
        same(sessions.recommend(user, 5), full_pass(model, [10 + 10 * t for t in range(20)]))


def test_a_model_without_the_logs_ids_is_refused(build: Build):
    model = build()
    model.item_vocabulary = Vocabulary([1, 2, 3])
    with pytest.raises(InputError, match=r"model\.item_vocabulary has 3 items, but the model was trained on 30"):
        SessionRecommender(model)
    model.item_vocabulary = None
    with pytest.raises(InputError, match="the model does not know the log's item ids"):
        SessionRecommender(model)


def test_a_model_that_streams_never_encodes_again_and_takes_a_batch_in_one_call(
    build: Build, monkeypatch: pytest.MonkeyPatch
):
    model = build()
    sessions, calls = SessionRecommender(model), []

    def counted(name: str) -> Callable:
        original = getattr(model, name)

        def call(*args: object) -> object:
            calls.append(name)
            return original(*args)

        return call

    for name in ("forward", "step", "extend"):
        monkeypatch.setattr(model, name, counted(name))
    sessions.observe_many([Event(user, 10) for user in range(50)])
    assert calls == ["step"]
    sessions.observe_many(interleaved(HISTORIES))
    assert calls == ["step", "extend"]
    sessions.recommend_many([Request(user) for user in (*range(50), *HISTORIES)])
    assert calls == ["step", "extend"]


def test_long_and_short_histories_are_not_padded_to_each_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(user_state, "MAX_EVENTS", 20)
    assert user_state.length_groups([1, 15, 1, 4, 1, 30]) == [[0, 2, 4, 3], [1], [5]]
    assert user_state.length_groups([]) == []
    assert user_state.length_groups([10, 10, 10]) == [[0, 1], [2]]


def test_users_of_any_length_are_observed_in_groups(build: Build, full_pass: FullPass, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(user_state, "MAX_EVENTS", 6)
    for positions in (False, True):
        model = build(positions=positions)
        sessions = SessionRecommender(model)
        sessions.observe_many(interleaved(HISTORIES))
        found = sessions.recommend_many([Request(user, 5) for user in HISTORIES])
        for best, items in zip(found, HISTORIES.values(), strict=True):
            same(best, full_pass(model, items))
