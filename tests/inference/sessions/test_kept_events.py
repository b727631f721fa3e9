"""Sessions are made again from their events: by another model, of another catalogue, or after damage."""

from __future__ import annotations

import logging
import random
import sqlite3
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import DamagedSessionError, SessionStoreError, UnknownUserError
from seqrec.inference.sessions import (
    Event,
    InMemoryStore,
    ReencodedState,
    Request,
    Scored,
    SessionRecommender,
    SQLiteStore,
    StoreSizes,
    UserHistory,
)
from seqrec.inference.sessions.kept_events import MERGED
from seqrec.models import Recommender

Build = Callable[..., Recommender]

MODELS = {
    "a state space": ("MambaRec", {}),
    "a window": ("SASRec", {"rotary": True, "max_length": 4}),
    "re-encoded": ("SASRec", {"positions": True}),
}
HISTORIES = {"ada": [10, 50, 50, 300, 70, 20, 30], "bob": [20], "7": [300, 10, 20, 30, 40, 50, 60, 70, 80, 90]}


def events_of(user: str) -> list[Event]:
    return [Event(user, item, time, f"{user}-{time}") for time, item in enumerate(HISTORIES[user])]


def sessions_of(sessions: SessionRecommender, users: Sequence[str]) -> list[bytes]:
    """All that is kept of users besides their events."""
    found = sessions._keeper.stored([user.encode() for user in users], users)
    return [session.to_bytes(user.encode()) for session, user in zip(found, users, strict=True)]


def observed_one_by_one(model: Recommender, store: object) -> SessionRecommender:
    sessions = SessionRecommender(model, store)
    for user in HISTORIES:
        for event in events_of(user):
            sessions.observe_many([event])
    return sessions


def same(found: Sequence[Scored], expected: Sequence[Scored]) -> None:
    assert [each.item for each in found] == [each.item for each in expected]
    np.testing.assert_allclose([each.score for each in found], [each.score for each in expected], rtol=1e-5)


def flip(store: SQLiteStore, table: str, column: str, where: str, place: int = -1) -> None:
    """Change a byte of what is kept, as a fault of the disk would."""
    (row,) = store._connection.execute(f"SELECT {column} FROM {table} WHERE {where} LIMIT 1").fetchone()
    damaged = bytearray(row)
    damaged[place] ^= 1
    store._connection.execute(f"UPDATE {table} SET {column} = ? WHERE {where} AND {column} = ?", (bytes(damaged), row))


@pytest.mark.parametrize(("name", "arguments"), MODELS.values(), ids=MODELS)
def test_another_model_makes_each_session_again_as_if_it_had_seen_the_events(
    name: str, arguments: dict, build: Build, tmp_path: Path
):
    path = tmp_path / "s.db"
    observed_one_by_one(build(seed=5), SQLiteStore(path)).close()
    model = build(name, seed=1, **arguments)
    fresh = SessionRecommender(model, InMemoryStore(keep_events=100))
    with SessionRecommender(model, SQLiteStore(path)) as again:
        for number, user in enumerate(HISTORIES, 1):
            fresh.observe_many(events_of(user))
            # First asked for items, or first observed.
            if user != "bob":
                assert again.recommend(user) == fresh.recommend(user)
            again.observe_many(events_of(user))
            assert again.rebuilt == number
            assert sessions_of(again, [user]) == sessions_of(fresh, [user])
            again.observe(user, 60, 99)
            fresh.observe(user, 60, 99)
            assert again.recommend(user, 30, filter_seen=False) == fresh.recommend(user, 30, filter_seen=False)
    # Those are now the model's own.
    with SessionRecommender(model, SQLiteStore(path)) as again:
        assert [again.events_seen(user) for user in HISTORIES] == [8, 2, 11]
        assert again.rebuilt == 0


