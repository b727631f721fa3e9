"""Sessions that outlive the process, the model, or their bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import SessionStoreError
from seqrec.inference.sessions import (
    Event,
    InMemoryStore,
    ReencodedState,
    Scored,
    SessionRecommender,
    SQLiteStore,
)
from seqrec.inference.sessions.session import Session, observed
from seqrec.models import GRU4Rec, Recommender

pytestmark = pytest.mark.process

Build = Callable[..., Recommender]

# Observes one event after another for ever, and says so after each.
WORKER = """
import sys
from kept_sessions import event, model
from seqrec.inference.sessions import SessionRecommender, SQLiteStore

path, first = sys.argv[1], int(sys.argv[2])
sessions = SessionRecommender(model(), SQLiteStore(path))
for number in range(first, 1_000_000):
    sessions.observe(*event(number))
    print(number, flush=True)
"""
MODULE = """
import numpy as np, torch
from seqrec.data.vocabulary import Vocabulary
from seqrec.inference.sessions import Event
from seqrec.models import MambaRec

def model(seed=0):
    torch.manual_seed(seed)
    made = MambaRec(30, d_model=8, d_state=4, max_length=12, positions=False).eval()
    made.item_vocabulary = Vocabulary(np.arange(10, 301, 10))
    return made

def event(number):
    return Event(f"user {number % 3}", 10 + 10 * (number * number % 29), number)
