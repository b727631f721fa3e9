"""What stands before the application: token, kind and size of bodies, slow clients, too many at once."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import pytest
from served_models import error_of, items_of, model, serving

from seqrec.inference.sessions import InMemoryStore, SessionRecommender
from seqrec.serving import Limits
from seqrec.serving.app import create_app

TOKEN = "a-token-of-some-length"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
LIMIT = 1000
EVENT = {"user": 1, "item": 10}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    limits = Limits(max_body_bytes=LIMIT, body_seconds=0.3)
    with serving(create_app(SessionRecommender(model()), limits=limits)) as url:
        yield url


def event_of(size: int) -> bytes:
    """An event whose JSON has so many bytes."""
    body = json.dumps(EVENT).encode()
    return body + b" " * (size - len(body))


def in_parts(body: bytes, size: int = 100) -> Iterator[bytes]:
    """The body in chunks, whose number and sum the head does not say."""
    yield from (body[begin : begin + size] for begin in range(0, len(body), size))


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_are_refused_from_the_first_byte_beyond_the_limit(url: str, chunked: bool):
    headers = {"Content-Type": "application/json"}
    for size, status in ((LIMIT, 200), (LIMIT + 1, 413), (3 * LIMIT, 413)):
        body = event_of(size)
        response = httpx.post(f"{url}/observe", content=in_parts(body) if chunked else body, headers=headers)
        if status == 200:
            assert response.status_code == 200
        else:
            assert error_of(response, 413) == "the body is larger than 1,000 bytes; send several requests"


def sent_raw(url: str, *parts: bytes, pause: float = 0.0) -> bytes:
    """All that the server answers to bytes as they are, until it closes the connection, or resets it, as TCP does if
    bytes that the server never read are on their way."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except OSError:  # cut off
                break
            time.sleep(pause)
        answer = b""
        with suppress(ConnectionResetError):
            while chunk := connection.recv(65536):
                answer += chunk
        return answer


HEAD = b"POST /observe HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def test_a_body_that_says_it_is_far_too_large_is_not_waited_for(url: str):
    answer = sent_raw(url, HEAD + b"Content-Length: 1000000000000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_an_endless_body_is_cut_off(url: str):
    chunk = b"400\r\n" + b" " * 0x400 + b"\r\n"
    begin = time.monotonic()
    answer = sent_raw(url, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 10)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    assert time.monotonic() - begin < 5


def test_a_slow_body_is_given_up(url: str):
    answer = sent_raw(url, HEAD + b"Content-Length: 100\r\n\r\n", b"{", pause=0.1)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the body took longer than 0.3 s to arrive" in answer


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/xml"])
def test_other_bodies_than_json_are_refused(url: str, content_type: str | None):
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = httpx.post(f"{url}/observe", content=event_of(100), headers=headers)
    assert error_of(response, 415) == "the body must be JSON; send Content-Type: application/json"


def test_json_with_parameters_of_its_type_is_taken(url: str):
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert httpx.post(f"{url}/observe", content=event_of(100), headers=headers).status_code == 200


def test_a_token_is_asked_for_at_every_route_and_is_in_the_schema():
    app = create_app(SessionRecommender(model()), token=TOKEN)
    with serving(app) as url, httpx.Client(base_url=url) as client:
        for headers in (
            {},
            {"Authorization": TOKEN},
            {"Authorization": "Bearer"},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": f"Bearer {TOKEN[:-1]}"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": b"Bearer \xff\xfe"},
        ):
            for method, path in (
                ("POST", "/observe"),
                ("POST", "/recommend"),
                ("GET", "/health"),
                ("GET", "/metrics"),
                ("GET", "/openapi.json"),
                ("GET", "/docs"),
                ("DELETE", "/users/1"),
                ("POST", "/live"),
                ("POST", "/ready"),
            ):
                response = client.request(method, path, headers=headers)
                assert error_of(response, 401).startswith("the token is missing or wrong")
                assert response.headers["www-authenticate"] == "Bearer"
        for probe in ("/live", "/ready"):
            assert client.get(probe).status_code == 200
        assert client.post("/observe", json=EVENT, headers=AUTHORIZED).status_code == 200
        items_of(client.post("/recommend", json={"user": 1}, headers={"Authorization": f"bearer {TOKEN}"}))
        schema = client.get("/openapi.json", headers=AUTHORIZED).json()
        assert schema["components"]["securitySchemes"] == {"HTTPBearer": {"type": "http", "scheme": "bearer"}}
        assert schema["paths"]["/observe"]["post"]["security"] == [{"HTTPBearer": []}]
        assert "security" not in schema["paths"]["/live"]["get"]


