"""Events that are sent twice count once; what is kept stays within its limits; damage is found."""

from __future__ import annotations

import os
import random
import sqlite3
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from seqrec import Event, InMemoryStore, SessionRecommender, SQLiteStore
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import BatchEntryError, DamagedSessionError, InputError, LateEventError, SessionStoreError
from seqrec.inference.sessions import StoreSizes
from seqrec.inference.sessions.session import KEPT_EVENT_IDS, Session
from seqrec.models import GRU4Rec, MambaRec, SASRec

ITEMS = 20


@pytest.fixture
def model() -> GRU4Rec:
    return built(0)


def built(seed: int) -> GRU4Rec:
    torch.manual_seed(seed)
    found = GRU4Rec(ITEMS, d_model=8, positions=False, max_length=10)
    found.item_vocabulary = Vocabulary(sorted(f"i{number}" for number in range(ITEMS)))
    return found.eval()


@pytest.mark.parametrize("durable", [False, True])
def test_an_event_that_is_sent_again_counts_once(model: GRU4Rec, tmp_path: Path, durable: bool):
    def opened() -> SessionRecommender:
        return SessionRecommender(model, SQLiteStore(tmp_path / "s.sqlite") if durable else store)

    store = InMemoryStore()
    sessions = opened()
    sessions.observe_many([Event("ada", "i1", 1, "a"), Event("ada", "i2", 2, "b"), Event("ada", "i2", 2, "b")])
    best = sessions.recommend("ada")
    if durable:
        sessions.close()
        sessions = opened()
    # The second is older than the newest event, and was acknowledged before.
    sessions.observe_many([Event("ada", "i1", 1, "a"), Event("bob", "i1", 1, "a")])
    assert sessions.events_seen("ada") == 2
    assert sessions.events_seen("bob") == 1
    assert sessions.recommend("ada") == best
    with pytest.raises(LateEventError):
        sessions.observe_many([Event("ada", "i1", 1, "another")])
    sessions.observe("ada", "i2", 2)
    assert sessions.events_seen("ada") == 3
    sessions.close()


def test_the_last_ids_of_a_user_are_known(model: GRU4Rec):
    sessions = SessionRecommender(model)
    sessions.observe_many([Event("ada", "i1", None, str(number)) for number in range(KEPT_EVENT_IDS + 1)])
    sessions.observe_many([Event("ada", "i1", None, "1")])
    assert sessions.events_seen("ada") == KEPT_EVENT_IDS + 1
    sessions.observe_many([Event("ada", "i1", None, "0")])
    assert sessions.events_seen("ada") == KEPT_EVENT_IDS + 2


@pytest.mark.parametrize("event_id", ["", "x" * 257, 7, "\ud800"])
def test_an_id_that_is_no_short_text_is_refused(model: GRU4Rec, event_id: object):
    sessions = SessionRecommender(model)
    with pytest.raises(BatchEntryError, match="event_id="):
        sessions.observe_many([Event("ada", "i1", None, event_id)])  # type: ignore[arg-type]
    assert len(sessions) == 0


@pytest.mark.parametrize("build", [MambaRec, SASRec])
def test_a_hundred_thousand_new_users_stay_within_the_limit(build: type):
    more = {"d_state": 4} if build is MambaRec else {"rotary": True}
    found = build(ITEMS, d_model=8, num_layers=1, positions=False, max_length=16, **more).eval()
    found.item_vocabulary = Vocabulary(np.arange(ITEMS))
    store = InMemoryStore(max_bytes=1 << 20)
    sessions = SessionRecommender(found, store)
    for first in range(0, 100_000, 5_000):
        sessions.observe_many([Event(user, user % ITEMS) for user in range(first, first + 5_000)])
        assert store.num_bytes <= 1 << 20
        assert store.num_bytes == sum(len(key) + len(row) for key, row in store._rows.items())
    assert store.dropped == 100_000 - len(store)
    assert 99_999 in sessions
    assert 0 not in sessions


def test_the_least_recently_used_user_is_dropped(model: GRU4Rec):
    store = InMemoryStore(max_users=2)
    sessions = SessionRecommender(model, store)
    for user in ("ada", "bob"):
        sessions.observe(user, "i1")
    sessions.recommend("ada")
    sessions.observe("cyn", "i1")
    assert [user in sessions for user in ("ada", "bob", "cyn")] == [True, False, True]
    assert store.dropped == 1
    assert sessions.forget("ada")
    assert store.dropped == 1


