"""`seqrec serve` as a process: killed while clients send, stopped while requests are in work."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import torch
from forked_commands import ForkedCommand
from served_models import items_of
from served_processes import AUTHORIZED, TIMEOUT, TOKEN, server

from seqrec.data.store import EventStore
from seqrec.inference import load
from seqrec.inference.sessions import SessionRecommender

pytestmark = [pytest.mark.process, pytest.mark.filterwarnings("ignore::UserWarning")]
USERS = 8


def observe_until_it_dies(url: str, user: str, items: list[int], started: threading.Barrier) -> int:
    """Send a user's events one by one, the second when all have `started`; returns how many were acknowledged."""
    with httpx.Client(base_url=url, headers=AUTHORIZED, timeout=TIMEOUT) as client:
        for acknowledged, item in enumerate(items):
            try:
                response = client.post("/observe", json={"user": user, "item": item})
            except httpx.TransportError:
                return acknowledged
            assert response.status_code == 200
            if not acknowledged:
                started.wait(TIMEOUT)
    return len(items)


def half_a_request(url: str, body: bytes) -> socket.socket:
    """A connection on which all of a request but the last byte was sent."""
    address = urlsplit(url)
    connection = socket.create_connection((address.hostname, address.port), timeout=TIMEOUT)
    head = f"POST /observe HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    head += "Content-Type: application/json\r\n"
    connection.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body[:-1])
    return connection


def test_what_was_acknowledged_survives_kill_9_and_what_is_in_work_a_stop(checkpoint: Path, tmp_path: Path):
    log = EventStore.open(checkpoint.parent / "store")
    known = [int(item) for item in log.item_vocabulary.external_ids(range(1, len(log.item_vocabulary) + 1))]
    plans = {f"u{user}": [known[(5 * user + 3 * step) % len(known)] for step in range(2000)] for user in range(USERS)}
    with server(checkpoint, tmp_path) as (process, url), ThreadPoolExecutor(USERS) as pool:
        started = threading.Barrier(USERS + 1)
        counts = {user: pool.submit(observe_until_it_dies, url, user, items, started) for user, items in plans.items()}
        started.wait(TIMEOUT)
        time.sleep(1.0)
        process.send_signal(signal.SIGKILL)
        acknowledged = {user: count.result() for user, count in counts.items()}
    assert all(0 < count < 2000 for count in acknowledged.values()), acknowledged
    with server(checkpoint, tmp_path, "--log", str(checkpoint.parent / "store")) as (process, url):
        with httpx.Client(base_url=url, headers=AUTHORIZED, timeout=TIMEOUT) as client:
            # A user of the log goes on from there.
            (user,) = log.user_vocabulary.external_ids([1])
            response = client.post("/recommend", json={"user": int(user), "k": len(known)})
            assert set(items_of(response)) == set(known) - history_of(log, 1)
            found = {
                user: items_of(client.post("/recommend", json={"user": user, "filter_seen": False})) for user in plans
            }
        check_replay(checkpoint, plans, acknowledged, found)
        check_stop(process, url, known[0])
    assert not (tmp_path / "errors.txt").read_text()


def history_of(log: EventStore, user_id: int) -> set[int]:
    own = log.item_ids[log.offsets[user_id - 1] : log.offsets[user_id]]
    return {int(item) for item in log.item_vocabulary.external_ids(own)}


def check_replay(checkpoint: Path, plans: dict, acknowledged: dict, found: dict) -> None:
    """The sessions are those behind all acknowledged events, and at most one more that was under way."""
    replay = SessionRecommender(load(checkpoint))
    for user, items in plans.items():
        for item in items[: acknowledged[user]]:
            replay.observe(user, item)
        lists = []
        for item in (None, items[acknowledged[user]]):
            if item is not None:
                replay.observe(user, item)
            lists.append([scored.item for scored in replay.recommend(user, 10, filter_seen=False)])
        assert found[user] in lists


def check_stop(process: subprocess.Popen[bytes] | ForkedCommand, url: str, item: int) -> None:
    """A request in work is answered, new ones are not taken, and the process ends well."""
    with half_a_request(url, f'{{"user": 1, "item": {item}}}'.encode()) as connection:
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: not is_open(url))
        assert process.poll() is None
        connection.sendall(b"}")
        answer = b""
        while chunk := connection.recv(4096):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.endswith(b'{"observed": 1}')
    assert process.wait(TIMEOUT) == 0


def is_open(url: str) -> bool:
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname, address.port), timeout=1).close()
    except OSError:
        return False
    return True


def test_sighup_loads_the_checkpoint_of_the_newest_run(checkpoint: Path, tmp_path: Path):
    first, second, third = (tmp_path / "runs" / name / "best.ckpt" for name in ("first", "second", "third"))
    for file in (first, second, third):
        file.parent.mkdir(parents=True)
    shutil.copy(checkpoint, first)
    (item,) = load(checkpoint).item_vocabulary.external_ids([3]).tolist()
    errors = tmp_path / "errors.txt"
    with server(tmp_path / "runs", tmp_path, forked=True) as (process, url):
        with httpx.Client(base_url=url, headers=AUTHORIZED, timeout=TIMEOUT) as client:
            client.post("/observe", json={"user": "ada", "item": item})
            content = torch.load(checkpoint, weights_only=True)
            torch.nn.init.normal_(content["state_dict"]["items.table.weight"][1:], generator=torch.Generator())
            torch.save(content, second)
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: client.get("/health").json()["checkpoint"] == str(second))
            fresh = SessionRecommender(load(second))
            fresh.observe("ada", item)
            expected = [scored.item for scored in fresh.recommend("ada")]
            assert items_of(client.post("/recommend", json={"user": "ada"})) == expected
            assert not errors.read_text()
            third.write_bytes(second.read_bytes()[:1000])
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: errors.read_text().endswith("\n"))
            assert f"SIGHUP: {third} is damaged" in errors.read_text()
            assert items_of(client.post("/recommend", json={"user": "ada"})) == expected
            assert client.get("/health").json()["reloads"] == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT) == 0


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_a_second_signal_ends_at_once(checkpoint: Path, tmp_path: Path):
    # pytest -m slow tests/serving
    for first, second in ((signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)):
        with server(checkpoint, tmp_path) as (process, url), half_a_request(url, b"{}"):
            time.sleep(0.3)
            process.send_signal(first)
            time.sleep(0.5)
            assert process.poll() is None
            process.send_signal(second)
            assert process.wait(5) == -second