def test_users_of_a_request_are_made_again_together(build: Build, monkeypatch: pytest.MonkeyPatch):
    store = InMemoryStore(keep_events=100)
    observed_one_by_one(build(), store)
    again = SessionRecommender(build(seed=1), store)
    calls = []
    extend = again._user_state.extend
    monkeypatch.setattr(again._user_state, "extend", lambda *given: calls.append(len(given[0])) or extend(*given))
    found = again.recommend_many([Request("ada"), Request("7"), Request("ada")])
    assert calls == [2]
    assert found[0] == found[2]
    assert again.rebuilt == 2


def test_the_first_model_goes_on_with_the_sessions_that_the_second_left_alone(build: Build):
    store = InMemoryStore(keep_events=100)
    first = observed_one_by_one(build(), store)
    expected = sessions_of(first, list(HISTORIES))
    second = SessionRecommender(build(seed=1), store)
    second.recommend("ada")
    back = SessionRecommender(build(), store)
    assert sessions_of(back, ["bob", "7"]) == expected[1:]
    assert back.rebuilt == 0
    same(back.recommend("ada"), first.recommend("ada"))
    assert back.rebuilt == 1


def test_another_catalogue_makes_sessions_again_without_the_items_that_it_lacks(
    build: Build, caplog: pytest.LogCaptureFixture
):
    store = InMemoryStore(keep_events=100)
    observed_one_by_one(build(), store)
    # 50 to 340; without 10 to 40, and with new ones.
    model = build(seed=1)
    model.item_vocabulary = Vocabulary(np.arange(50, 341, 10))
    again, fresh = SessionRecommender(model, store), SessionRecommender(model)
    for user in ("ada", "7"):
        fresh.observe_many([Event(user, item) for item in HISTORIES[user] if item >= 50])
    with caplog.at_level(logging.WARNING):
        assert again.recommend("ada") == fresh.recommend("ada")
    assert "left out 3 of 7 events in the history of user='ada'" in caplog.text
    assert again.recommend("7", 30) == fresh.recommend("7", 30)
    assert again.events_seen("ada") == 7
    # Nothing that bob has met is left.
    with pytest.raises(UnknownUserError, match=r"requests\[1\]: no event of user='bob' is known"):
        again.recommend_many([Request("ada"), Request("bob")])
    again.observe("bob", 340)
    fresh.observe("bob", 340)
    assert again.recommend("bob") == fresh.recommend("bob")
    assert again.events_seen("bob") == 2


def test_text_ids_are_kept_as_they_are(build: Build):
    names = sorted({f"ünï {number}\n\0" for number in range(29)} | {"7"})
    store = InMemoryStore(keep_events=9)
    model = build()
    model.item_vocabulary = Vocabulary(names)
    SessionRecommender(model, store).observe_many([Event("ada", names[3]), Event("ada", 7)])
    retrained = build(seed=1)
    retrained.item_vocabulary = Vocabulary(names)
    fresh = SessionRecommender(retrained)
    fresh.observe_many([Event("ada", names[3]), Event("ada", "7")])
    assert SessionRecommender(retrained, store).recommend("ada") == fresh.recommend("ada")


def test_a_store_without_events_is_refused_with_the_option(build: Build, tmp_path: Path):
    with SessionRecommender(build(), SQLiteStore(tmp_path / "s.db", keep_events=0)) as sessions:
        sessions.observe("ada", 10)
    for keep_events in (0, 10):
        store = SQLiteStore(tmp_path / "s.db", keep_events=keep_events)
        with pytest.raises(
            SessionStoreError, match=r"made with encoder weights .*; keep_events, which SQLiteStore and"
        ):
            SessionRecommender(build(seed=1), store)
        store.close()


