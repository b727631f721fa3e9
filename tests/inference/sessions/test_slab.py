"""States in rows of a slab: read and written where they are, and never another user's."""

from __future__ import annotations

import gc
import random
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from seqrec.encoders import ENCODERS
from seqrec.encoders.state import State
from seqrec.inference.sessions import Event, InMemoryStore, Request, SessionRecommender, SQLiteStore
from seqrec.inference.sessions.slab import FIRST_ROWS, Slab, SlabState
from seqrec.models import SequentialRecommender

Build = Callable[..., SequentialRecommender]
ITEMS = [10 * number for number in range(1, 31)]


def states(*values: float) -> State:
    """States of two tensors, of different types and sizes."""
    x = torch.tensor(values, dtype=torch.float32)
    return State({"a": x[:, None].repeat(1, 3), "b": x.to(torch.int64), "c": x.bfloat16()[:, None, None]}, "e")


def test_rows_hold_what_was_written_while_the_slab_grows():
    slab = Slab(states(0))
    kept = [row for first in range(0, 100, 5) for row in slab.written(states(*range(first, first + 5)))]
    assert len(slab.free) + 101 >= FIRST_ROWS
    found = slab.gathered(slab.before([b"", *kept]), "cpu")
    for name, x in states(0, *range(100)).tensors.items():
        assert torch.equal(found.tensors[name], x)
    again = Slab(states(0))
    copied = again.gathered(again.before([bytes(kept[7]), kept[9], b""]), "cpu")
    assert copied.tensors["b"].tolist() == [7, 9, 0]
    assert bytes(kept[7][-2:]) == bytes(kept[7])[-2:]
    assert len(kept[7]) == 3 * 4 + 8 + 2


def test_a_row_is_free_when_nothing_refers_to_it_and_is_taken_again():
    slab = Slab(states(0))
    kept = slab.written(states(1, 2, 3))
    rows, used = {row.row for row in kept}, len(slab.free)
    del kept[1:]
    assert len(slab.free) == used + 2
    again = slab.written(states(8, 9))
    assert {row.row for row in again} == rows - {kept[0].row}
    assert slab.gathered([kept[0], *again], "cpu").tensors["b"].tolist() == [1, 8, 9]


def test_a_slab_ends_with_its_last_user():
    slab = Slab(states(0))
    (kept,) = slab.written(states(1))
    slab.before([b"", b""])
    ended, slab = weakref.ref(slab), None  # type: ignore[assignment]
    assert ended() is not None
    gc.disable()
    try:
        del kept
        assert ended() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", [name for name in ENCODERS if not ENCODERS[name].bidirectional])
@pytest.mark.parametrize("durable", [False, True])
def test_a_session_has_the_bits_of_bare_steps_of_the_same_batches(
    name: str, durable: bool, build: Build, tmp_path: Path
):
    model, draws = build(name), random.Random(0)
    state = model.init_state(8)
    with SessionRecommender(model, SQLiteStore(tmp_path / "s.db") if durable else None) as sessions:
        for _ in range(20):
            items = draws.choices(range(1, 31), k=8)
            sessions.observe_many([Event(user, 10 * item) for user, item in enumerate(items)])
            last, state = model.step(torch.tensor(items), state)
            found = sessions._keeper.stored([b"%d" % user for user in range(8)], list(range(8)))
            rows = torch.stack([torch.frombuffer(bytearray(bytes(each.state)), dtype=torch.uint8) for each in found])
            parts = [x.contiguous().view(8, -1).view(torch.uint8) for x in (*state.tensors.values(), last)]
            assert torch.equal(rows, torch.cat(parts, 1))