class HeldStore(InMemoryStore):
    """Answers when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.resume = threading.Event()

    def get_live(self, keys):
        assert self.resume.wait(20)
        return super().get_live(keys)


def test_bodies_of_all_requests_together_are_bounded():
    store = HeldStore()
    limits = Limits(max_body_bytes=1000, max_waiting_bytes=2000)
    with serving(create_app(SessionRecommender(model(), store), limits=limits)) as url, ThreadPoolExecutor(2) as pool:
        headers = {"Content-Type": "application/json"}

        def send() -> httpx.Response:
            return httpx.post(f"{url}/observe", content=event_of(900), headers=headers, timeout=20)

        held = [pool.submit(send) for _ in range(2)]
        deadline = time.monotonic() + 10
        while "seqrec_requests_in_work 3" not in httpx.get(f"{url}/metrics").text:
            assert time.monotonic() < deadline
        reason = error_of(send(), 503)
        assert reason == "the requests in progress have 2,000 bytes; try again in a second"
        store.resume.set()
        assert [each.result().status_code for each in held] == [200] * 2
        assert send().status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:80"}, 200),
        ({"Host": "recs.example.org:8000"}, 200),
        ({"Host": "RECS.example.org."}, 200),
        ({"Host": "10.1.2.3:8000"}, 200),
        ({"Host": "[2001:db8::1]:8000"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "localhost.evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:80"}, 421),
        ({"Host": "[::1"}, 421),
        ({"Host": "localhost", "Origin": "http://localhost:3000"}, 200),
        ({"Host": "10.1.2.3:8000", "Origin": "http://10.1.2.3:8000"}, 200),
        ({"Host": "localhost", "Origin": "https://recs.example.org"}, 200),
        ({"Host": "localhost", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost", "Origin": "http://10.1.2.3"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
    ],
)
def test_requests_for_other_hosts_and_of_other_sites_are_refused(named: str, headers: dict, status: int):
    response = httpx.get(f"{named}/openapi.json", headers=headers)
    if status == 200:
        assert response.status_code == 200
    else:
        reason = error_of(response, status)
        assert ("--allowed_hosts" if status == 421 else "may not use this server") in reason
        assert httpx.delete(f"{named}/users/1", headers=headers).status_code == status
    # Load balancers ask by addresses and names of their own.
    assert httpx.get(f"{named}/live", headers=headers).status_code == 200


@pytest.fixture(scope="module")
def named() -> Iterator[str]:
    with serving(create_app(SessionRecommender(model()), allowed_hosts=["recs.example.org"])) as url:
        yield url


def test_all_hosts_can_be_allowed():
    with serving(create_app(SessionRecommender(model()), allowed_hosts=["*"])) as url:
        headers = {"Host": "any.example", "Origin": "http://other.example"}
        assert httpx.get(f"{url}/health", headers=headers).status_code == 200


def test_more_requests_than_allowed_are_told_to_come_again():
    store = HeldStore()
    app = create_app(SessionRecommender(model(), store), limits=Limits(max_requests=4))
    with serving(app) as url, ThreadPoolExecutor(4) as pool:
        held = [pool.submit(httpx.post, f"{url}/observe", json=EVENT, timeout=20) for _ in range(4)]
        deadline = time.monotonic() + 10
        while (response := httpx.get(f"{url}/openapi.json")).status_code != 503:
            assert time.monotonic() < deadline
        assert error_of(response, 503) == "4 requests are already in progress; try again in a second"
        assert response.headers["retry-after"] == "1"
        store.resume.set()
        assert [each.result().status_code for each in held] == [200] * 4
        assert httpx.post(f"{url}/observe", json=EVENT).status_code == 200
