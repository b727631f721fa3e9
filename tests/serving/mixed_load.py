"""Clients that mix right and wrong requests, as bytes over sockets; what they were answered, and how fast."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

USERS = 4000
WAIT_SECONDS = 60
Body = Callable[[random.Random], bytes]

WRONG_EVENTS: tuple[Body, ...] = (
    *(
        (lambda r, body=body: body)
        for body in (
            *(b"{", b"", b"[]", b"null", b"NaN", b'"x"', b"1e999", b"\xff\xfe{}", b"\xef\xbb\xbf{}"),
            b'{"user": NaN, "item": 1}',
            b'{"user": "a", "item": Infinity}',
            b'{"user": "a", "item": 1, "time": NaN}',
            b'{"user": "a", "item": 1, "time": 1e5}',
            b'{"user": "a", "item": 1, "time": 9223372036854775808}',
            b'{"user": "a", "item": 99999999999999999999999}',
            b'{"user": "a", "item": ' + b"9" * 5000 + b"}",
            b'{"user": "\\ud800", "item": 1}',
            b'{"\\ud800": 1}',
            b'{"user": true, "item": 1}',
            b'{"user": "", "item": 1}',
            b'{"user": "' + b"x" * 300 + b'", "item": 1}',
            b"[" * 2000 + b"]" * 2000,
            b'{"a":' * 900 + b"1" + b"}" * 900,
            b'{"user": "a", "item": 1, "__proto__": {}}',
            b'{"user": {"a": 1}, "item": [1]}',
            json.dumps([{"user": "a", "item": 1}] * 1001).encode(),
            json.dumps([{"user": "bad", "item": 1}, {"user": "bad", "item": "no such"}]).encode(),
        )
    ),
    lambda r: r.randbytes(r.randrange(200)),
)
WRONG_REQUESTS: tuple[bytes, ...] = (
    *(b'{"user": "nobody"}', b'{"user": "a", "k": 0}', b'{"user": "a", "k": 10000000}', b'{"user": "a", "k": 1.0}'),
    *(b'{"history": []}', b'{"history": [1], "user": "a"}', b'{"history": ["no such"]}', b'{"history": {"0": 1}}'),
    json.dumps({"history": [1] * 10_001}).encode(),
)


class Found(NamedTuple):
    """What clients were answered: seconds by route, and how often each status or error came."""

    seconds: dict[str, list[float]]
    statuses: dict[str, int]
    failures: list[str]


def request_of(r: random.Random, items: list[int]) -> tuple[str, bytes]:
    """A request and the name of its kind."""

    def post(path: str, body: Any) -> bytes:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        return head.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data

    def get(path: str, method: str = "GET") -> bytes:
        return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()

    user = f"u{int(USERS * r.random() ** 2)}"
    kinds: dict[str, tuple[float, Callable[[], bytes]]] = {
        "observe": (0.40, lambda: post("/observe", {"user": user, "item": r.choice(items)})),
        "observe list": (
            0.08,
            lambda: post(
                "/observe", [{"user": user, "item": r.choice(items)} for _ in range(r.choice((2, 5, 20, 100)))]
            ),
        ),
        "recommend": (0.24, lambda: post("/recommend", {"user": user, "k": r.choice((1, 10, 20))})),
        "history": (
            0.08,
            lambda: post("/recommend", {"history": r.choices(items, k=r.randrange(1, 400)), "block": items[:50]}),
        ),
        "health": (0.03, lambda: get("/health")),
        "metrics": (0.01, lambda: get("/metrics")),
        "forget": (0.005, lambda: get(f"/users/{user}", "DELETE")),
        "other route": (0.005, lambda: get(r.choice(("/nope", "/docs", "/openapi.json", "/users/%00%ff")))),
        "wrong observe": (0.10, lambda: post("/observe", r.choice(WRONG_EVENTS)(r))),
        "wrong recommend": (0.05, lambda: post("/recommend", r.choice(WRONG_REQUESTS))),
    }
    (name,) = r.choices(list(kinds), [share for share, _ in kinds.values()])
    return name, kinds[name][1]()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """The status of an answer, and whether the server closes the connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    await reader.readexactly(int(fields.get("content-length", 0)))
    return int(head.split()[1]), fields.get("connection") == "close"


async def client(url: str, seed: int, items: list[int], stop: float, found: Found) -> None:
    r, address = random.Random(seed), urlsplit(url)
    reader = writer = None
    while time.monotonic() < stop:
        if writer is None or reader is None:
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
        name, raw = request_of(r, items)
        if r.random() < 0.002:  # leaves in the middle
            writer.write(raw[: r.randrange(1, len(raw))])
            writer.close()
            writer = None
            continue
        begin = time.monotonic()
        try:
            writer.write(raw)
            status, closes = await asyncio.wait_for(answer(reader), WAIT_SECONDS)
        except (OSError, EOFError, asyncio.TimeoutError) as error:
            found.failures.append(f"{name}: {error!r}")
            writer.close()
            writer = None
            continue
        found.seconds[name].append(time.monotonic() - begin)
        found.statuses[f"{name} {status}"] += 1
        if status >= 500:
            found.failures.append(f"{name}: {status}")
        if closes:
            writer.close()
            writer = None


def mixed_load(url: str, clients: int, items: list[int], seconds: float) -> Found:
    """Run clients for some seconds."""

    async def main() -> Found:
        found = Found(defaultdict(list), Counter(), [])
        stop = time.monotonic() + seconds
        await asyncio.gather(*(client(url, seed, items, stop, found) for seed in range(clients)))
        return Found(dict(found.seconds), dict(found.statuses), found.failures)

    return asyncio.run(main())


def quantiles(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    p50, p99 = (1e3 * ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.99))
    return f"{len(ordered):,} times, p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {1e3 * ordered[-1]:.1f} ms"