@pytest.mark.parametrize("durable", [False, True])
def test_users_who_come_and_go_keep_their_own_states(durable: bool, build: Build, tmp_path: Path):
    """Rows of forgotten and dropped users are taken by others; each list is that of the user's own events."""
    model, draws = build(), random.Random(1)
    store = SQLiteStore(tmp_path / "s.db", max_users=12, memory_bytes=6000) if durable else InMemoryStore(max_users=12)
    events: dict[int, list[int]] = {}
    with SessionRecommender(model, store) as sessions, SessionRecommender(model) as alone:
        for _ in range(60):
            users = draws.sample(range(30), 5)
            for user in users:
                # Dropped meanwhile.
                if user not in sessions:
                    events[user] = []
                events[user].append(draws.choice(ITEMS))
            sessions.observe_many([Event(user, events[user][-1]) for user in users])
            if (user := draws.choice(users)) % 3 == 0:
                assert sessions.forget(user)
                events[user] = []
            for user in draws.sample(range(30), 4):
                if user in sessions:
                    alone.forget("x")
                    for item in events[user]:
                        alone.observe("x", item)
                    assert sessions.recommend(user) == alone.recommend("x")
        rows = sessions._user_state._slab
        gc.collect()
        # Twelve users, the first row, and a batch that has just replaced five others.
        assert len(rows._rows) - len(rows.free) <= 13
        assert len(rows._rows) <= 4 * FIRST_ROWS


def test_a_step_that_fails_changes_no_state_and_keeps_no_row(build: Build, monkeypatch: pytest.MonkeyPatch):
    model = build()
    sessions = SessionRecommender(model)
    sessions.observe_many([Event(user, 10) for user in range(4)])
    requests = [Request(user) for user in range(4)]
    best, used = sessions.recommend_many(requests), len(sessions._user_state._slab.free)
    layers = [module for module in model.encoder.modules() if hasattr(module, "scan_projection")]

    def fail(*arguments: object) -> None:
        raise MemoryError("no space")

    # The first block has already written its part.
    monkeypatch.setattr(layers[-1], "advance", fail)
    with pytest.raises(MemoryError):
        sessions.observe_many([Event(user, 20) for user in range(4)])
    gc.collect()
    assert sessions.recommend_many(requests) == best
    assert len(sessions._user_state._slab.free) == used
    monkeypatch.undo()
    sessions.observe_many([Event(user, 20) for user in range(4)])
    fresh = SessionRecommender(model)
    for item in (10, 20):
        fresh.observe_many([Event(user, item) for user in range(4)])
    assert sessions.recommend_many(requests) == fresh.recommend_many(requests)


def test_threads_that_read_see_whole_states_while_others_write_and_the_slab_grows(build: Build):
    model = build()
    sessions, fresh = SessionRecommender(model), SessionRecommender(model)
    expected = []
    for number in range(40):
        fresh.observe("ada", ITEMS[number % 30])
        expected.append(fresh.recommend("ada", 30, filter_seen=False))
    sessions.observe("ada", ITEMS[0])
    errors, done = [], threading.Event()

    def read() -> None:
        last = 0
        while not done.is_set():
            found = sessions.recommend("ada", 30, filter_seen=False)
            if found not in expected[last:]:
                errors.append(found)
            last = max(last, expected.index(found))

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(1, 40):
        sessions.observe_many([Event("ada", ITEMS[number % 30]), *(Event(f"{number}-{new}", 10) for new in range(9))])
    done.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sessions.recommend("ada", 30, filter_seen=False) == expected[-1]
    assert isinstance(sessions._keeper.stored([b"ada"], ["ada"])[0].state, SlabState)


@pytest.mark.parametrize("at_once", [[0], [0, 0, 3]])
def test_what_a_file_lacks_after_a_kill_is_observed_again_in_the_same_steps(
    at_once: list[int], build: Build, tmp_path: Path
):
    """States of the file are some events old; the events are not. Steps of single events have the same bits."""
    tolerance = 1e-4 if max(at_once) else 0
    model, draws = build(), random.Random(2)
    store = SQLiteStore(tmp_path / "s.db")
    sessions, fresh = SessionRecommender(model, store), SessionRecommender(model)
    (tmp_path / "copy").mkdir()
    for batch in range(150):
        # Users of one event, and of some at once.
        users = [user for user in range(6) if draws.random() < 0.7]
        users += draws.choices(users, k=draws.choice(at_once)) if users else []
        events = [Event(user, draws.choice(ITEMS), batch, f"{batch}-{place}") for place, user in enumerate(users)]
        for each in (sessions, fresh):
            each.observe_many(events)
        if batch % 25 == 24:
            for file in tmp_path.glob("s.db*"):
                shutil.copy(file, tmp_path / "copy")
            with SessionRecommender(model, SQLiteStore(tmp_path / "copy/s.db")) as again:
                for user in range(6):
                    assert again.events_seen(user) == fresh.events_seen(user)
                    found, expected = (dict(each.recommend(user)) for each in (again, fresh))
                    assert found == pytest.approx(expected, abs=tolerance, rel=0)
                again.observe_many(events)
                assert sum(map(again.events_seen, range(6))) == sum(map(fresh.events_seen, range(6)))
                assert again.rebuilt == 0
    sessions.close()


