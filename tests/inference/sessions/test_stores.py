"""State stores: one contract, and what is peculiar to each."""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from forked_commands import free_port

from seqrec.errors import InputError, MissingInputError, SessionStoreError
from seqrec.inference.sessions import (
    InMemoryStore,
    RedisStore,
    SessionStore,
    SQLiteStore,
    StateStore,
    StoreSizes,
)
from seqrec.inference.sessions.stores import Chunk


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis server of its own."""
    if (server := shutil.which("redis-server")) is None:
        pytest.skip("redis-server is not on PATH")
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    folder = tmp_path_factory.mktemp("redis")
    process = subprocess.Popen([server, *options], cwd=folder, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                RedisStore(f"redis://127.0.0.1:{port}").close()
                break
            except SessionStoreError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateStore]:
    made: StateStore
    if request.param == "memory":
        made = InMemoryStore()
    elif request.param == "sqlite":
        made = SQLiteStore(tmp_path / "sessions.db")
    else:
        made = RedisStore(request.getfixturevalue("redis_url"), prefix=str(tmp_path))
    yield made
    made.close()
    made.close()


def test_a_store_keeps_bytes_by_key(store: StateStore):
    assert isinstance(store, StateStore)
    keys = [b"a", b"", b"\x00\xff", "ünï".encode(), b"k" * 5000]
    assert store.get_many(keys) == [None] * 5
    assert store.get_many([]) == []
    assert len(store) == 0
    store.put_many([])
    store.put_many([(key, key * 3 + b"\x00") for key in keys])
    store.put_many([(b"a", b"new"), (b"big", bytes(3_000_000))])
    assert len(store) == 6
    assert store.get_many([b"none", b"a", *keys, b"a"]) == [
        None,
        b"new",
        b"new",
        *(key * 3 + b"\x00" for key in keys[1:]),
        b"new",
    ]
    assert store.get_many([b"big"]) == [bytes(3_000_000)]
    assert store.delete(b"a")
    assert not store.delete(b"a")
    assert store.get_many([b"a", b""]) == [None, b"\x00"]
    assert len(store) == 5


def test_the_first_description_stays(store: SessionStore):
    assert store.claim(b"first\x00") == b"first\x00"
    assert store.claim(b"second") == b"first\x00"
    store.redescribe(b"third")
    assert store.claim(b"first\x00") == b"third"


@pytest.fixture
def limited(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., SessionStore]]:
    """Opens one store again and again, with other limits."""
    opened: list[SessionStore] = []

    def make(**limits: Any) -> SessionStore:
        if kind == "redis":
            opened.append(RedisStore(request.getfixturevalue("redis_url"), prefix=str(tmp_path), **limits))
        else:
            for each in opened:
                each.close()
            opened.append(SQLiteStore(tmp_path / "s.db", **limits) if kind == "sqlite" else InMemoryStore(**limits))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


KINDS = ("memory", "sqlite", "redis")


def check_sizes(store: SessionStore, keys: Sequence[bytes], kept: dict[bytes, bytes], dropped: int = 0) -> None:
    """Compare what a store says that it keeps with what it has."""
    assert dict(zip(keys, store.get_many(keys), strict=True)) == {key: kept.get(key) for key in keys}
    events = [content for chunks in store.events_of(keys) for content in chunks]
    states = sum(len(key) + len(row) for key, row in kept.items())
    assert store.sizes() == StoreSizes(len(kept), states, sum(map(len, events)), dropped)
    assert len(store) == len(kept)


@pytest.mark.parametrize("kind", KINDS)
def test_events_are_kept_next_to_states(limited: Callable[..., SessionStore]):
    store = limited(keep_events=5)
    assert isinstance(store, SessionStore)
    keys = [b"ada", b"", b"\x00\xff"]
    store.put_many([(key, b"s") for key in keys], [Chunk(key, 0, 2, b"one") for key in keys])
    store.put_many([(b"ada", b"state")], [Chunk(b"ada", 2, 3, b"\xfftwo\x00")])
    assert store.events_of([*keys, b"none"]) == [[b"one", b"\xfftwo\x00"], [b"one"], [b"one"], []]
    # One chunk in the place of the last two, and then the first is too old.
    store.put_many([(b"ada", b"s")], [Chunk(b"ada", 3, 4, b"three")])
    store.put_many([(b"ada", b"s")], [Chunk(b"ada", 2, 6, b"two to six")])
    assert store.events_of([b"ada"]) == [[b"one", b"two to six"]]
    store.put_many([(b"ada", b"s")], [Chunk(b"ada", 6, 7, b"seven")])
    assert store.events_of([b"ada"]) == [[b"two to six", b"seven"]]
    check_sizes(store, keys, dict.fromkeys(keys, b"s"))
    # Events of no bytes only drop those that are too old.
    store.put_many([(b"ada", b"s")], [Chunk(b"ada", 11, 11, b"")])
    assert store.events_of([b"ada"]) == [[b"seven"]]
    assert store.delete(b"ada")
    assert store.events_of([b"ada"]) == [[]]
    check_sizes(store, keys, dict.fromkeys(keys[1:], b"s"))
    store.put_many([(b"ada", b"s")], [Chunk(b"ada", 0, 1, b"anew")])
    assert store.events_of([b"ada"]) == [[b"anew"]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", ["max_users", "max_bytes"])
def test_a_limit_drops_the_users_of_longest_ago_with_their_events(limited: Callable[..., SessionStore], limit: str):
    # 30 bytes a user.
    store = limited(keep_events=9, **{limit: {"max_users": 3, "max_bytes": 100}[limit]})
    keys = [b"%03d" % number for number in range(10)]

    def put(*keys: bytes) -> None:
        store.put_many([(key, bytes(17)) for key in keys], [Chunk(key, 0, 1, bytes(10)) for key in keys])

    for key in keys[:3]:
        put(key)
    store.get_many([keys[0], b"none"])
    put(keys[3])
    check_sizes(store, keys, {key: bytes(17) for key in (keys[0], *keys[2:4])}, 1)
    put(*keys[4:7])
    check_sizes(store, keys, {key: bytes(17) for key in keys[4:7]}, 4)
    # What a user asks to be deleted is not dropped.
    assert store.delete(keys[5])
    check_sizes(store, keys, {key: bytes(17) for key in (keys[4], keys[6])}, 4)
    # A user's events count, and so does one user who is too large alone.
    store.put_many([(keys[4], bytes(17))], [Chunk(keys[4], 1, 2, bytes(90))])
    if limit == "max_bytes":
        check_sizes(store, keys, {}, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_idle_users_are_dropped_with_their_events(limited: Callable[..., SessionStore], monkeypatch):
    now = [1e9]
    for clock in ("time.time", "time.monotonic"):
        monkeypatch.setattr(clock, lambda: now[0])
    store, keys = limited(keep_events=9, idle_seconds=10), [b"a", b"b", b"c"]
    store.put_many([(key, b"s") for key in keys], [Chunk(key, 0, 1, b"e") for key in keys])
    now[0] += 8
    store.get_many([b"a"])
    store.put_many([(b"b", b"s")], [Chunk(b"b", 1, 2, b"e")])
    now[0] += 4
    check_sizes(store, keys, {b"a": b"s", b"b": b"s"}, 1)
    now[0] += 11
    store.put_many([(b"c", b"s")], [Chunk(b"c", 0, 1, b"e")])
    check_sizes(store, keys, {b"c": b"s"}, 3)


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
@pytest.mark.parametrize("limits", [{"max_users": 4}, {"max_bytes": 200}, {"idle_seconds": 9.0}, {}])
def test_a_durable_store_does_what_the_one_in_memory_does(
    limited: Callable[..., SessionStore], kind: str, limits: dict[str, Any], monkeypatch
):
    now, draws, keys = [1e9], random.Random(0), [b"%d" % number for number in range(8)]
    for clock in ("time.time", "time.monotonic"):
        monkeypatch.setattr(clock, lambda: now[0])
    expected, store, ends = InMemoryStore(keep_events=6, **limits), limited(keep_events=6, **limits), {}
    dropped = 0
    for _ in range(400):
        now[0] += draws.choice([0.5, 1, 4])
        key, action = draws.choice(keys), draws.random()
        if action < 0.6:
            (known,) = expected.get_many([key])
            assert store.get_many([key]) == [known]
            end = ends.get(key, 0) if known else 0
            ends[key] = end + draws.randint(1, 3)
            begin = max(0, end - draws.choice([0, 0, 3]))
            row, chunk = (key, draws.randbytes(draws.randint(1, 30))), Chunk(key, begin, ends[key], draws.randbytes(5))
            for each in (expected, store):
                each.put_many([row], [chunk])
        elif action < 0.9:
            assert store.get_many([key]) == expected.get_many([key])
        elif action < 0.97:
            assert store.delete(key) == expected.delete(key)
        else:
            # What one process of SQLite has dropped is not in its file.
            dropped += store.sizes().dropped if kind == "sqlite" else 0
            store.close()
            store = limited(keep_events=6, **limits)
        assert store.events_of(keys) == expected.events_of(keys)
        assert store.sizes()._replace(dropped=store.sizes().dropped + dropped) == expected.sizes()


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_limit_counts_from_the_last_use_before_the_store_was_opened(
    limited: Callable[..., SessionStore], monkeypatch
):
    now = [1e9]
    monkeypatch.setattr("time.time", lambda: now[0])
    keys = [b"a", b"b", b"c"]
    store = limited(idle_seconds=100)
    for key in keys:
        now[0] += 1
        store.put_many([(key, b"s")], [Chunk(key, 0, 1, b"e")])
    now[0] += 1
    store.get_many([b"a"])
    store.close()
    store = limited(max_users=2)
    assert store.sizes()[:3] == (3, 6, 3)
    store.put_many([(b"c", b"s")])
    assert store.get_many(keys) == [b"s", None, b"s"]
    store.close()
    # As long as no limit is set, nothing is dropped, however late it is.
    now[0] += 1e9
    store = limited()
    store.put_many([(b"d", b"s")])
    assert store.get_many([*keys, b"d"]) == [b"s", None, b"s", b"s"]


def test_sessions_that_redis_has_from_an_earlier_version_are_counted_and_dropped(redis_url: str, tmp_path: Path):
    redis = pytest.importorskip("redis")
    with closing(redis.Redis.from_url(redis_url)) as server:
        server.hset(f"{tmp_path}:sessions", mapping={"a": "old", "b": "old"})
    with closing(RedisStore(redis_url, prefix=str(tmp_path), max_users=2)) as store:
        store.claim(b"first")
        check_sizes(store, [b"a", b"b"], {b"a": b"old", b"b": b"old"})
        store.put_many([(b"c", b"new")], [Chunk(b"c", 0, 1, b"e")])
        assert len(store) == 2
        assert store.sizes().dropped == 1


def test_a_write_that_fails_changes_neither_states_nor_events_nor_sizes(tmp_path: Path):
    with closing(SQLiteStore(tmp_path / "s.db", max_users=2)) as store:
        store.put_many([(b"a", b"old"), (b"b", b"old")], [Chunk(b"a", 0, 1, b"event")])
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages + 20}")
        with pytest.raises(SessionStoreError, match="is full; check that the disk has space"):
            store.put_many([(b"a", b"new"), (b"c", b"new")], [Chunk(b"a", 1, 2, bytes(1 << 20))])
        check_sizes(store, [b"a", b"b", b"c"], {b"a": b"old", b"b": b"old"})
        assert store.events_of([b"a"]) == [[b"event"]]
        # When all is counted, and the oldest user cannot be dropped.
        no = "BEGIN SELECT RAISE(ABORT, 'no space'); END"
        store._connection.execute(f"CREATE TEMP TRIGGER no BEFORE DELETE ON main.sessions {no}")
        with pytest.raises(SessionStoreError, match="no space"):
            store.put_many([(b"c", b"new")], [Chunk(b"c", 0, 1, b"event")])
        check_sizes(store, [b"a", b"b", b"c"], {b"a": b"old", b"b": b"old"})


@pytest.mark.parametrize("store", [InMemoryStore, lambda **limits: SQLiteStore("s.db", **limits), RedisStore])
@pytest.mark.parametrize("name", ["max_bytes", "max_users", "idle_seconds", "keep_events"])
def test_limits_out_of_range_are_refused(store: Callable[..., SessionStore], name: str):
    given = {"url": "redis://127.0.0.1:1"} if store is RedisStore else {}
    with pytest.raises(InputError, match=f"{name}=-1 must be"):
        store(**given, **{name: -1})


def test_threads_share_a_store(store: StateStore):
    errors = []

    def work(number: int) -> None:
        try:
            for t in range(20):
                store.put_many([(b"%d" % number, b"%d" % t), (b"%d-%d" % (number, t), b"x")])
                assert store.get_many([b"%d" % number]) == [b"%d" % t]
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(store) == 4 * 21


def test_a_file_has_what_it_had_when_it_is_opened_again(tmp_path: Path):
    first = SQLiteStore(tmp_path / "s.db")
    first.claim(b"whose")
    first.put_many([(b"a", b"1"), (b"b", b"2")])
    first.close()
    second = SQLiteStore(str(tmp_path / "s.db"))
    assert second.claim(b"other") == b"whose"
    assert second.get_many([b"a", b"b"]) == [b"1", b"2"]
    second.verify()
    second.close()
    with pytest.raises(SessionStoreError, match=r"s\.db cannot be used: Cannot operate on a closed database"):
        second.get_many([b"a"])


def test_what_is_acknowledged_is_in_the_file_though_nothing_was_closed(tmp_path: Path):
    store = SQLiteStore(tmp_path / "s.db")
    store.put_many([(b"a", b"1")])
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tmp_path.glob("s.db*"):
        shutil.copy(file, copy)
    settings = store._connection
    assert settings.execute("PRAGMA synchronous").fetchone() == (2,)
    assert settings.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()
    with closing(SQLiteStore(copy / "s.db")) as copied:
        assert copied.get_many([b"a"]) == [b"1"]


def test_a_file_in_use_is_refused_and_free_when_closed(tmp_path: Path):
    first = SQLiteStore(tmp_path / "s.db")
    first.put_many([(b"a", b"1")])
    with pytest.raises(SessionStoreError, match=r"s\.db cannot be used: another process has it open; close it"):
        SQLiteStore(tmp_path / "s.db", busy_seconds=0.05)
    threading.Timer(0.2, first.close).start()
    with closing(SQLiteStore(tmp_path / "s.db", busy_seconds=20)) as second:
        assert second.get_many([b"a"]) == [b"1"]


def other_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE songs (name TEXT)")
    connection.close()


def later_version(path: Path) -> None:
    with closing(SQLiteStore(path)) as store:
        store.claim(b"whose")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 9")
    connection.close()


def cut(path: Path) -> None:
    store = SQLiteStore(path)
    store.put_many([(b"%d" % n, bytes(2000)) for n in range(50)])
    store.close()
    path.write_bytes(path.read_bytes()[:9000])


def opened_and_read(path: Path) -> None:
    with closing(SQLiteStore(path)) as store:
        store.get_many([b"%d" % n for n in range(50)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path: path.write_text("user,item\n" * 1000),
            "it is not a store of sessions; give another path",
        ),
        (other_database, "is an SQLite file of another program; give another path"),
        (later_version, "is a store of sessions of version 9, expected 3; move it away"),
        (cut, r"it is damaged \(.*malformed\); move it away"),
        (lambda path: path.mkdir(), "cannot be used: unable to open database file"),
    ],
)
def test_what_is_no_store_is_refused_and_left_alone(tmp_path: Path, make: Callable, message: str):
    path = tmp_path / "s.db"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(SessionStoreError, match=message):
        opened_and_read(path)
    assert before is None or path.read_bytes() == before


def test_damage_inside_a_file_is_found(tmp_path: Path):
    path = tmp_path / "s.db"
    store = SQLiteStore(path)
    store.put_many([(b"%d" % n, b"%d" % n * 400) for n in range(50)])
    store.close()
    data = bytearray(path.read_bytes())
    place = data.index(b"4040") // 4096 * 4096
    data[place : place + 100] = bytes(100)
    path.write_bytes(data)
    with pytest.raises(SessionStoreError, match=r"s\.db is damaged: .*; move it away to start with new sessions$"):
        SQLiteStore(path)
    # A large file is not read when it is opened.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("seqrec.inference.sessions.stores.sqlite_file.CHECKED_BYTES", 0)
        with closing(SQLiteStore(path)) as store, pytest.raises(SessionStoreError, match=r"s\.db .*damaged"):
            store.verify()


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(MissingInputError, match=r"nowhere/s\.db is in a folder that does not exist; make it"):
        SQLiteStore(tmp_path / "nowhere" / "s.db")


def test_a_full_disk_changes_nothing(tmp_path: Path):
    with closing(SQLiteStore(tmp_path / "s.db")) as store:
        store.put_many([(b"a", b"old")])
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages + 20}")
        with pytest.raises(SessionStoreError, match="is full; check that the disk has space"):
            store.put_many([(b"a", b"new"), (b"b", bytes(1 << 20))])
        assert store.get_many([b"a", b"b"]) == [b"old", None]
        store.put_many([(b"b", b"small")])
        assert store.get_many([b"b"]) == [b"small"]


def test_a_server_that_is_away_is_named():
    with pytest.raises(
        SessionStoreError, match=r"at redis://:\*\*\*@127\.0\.0\.1:1 cannot be used: Error .*; start it"
    ):
        RedisStore("redis://:secret@127.0.0.1:1", timeout_seconds=0.5)
    with pytest.raises(InputError, match="url='localhost' is no address of a Redis server"):
        RedisStore("localhost")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict:
    """What the Redis client was made with; the server always answers."""
    redis = pytest.importorskip("redis")
    found: dict = {}

    def from_url(url: str, **options: object) -> object:
        found.update(redis.connection.parse_url(url), **{name: value for name, value in options.items() if value})
        return type("Client", (), {"ping": lambda self: True})()

    monkeypatch.setattr(redis.Redis, "from_url", from_url)
    monkeypatch.delenv("SEQREC_REDIS_PASSWORD", raising=False)
    return found


def test_the_password_of_redis_is_the_files_or_else_the_environments(
    asked: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert not RedisStore("redis://somewhere").password_in_url
    assert "password" not in asked
    monkeypatch.setenv("SEQREC_REDIS_PASSWORD", "of-the-environment")
    RedisStore("redis://somewhere")
    assert asked["password"] == "of-the-environment"
    path = tmp_path / "password"
    path.write_text("of-the-file\n")
    path.chmod(0o600)
    assert not RedisStore("redis://somewhere", password_file=str(path)).password_in_url
    assert asked["password"] == "of-the-file"
    path.chmod(0o644)
    with pytest.raises(InputError, match=f"password_file={path} can be read by every user .*: chmod 600 {path}"):
        RedisStore("redis://somewhere", password_file=str(path))
    with pytest.raises(InputError, match="password_file=gone does not exist"):
        RedisStore("redis://somewhere", password_file="gone")


@pytest.mark.parametrize(
    "url", ["redis://:hush@somewhere:1", "redis://ada:hush@somewhere", "redis://somewhere?password=hush&db=1"]
)
def test_a_password_in_the_url_is_used_and_not_shown(asked: dict, monkeypatch: pytest.MonkeyPatch, url: str):
    assert RedisStore(url).password_in_url
    assert asked["password"] == "hush"
    monkeypatch.setenv("SEQREC_REDIS_PASSWORD", "another")
    with pytest.raises(InputError, match="SEQREC_REDIS_PASSWORD have a password; remove that of the URL") as refused:
        RedisStore(url)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["rediss:/:hush@somewhere", "redis://:hush/@@somewhere:port", "http://a:hush@somewhere"]
)
def test_a_password_in_a_wrong_url_is_not_shown(asked: dict, url: str):
    with pytest.raises(InputError, match="is no address of a Redis server") as refused:
        RedisStore(url)
    assert "hush" not in str(refused.value)


def test_a_file_of_version_2_is_converted_with_its_events(tmp_path: Path):
    path = tmp_path / "s.db"
    with closing(sqlite3.connect(path)) as connection:
        for statement in (
            "CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL)",
            "CREATE TABLE sessions (user BLOB PRIMARY KEY, session BLOB NOT NULL)",
            "CREATE TABLE events (user BLOB, ends INTEGER, content BLOB NOT NULL, PRIMARY KEY (user, ends))",
            "CREATE TABLE usage (user BLOB PRIMARY KEY, used REAL NOT NULL, states INTEGER NOT NULL, "
            "events INTEGER NOT NULL)",
            "CREATE INDEX used ON usage (used, states, events)",
            "INSERT INTO sessions VALUES (x'61', x'0102')",
            "INSERT INTO events VALUES (x'61', 1, x'03')",
            "INSERT INTO usage VALUES (x'61', 5, 3, 1)",
            f"PRAGMA application_id = {0x73657153}",
            "PRAGMA user_version = 2",
        ):
            connection.execute(statement)
        connection.commit()
    for _ in range(2):
        with closing(SQLiteStore(path)) as store:
            check_sizes(store, [b"a"], {b"a": b"\1\2"})
            assert store.get_live([b"a"]) == [b"\1\2"]
            assert store.events_of([b"a"]) == [[b"\3"]]
    with closing(SQLiteStore(path, max_users=1)) as store:
        store.put_many([(b"b", b"new")])
        assert store.get_many([b"a", b"b"]) == [None, b"new"]
