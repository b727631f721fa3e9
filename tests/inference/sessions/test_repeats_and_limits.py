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
from seqrec.inference.sessions.keeper import KEPT_EVENT_IDS, Session
from seqrec.models import GRU4Rec, MambaRec, SASRec

ITEMS = 20


@pytest.fixture
def model() -> GRU4Rec:
    torch.manual_seed(0)
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


@pytest.mark.parametrize("flips", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_a_flipped_bit_in_the_file_makes_no_user_unknown_or_another(model: GRU4Rec, tmp_path: Path, flips: int):
    """Headers of pages, pointers and keys included: the file is refused, or the damaged user alone."""
    file = tmp_path / "s.sqlite"
    users = [f"user{number}" for number in range(60)]
    with SessionRecommender(model, SQLiteStore(file)) as sessions:
        sessions.observe_many([Event(user, f"i{place % ITEMS}") for place, user in enumerate(users)])
        expected = {user: sessions._keeper.stored([user.encode()], [user])[0] for user in users}
    with sqlite3.connect(file) as connection:
        (page,) = connection.execute("PRAGMA page_size").fetchone()
    whole, rng, outcomes = file.read_bytes(), random.Random(0), {"refused": 0, "one": 0, "harmless": 0}
    places = [start + rng.randrange(150) for start in range(0, len(whole), page)]
    places += [rng.randrange(len(whole)) for _ in range(flips)]
    for place in rng.sample(places, flips):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        try:
            store = SQLiteStore(file)
        except SessionStoreError:
            outcomes["refused"] += 1
            continue
        try:
            with SessionRecommender(model, store) as sessions:
                for user in users:
                    try:
                        (found,) = sessions._keeper.stored([user.encode()], [user])
                    except (DamagedSessionError, SessionStoreError):
                        outcomes["one"] += 1
                        continue
                    assert found is not None, (place, user)
                    assert found.to_bytes(b"") == expected[user].to_bytes(b""), (place, user)
        except SessionStoreError:
            outcomes["refused"] += 1
        finally:
            store.close()
    assert outcomes["refused"] + outcomes["one"] > flips / 10