def test_idle_sessions_end(model: GRU4Rec, monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    sessions = SessionRecommender(model, InMemoryStore(idle_seconds=10))
    sessions.observe("ada", "i1")
    now[0] = 8
    sessions.observe("bob", "i1")
    now[0] = 12
    assert "ada" not in sessions
    assert "bob" in sessions


@pytest.mark.parametrize("limits", [{"max_bytes": 0}, {"max_users": 0}, {"idle_seconds": 0}])
def test_limits_are_positive(limits: dict[str, float]):
    with pytest.raises(InputError):
        InMemoryStore(**limits)  # type: ignore[arg-type]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_sessions_can_be_read_by_their_owner_alone(model: GRU4Rec, tmp_path: Path):
    sessions = SessionRecommender(model, SQLiteStore(tmp_path / "s.sqlite"))
    sessions.observe("ada", "i1")
    assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {
        "s.sqlite": 0o600,
        "s.sqlite-wal": 0o600,
    }
    sessions.close()


def test_a_backup_is_made_while_sessions_go_on(model: GRU4Rec, tmp_path: Path):
    store = SQLiteStore(tmp_path / "s.sqlite")
    sessions = SessionRecommender(model, store)
    sessions.observe("ada", "i1")
    store.backup(tmp_path / "b.sqlite")
    sessions.observe("ada", "i2")
    sessions.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["b.sqlite", "s.sqlite"]
    with SessionRecommender(model, SQLiteStore(tmp_path / "b.sqlite")) as again:
        assert again.events_seen("ada") == 1


def test_a_session_is_of_its_user_alone():
    row = Session(b"state", 3).to_bytes(b"ada")
    assert Session.from_bytes(row, b"ada", "ada").num_events == 3
    with pytest.raises(DamagedSessionError):
        Session.from_bytes(row, b"adb", "adb")


def kept_of(sessions: SessionRecommender, user: str) -> tuple[object, ...]:
    """All that a session is for its user: what is known, and the list."""
    (found,) = sessions._keeper.stored([user.encode()], [user])
    assert found is not None, user
    best = sessions.recommend(user, 5)
    known = found.num_events, found.newest_time, found.seen.tolist(), found.event_ids.tolist()
    return (*known, [each.item for each in best], [round(each.score, 3) for each in best])


@pytest.mark.parametrize("flips", [20, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("place", ["anywhere", "headers"])
@pytest.mark.parametrize("retrained", [False, True])
def test_a_flipped_bit_in_the_file_makes_no_user_unknown_or_another(
    tmp_path: Path, flips: int, place: str, retrained: bool
):
    """The file is refused, or the damaged user alone, or the session is made again; headers and keys included."""
    first, second = built(0), built(1)
    file, users = tmp_path / "s.sqlite", [f"user{number}" for number in range(60)]
    with SessionRecommender(first, SQLiteStore(file)) as sessions:
        for time in range(4):
            events = [Event(user, f"i{(place + time) % ITEMS}", time) for place, user in enumerate(users)]
            sessions.observe_many([each._replace(event_id=f"e{time}") for each in events])
    with sqlite3.connect(file) as connection:
        (page,) = connection.execute("PRAGMA page_size").fetchone()
    whole, rng, model = file.read_bytes(), random.Random(flips), second if retrained else first
    outcomes = {"refused": 0, "one": 0, "rebuilt": 0, "harmless": 0}
    places = [start + offset for start in range(0, len(whole), page) for offset in range(150)]
    with SessionRecommender(model, SQLiteStore(file)) as sessions:
        sizes = sessions.sizes()
        expected = {user: kept_of(sessions, user) for user in users}
    for start in rng.choices(places if place == "headers" else range(len(whole)), k=flips):
        damaged = bytearray(whole)
        damaged[start] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        outcomes[outcome_of(model, file, expected, sizes)] += 1
    # Half of a file is space that nothing is in.
    assert outcomes["harmless"] < flips * 0.9
    assert outcomes["refused"] > 0


def outcome_of(model: GRU4Rec, file: Path, expected: dict[str, tuple[object, ...]], sizes: StoreSizes) -> str:
    """How a damaged file is noticed; fails if it is not, and a user's session is another."""
    refused = 0
    try:
        with SessionRecommender(model, SQLiteStore(file)) as sessions:
            assert sessions.sizes() == sizes
            for user, session in expected.items():
                try:
                    assert kept_of(sessions, user) == session
                except DamagedSessionError:
                    refused += 1
            rebuilt = sessions.rebuilt
    except SessionStoreError:
        return "refused"
    assert refused <= 1
    return "one" if refused else "rebuilt" if rebuilt not in (0, len(expected)) else "harmless"