def test_a_user_from_before_events_were_kept_is_refused_alone(build: Build):
    store = InMemoryStore()
    SessionRecommender(build(), store).observe_many([Event("ada", 10), Event("bob", 20)])
    store.keep_events = 100
    with SessionRecommender(build(), store) as sessions:
        sessions.observe_many([Event("bob", 30), Event("cyn", 40)])
    again, fresh = (SessionRecommender(build(seed=1), each) for each in (store, None))
    with pytest.raises(DamagedSessionError, match=r"user='ada' is of another model; forget the user, .* none of its"):
        again.recommend("ada")
    # Of bob's, what came since.
    fresh.observe_many([Event("bob", 30), Event("cyn", 40)])
    for user in ("bob", "cyn"):
        assert again.recommend(user, filter_seen=False) == fresh.recommend(user, filter_seen=False)
    assert 20 not in [each.item for each in again.recommend("bob", 28)]


class Minimal:
    """A store of another package: what `StateStore` asks for, without events."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.description = b""

    def claim(self, description: bytes) -> bytes:
        self.description = self.description or description
        return self.description

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.rows.get(key) for key in keys]

    def put_many(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        self.rows.update(rows)

    def delete(self, key: bytes) -> bool:
        return self.rows.pop(key, None) is not None

    def __len__(self) -> int:
        return len(self.rows)

    def close(self) -> None:
        pass


def test_a_store_of_another_package_needs_to_know_nothing_of_events(build: Build):
    store = Minimal()
    sessions = observed_one_by_one(build(), store)
    for user in HISTORIES:
        same(sessions.recommend(user), observed_one_by_one(build(), InMemoryStore()).recommend(user))
    assert sessions.sizes() == StoreSizes(3)
    with pytest.raises(SessionStoreError, match="keep_events, which SQLiteStore and RedisStore have"):
        SessionRecommender(build(seed=1), store)
    store.rows[b"ada"] += b"?"
    with pytest.raises(DamagedSessionError, match=r"user='ada' is damaged: .* none of its events are kept"):
        sessions.recommend("ada")


@pytest.mark.parametrize("same_model", [True, False])
def test_damage_costs_no_user_unless_state_and_events_have_it(same_model: bool, build: Build, tmp_path: Path):
    with observed_one_by_one(build(), SQLiteStore(tmp_path / "s.db")) as before:
        expected = {user: before.recommend(user) for user in HISTORIES}
    store = SQLiteStore(tmp_path / "s.db")
    flip(store, "sessions", "session", "user = x'616461'", 60)
    flip(store, "events", "content", "user = x'37'")
    sessions = SessionRecommender(build(seed=0 if same_model else 1), store)
    if same_model:
        found = {user: sessions.recommend(user) for user in HISTORIES}
        same(found["ada"], expected.pop("ada"))
        assert {user: found[user] for user in expected} == expected
        assert sessions.rebuilt == 1
        flip(store, "sessions", "session", "user = x'37'", 60)
    with pytest.raises(
        DamagedSessionError, match=r"user='7' is .*, as some of its events are damaged or lost"
    ) as error:
        sessions.recommend_many([Request("ada"), Request("7"), Request("bob")])
    assert error.value.index == 1
    with pytest.raises(DamagedSessionError, match="the kept events of user='7' are damaged; forget the user"):
        sessions.kept_events("7")
    # The others of the request are made again all the same.
    assert sessions.rebuilt == (1 if same_model else 2)
    # A repeat is known, and so is the newest time.
    sessions.observe_many(events_of("ada"))
    assert sessions.events_seen("ada") == 7
    assert sessions.forget("7")
    sessions.observe("7", 10)
    assert sessions.events_seen("7") == 1
    store.close()


def test_a_gap_in_the_events_is_noticed_without_the_session(build: Build, tmp_path: Path):
    observed_one_by_one(build(), SQLiteStore(tmp_path / "s.db")).close()
    store = SQLiteStore(tmp_path / "s.db")
    sessions = SessionRecommender(build(), store)
    store._connection.execute("DELETE FROM events WHERE user = x'37' AND ends = 5")
    flip(store, "sessions", "session", "user = x'37'", 60)
    with pytest.raises(DamagedSessionError, match=r"user='7' is damaged: .* events are damaged or lost"):
        sessions.recommend("7")
    store.close()


@pytest.mark.parametrize("lost", ["min(ends)", "max(ends)", "5"])
def test_events_that_are_missing_are_noticed(lost: str, build: Build, tmp_path: Path):
    store = SQLiteStore(tmp_path / "s.db")
    observed_one_by_one(build(), store)
    store._connection.execute(
        f"DELETE FROM events WHERE user = x'37' AND ends = (SELECT {lost} FROM events WHERE user = x'37')"
    )
    with pytest.raises(DamagedSessionError, match=r"user='7' is of another model; .* events are damaged or lost"):
        SessionRecommender(build(seed=1), store).recommend("7")
    store.close()


def test_the_newest_events_are_kept_in_few_chunks(build: Build, tmp_path: Path):
    draws, store = random.Random(0), SQLiteStore(tmp_path / "s.db", keep_events=MERGED + 40)
    memory = ReencodedState(build(), max_length=5)
    items = [10 * draws.randint(1, 30) for _ in range(3 * MERGED)]
    with SessionRecommender(build(), store, memory=memory) as sessions:
        place = 0
        while place < len(items):
            new = items[place : place + draws.choice([1, 1, 1, 7])]
            sessions.observe_many([Event("ada", item) for item in new])
            place += len(new)
            (contents,) = store.events_of([b"ada"])
            assert len(contents) <= MERGED + 2
            assert store.sizes().event_bytes == sum(map(len, contents))
        assert len(contents) <= 3
        assert store.sizes().event_bytes < 5 * (2 * MERGED + 40)
        again = SessionRecommender(build(), store, memory=ReencodedState(build(), max_length=MERGED + 40))
        fresh = SessionRecommender(build(), memory=ReencodedState(build(), max_length=MERGED + 40))
        fresh.observe_many([Event("ada", item) for item in items])
        assert again.recommend("ada", 3, filter_seen=False) == fresh.recommend("ada", 3, filter_seen=False)
        assert again.events_seen("ada") == len(items)


def test_items_from_before_the_kept_events_stay_hidden(build: Build):
    store = InMemoryStore(keep_events=2)
    observed_one_by_one(build(), store)
    again = SessionRecommender(build(seed=1), store)
    shown = [each.item for each in again.recommend("7", 20)]
    assert set(shown).isdisjoint(HISTORIES["7"])


def test_keeping_events_can_end_and_begin_again(build: Build, tmp_path: Path):
    def opened(keep_events: int, seed: int = 0) -> SessionRecommender:
        return SessionRecommender(build(seed=seed), SQLiteStore(tmp_path / "s.db", keep_events=keep_events))

    with opened(100) as sessions:
        sessions.observe_many([Event("ada", 10), Event("ada", 20), Event("bob", 20)])
    with opened(0) as sessions:
        sessions.observe_many([Event("ada", 30)])
        assert sessions._keeper.store.events_of([b"ada", b"bob"])[0] == []
    with opened(100) as sessions:
        sessions.observe_many([Event("ada", 40), Event("ada", 50)])
    with opened(0, seed=1) as again, SessionRecommender(build(seed=1)) as fresh:
        fresh.observe_many([Event("ada", 40), Event("ada", 50)])
        assert again.recommend("ada", filter_seen=False) == fresh.recommend("ada", filter_seen=False)
        assert again.events_seen("ada") == 5
        # His event was kept before.
        assert again.events_seen("bob") == 1
    # The second model's, without a single event.
    with opened(0, seed=1) as again:
        again.observe_many([Event("ada", 60), Event("bob", 60)])
        assert again.sizes().event_bytes == 0
    with opened(0, seed=1) as again:
        assert again.events_seen("ada") == 6


def test_a_history_of_the_log_is_kept_as_events(build: Build):
    store = InMemoryStore(keep_events=5)
    history = UserHistory([10, 20, 30, 10, 50, 60, 70, 80], 8)
    with SessionRecommender(build(), store, history_of=lambda user: history) as sessions:
        assert sessions.newest_time("ada") == 8
        sessions.recommend("ada")
    again, fresh = (SessionRecommender(build(seed=1), each) for each in (store, None))
    fresh.observe_many([Event("ada", item) for item in (10, 50, 60, 70, 80)])
    assert again.recommend("ada", filter_seen=False) == fresh.recommend("ada", filter_seen=False)
    assert again.events_seen("ada") == 8
    assert [again.kept_events("ada").items, again.kept_events("ada").begin] == [[10, 50, 60, 70, 80], 3]
    assert fresh.kept_events("ada") is None
    assert [again.newest_time("ada"), fresh.newest_time("ada"), fresh.newest_time("bob")] == [8, None, None]


def test_a_backup_has_the_events(build: Build, tmp_path: Path):
    store = SQLiteStore(tmp_path / "s.db")
    sessions = observed_one_by_one(build(), store)
    store.backup(tmp_path / "b.db")
    sessions.observe("ada", 20)
    sessions.close()
    fresh = SessionRecommender(build(seed=1))
    fresh.observe_many(events_of("ada"))
    with SessionRecommender(build(seed=1), SQLiteStore(tmp_path / "b.db")) as again:
        assert again.recommend("ada") == fresh.recommend("ada")
        assert len(again) == 3


def old_session(state: bytes, num_events: int, seen: Sequence[int]) -> bytes:
    """A session as 0.1.0 wrote it: a checksum, 21 bytes of head, the state, and seen items."""
    content = struct.pack("<Qq?I", num_events, 0, False, len(state)) + state + np.array(seen, "<i4").tobytes()
    return struct.pack("<I", zlib.crc32(content)) + content


def test_a_file_of_the_first_version_continues_and_begins_to_keep_events(build: Build, tmp_path: Path):
    path, model = tmp_path / "s.db", build(positions=True)
    with SessionRecommender(model, SQLiteStore(path)) as sessions:
        description = sessions._keeper.store.claim(b"").replace(b'"format":3', b'"format":1')
    path.unlink()
    with sqlite3.connect(path) as connection:
        for statement in (
            "CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL)",
            "CREATE TABLE sessions (user BLOB PRIMARY KEY, session BLOB NOT NULL)",
            f"PRAGMA application_id = {0x73657153}",
            "PRAGMA user_version = 1",
        ):
            connection.execute(statement)
        connection.execute("INSERT INTO meta VALUES ('description', ?)", (description,))
        row = old_session(np.array([1, 2], "<i4").tobytes(), 2, [1, 2])
        connection.executemany("INSERT INTO sessions VALUES (?, ?)", [(b"ada", row), (b"bob", row)])
    connection.close()
    fresh = SessionRecommender(model)
    fresh.observe_many([Event("ada", 10), Event("ada", 20), Event("ada", 30)])
    with SessionRecommender(model, SQLiteStore(path)) as sessions:
        assert sessions.sizes()[:3] == (2, 2 * (len(row) + 3), 0)
        sessions.observe("ada", 30)
        assert sessions.recommend("ada") == fresh.recommend("ada")
        assert sessions.events_seen("bob") == 2
        assert sessions.rebuilt == 0
    with SessionRecommender(build(positions=True, max_length=6), SQLiteStore(path)) as again:
        assert again.recommend("ada", 3)
        with pytest.raises(DamagedSessionError, match="user='bob' is of another model"):
            again.recommend("bob")
    # Bob's session does not name its model, which the description no longer does either.
    with SessionRecommender(model, SQLiteStore(path)) as back, pytest.raises(DamagedSessionError, match="user='bob'"):
        back.recommend("bob")