"""


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_what_was_acknowledged_before_a_kill_is_there(kills: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "kept_sessions.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import kept_sessions

    draws, done = random.Random(0), 0
    for _ in range(kills):
        command = [sys.executable, "-c", WORKER, str(tmp_path / "s.db"), str(done)]
        paths = os.pathsep.join([str(tmp_path), *sys.path])
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
        ) as worker:
            assert worker.stdout is not None
            lines = [worker.stdout.readline() for _ in range(draws.randint(20, 60))]
            worker.send_signal(signal.SIGKILL)
            acknowledged = int([*lines, *worker.stdout.read().split()][-1])
        with closing(SQLiteStore(tmp_path / "s.db")) as store:
            store.verify()
            kept = SessionRecommender(kept_sessions.model(), store)
            found = sum(kept.events_seen(f"user {user}") for user in range(3))
            # Of one event it may be unknown whether it counted: it was on disk before that could be said.
            assert found - (acknowledged + 1) in (0, 1)
            replayed = SessionRecommender(kept_sessions.model())
            for number in range(found):
                replayed.observe(*kept_sessions.event(number))
            for user in range(3):
                assert kept.recommend(f"user {user}") == replayed.recommend(f"user {user}")
            (tmp_path / "b.db").unlink(missing_ok=True)
            store.backup(tmp_path / "b.db")
        # Events were kept with the states.
        fresh = SessionRecommender(kept_sessions.model(seed=1))
        fresh.observe_many([kept_sessions.event(number) for number in range(found)])
        with SessionRecommender(kept_sessions.model(seed=1), SQLiteStore(tmp_path / "b.db")) as again:
            for user in range(3):
                assert again.events_seen(f"user {user}") == fresh.events_seen(f"user {user}")
                same(again.recommend(f"user {user}"), fresh.recommend(f"user {user}"))
        done = found


def same(found: Sequence[Scored], expected: Sequence[Scored]) -> None:
    assert [each.item for each in found] == [each.item for each in expected]
    np.testing.assert_allclose([each.score for each in found], [each.score for each in expected], rtol=1e-4)


@pytest.mark.parametrize("cuts", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_after_a_loss_of_power_states_and_events_are_of_one_moment(cuts: int, build: Build, tmp_path: Path):
    """A loss of power leaves a beginning of the log, perhaps with other bytes after it."""
    store = SQLiteStore(tmp_path / "s.db")
    sessions = SessionRecommender(build(), store)
    events, users = [Event(f"u{t % 3}", 10 * (1 + t * t % 29), t, str(t)) for t in range(60)], ("u0", "u1", "u2")
    sizes = []
    for event in events:
        sessions.observe_many([event])
        sizes.append((tmp_path / "s.db-wal").stat().st_size)
    base, log = (tmp_path / "s.db").read_bytes(), (tmp_path / "s.db-wal").read_bytes()
    sessions.close()
    draws, counts = random.Random(0), set()
    for _ in range(cuts):
        cut = draws.randint(sizes[0], len(log))
        (tmp_path / "s.db").write_bytes(base)
        (tmp_path / "s.db-wal").write_bytes(log[:cut] + draws.randbytes(draws.choice([0, 1, 5000])))
        with SessionRecommender(build(seed=1), SQLiteStore(tmp_path / "s.db")) as again:
            number = sum(again.events_seen(user) for user in users)
            assert number >= sum(size <= cut for size in sizes)
            fresh = SessionRecommender(build(seed=1))
            fresh.observe_many(events[:number])
            for user in users:
                assert again.events_seen(user) == fresh.events_seen(user)
                if user in again:
                    same(again.recommend(user), fresh.recommend(user))
        counts.add(number)
    assert len(counts) > 5


def test_sessions_go_on_with_the_same_model_in_a_new_process(build: Build, tmp_path: Path):
    events = [Event("ada", 10 * (1 + t % 7), t) for t in range(20)]
    for t in (5, 20):
        with SessionRecommender(build(), SQLiteStore(tmp_path / "s.db")) as sessions:
            sessions.observe_many(events[sessions.events_seen("ada") : t])
            found = sessions.recommend("ada", 30, filter_seen=False)
    expected = SessionRecommender(build())
    expected.observe_many(events[:5])
    expected.observe_many(events[5:])
    assert found == expected.recommend("ada", 30, filter_seen=False)


def change(model: Recommender, name: str) -> Recommender:
    with torch.no_grad():
        dict(model.named_parameters())[name][1, 0] += 1e-3
    return model


def test_a_store_of_another_model_is_refused(build: Build):
    store = InMemoryStore()
    SessionRecommender(build(), store).observe("ada", 10)
    SessionRecommender(build(), store)
    encoder_weight = next(name for name, x in build().encoder.named_parameters() if x.dim() == 2)
    renamed = build()
    renamed.item_vocabulary = Vocabulary(np.arange(1, 31))
    other = build()
    for model, memory, message in (
        (change(build(), f"encoder.{encoder_weight}"), None, "made with encoder weights"),
        (change(build(), "items.table.weight"), None, "its items is '"),
        (build("GRU4Rec"), None, r"made with encoder MambaRec-\w+, but the model has GRU4Rec"),
        (renamed, None, "of another catalogue or version: it has"),
        (other, ReencodedState(other), "its memory is 'states', the model's 'events'"),
    ):
        with pytest.raises(SessionStoreError, match=message):
            SessionRecommender(model, store, memory=memory)


def test_events_that_are_kept_serve_a_retrained_model(build: Build):
    store = InMemoryStore()
    SessionRecommender(build(positions=True), store).observe("ada", 10)
    retrained = build(positions=True, seed=1)
    again = SessionRecommender(retrained)
    again.observe("ada", 10)
    assert SessionRecommender(retrained, store).recommend("ada") == again.recommend("ada")
    with pytest.raises(SessionStoreError, match="its max_length is 12, the model's 6"):
        SessionRecommender(build(positions=True, max_length=6), store)
    with pytest.raises(SessionStoreError, match="its memory is 'events', the model's 'states'"):
        SessionRecommender(build(), store)


@pytest.mark.parametrize("description", [b"", b"\xff", b"[]", b"null", b"{}", b'{"format": 1}'])
def test_a_description_of_other_things_is_refused(build: Build, description: bytes):
    store = InMemoryStore()
    store.claim(description or b" ")
    with pytest.raises(SessionStoreError, match="the store's description cannot be read; begin with a new"):
        SessionRecommender(build(), store)


def test_a_description_without_its_state_is_refused(build: Build):
    store = InMemoryStore()
    SessionRecommender(build(), store).observe("ada", 10)
    store.redescribe(store.claim(b"").replace(b'"state":', b'"stale":'))
    with pytest.raises(SessionStoreError, match=r"the store is of another model.*keep_events"):
        SessionRecommender(build(), store)


def test_every_damage_to_a_session_is_found_and_the_user_can_begin_anew(build: Build):
    store = InMemoryStore()
    sessions = SessionRecommender(build("GRU4Rec"), store)
    sessions.observe("ada", 10, 5)
    sessions.observe("bob", 20)
    (whole,) = store.get_many([b"ada"])
    assert whole is not None
    broken = [whole[:cut] for cut in range(len(whole))] + [whole + b"\0"]
    broken += [
        bytes(byte ^ (flip if i == place else 0) for i, byte in enumerate(whole))
        for place in range(len(whole))
        for flip in (1, 128)
    ]
    for data in broken:
        with pytest.raises(SessionStoreError, match="the session of user='ada' is damaged: its checksum"):
            Session.from_bytes(data, b"ada", "ada")
    store.put_many([(b"ada", broken[-1])])
    for call in (
        lambda: sessions.recommend("ada"),
        lambda: sessions.observe_many([Event("bob", 30), Event("ada", 10)]),
        lambda: sessions.events_seen("ada"),
    ):
        with pytest.raises(SessionStoreError, match="forget the user, and observe the events again"):
            call()
    assert sessions.events_seen("bob") == 1
    assert sessions.forget("ada")
    sessions.observe("ada", 10)
    assert sessions.events_seen("ada") == 1


ids = st.one_of(st.integers(-(2**63), 2**63 - 1), st.text(), st.sampled_from([0, -1, "0", "-1", "", "ünï", "\0"]))


@settings(max_examples=25, deadline=None)
@given(
    users=st.lists(ids, min_size=1, max_size=8),
    times=st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=3),
    item=st.integers(0, 4),
)
def test_any_id_of_a_user_goes_in_and_out(kept: SQLiteStore, users: list, times: list, item: int):
    for store in (InMemoryStore(), kept):
        sessions = SessionRecommender(small_model(), store)
        for user in users:
            sessions.forget(user)
            assert user not in sessions
        times_in_order = sorted(t for t in times if t is not None)
        distinct = dict.fromkeys(map(str, users))
        sessions.observe_many([Event(u, NAMES[item], t) for t in (*times_in_order, None) for u in distinct])
        for user in users:
            assert user in sessions
            assert sessions.events_seen(user) == len(times_in_order) + 1
            shown = {each.item for each in sessions.recommend(user, 5)}
            assert shown == set(NAMES) - {NAMES[item]}


NAMES = sorted(["", "0", "-1", "ünï", "\U0001f3b5"])
_MODELS: list[Recommender] = []


def small_model() -> Recommender:
    if not _MODELS:
        _MODELS.append(GRU4Rec(len(NAMES), d_model=4, max_length=4, positions=False))
        _MODELS[0].item_vocabulary = Vocabulary(NAMES)
    return _MODELS[0]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory):
    with closing(SQLiteStore(tmp_path_factory.mktemp("kept") / "s.db")) as store:
        yield store


@given(
    state=st.binary(max_size=50),
    num_events=st.integers(0, 2**64 - 1),
    time=st.none() | st.integers(-(2**63), 2**63 - 1),
    seen=st.lists(st.integers(1, 2**31 - 1), unique=True, max_size=20),
)
def test_sessions_are_the_same_after_a_round_trip(state: bytes, num_events: int, time: int | None, seen: list):
    session = Session(state, num_events, time, np.array(seen, np.int32))
    found = Session.from_bytes(session.to_bytes(b"ada"), b"ada", "ada")
    assert (found.state, found.num_events, found.newest_time) == (state, num_events, time)
    assert found.seen.tolist() == seen


@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), max_size=4), st.none() | st.integers(0, 7))
def test_seen_items_are_those_met_last(batches: list, max_seen: int | None):
    session, events = Session(b""), []
    for batch in batches:
        (session,) = observed([session], [np.array(batch, np.int32).tobytes()], [None], [b""], [()], max_seen, 0)
        events += batch
    naive = [item for t, item in enumerate(events) if item not in events[t + 1 :]]
    assert session.seen.tolist() == (naive if max_seen is None else naive[len(naive) - min(max_seen, len(naive)) :])
    assert session.num_events == len(events)