def test_another_model_makes_sessions_again_that_were_behind(build: Build, tmp_path: Path):
    store = SQLiteStore(tmp_path / "s.db")
    sessions = SessionRecommender(build(), store)
    for item in ITEMS[:7]:
        sessions.observe("ada", item, item, str(item))
    (tmp_path / "copy").mkdir()
    for file in tmp_path.glob("s.db*"):
        shutil.copy(file, tmp_path / "copy")
    sessions.close()
    other = build(seed=1)
    fresh = SessionRecommender(other)
    fresh.observe_many([Event("ada", item) for item in ITEMS[:7]])
    with SessionRecommender(other, SQLiteStore(tmp_path / "copy/s.db")) as again:
        assert again.recommend("ada", 30) == fresh.recommend("ada", 30)
        again.observe("ada", ITEMS[9], 70, "70")
        assert again.events_seen("ada") == 7
        assert again.rebuilt == 1


def test_a_session_that_leaves_the_memory_or_a_store_that_is_closed_lacks_no_event(build: Build, tmp_path: Path):
    model = build()
    with SessionRecommender(model, SQLiteStore(tmp_path / "s.db", memory_bytes=4000)) as sessions:
        for number in range(12):
            sessions.observe_many([Event(number % 4, ITEMS[number]), Event(f"new {number}", 10)])
        store = sessions._keeper.store
        assert len(store._live) < len(store) == 16
        rows = store._connection.execute("SELECT user, behind FROM usage").fetchall()
        assert {key for key, behind in rows if behind} <= set(store._live)
    with SessionRecommender(model, SQLiteStore(tmp_path / "s.db")) as again:
        assert again._keeper.store._connection.execute("SELECT max(behind) FROM usage").fetchone() == (0,)
        for user in range(4):
            fresh = SessionRecommender(model)
            for item in ITEMS[user:12:4]:
                fresh.observe(user, item)
            assert again.recommend(user) == fresh.recommend(user)


@pytest.mark.parametrize("durable", [False, True])
def test_a_model_that_was_replaced_keeps_no_slab_but_could_continue_its_sessions(
    durable: bool, build: Build, tmp_path: Path
):
    store = SQLiteStore(tmp_path / "s.db") if durable else InMemoryStore(keep_events=100)
    model, other = build(), build(seed=1)
    events = [Event(user, item) for user in ("ada", "bob", "eve") for item in ITEMS[: 3 + len(user)]]
    before = SessionRecommender(model, store)
    before.observe_many(events)
    expected = before.recommend("bob")
    after = SessionRecommender(other, store)
    after.recommend("ada")
    (slab,) = {live.state.slab for live in store.get_live([b"bob", b"eve"])}
    slab_before = weakref.ref(slab)
    del slab
    before.release()
    del before
    gc.collect()
    assert slab_before() is None
    rows = store.get_many([b"ada", b"bob", b"eve"])
    assert store.sizes().state_bytes == 9 + sum(map(len, rows))
    fresh = SessionRecommender(build(seed=1))
    fresh.observe_many(events)
    assert after.recommend("ada") == fresh.recommend("ada")
    # The first model again: no session but ada's is made again.
    again = SessionRecommender(model, store)
    assert again.recommend("bob") == expected
    assert again.rebuilt == 0
    assert again.recommend("ada")
    assert (again.rebuilt, again.rebuilt_share) == (1, 1 / 3)
    store.close()


def test_without_events_every_state_is_written(build: Build, tmp_path: Path):
    store = SQLiteStore(tmp_path / "s.db", keep_events=0)
    sessions = SessionRecommender(build(), store)
    for item in ITEMS[:5]:
        sessions.observe("ada", item)
        assert store._connection.execute("SELECT max(behind) FROM usage").fetchone() == (0,)
    sessions.close()
