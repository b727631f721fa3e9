"""A server in a process of its own, and clients that keep their connections to it."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from seqrec.errors import InputError

START_SECONDS = 120
# Requests of each client that are not counted.
WARM_UP = 10


@dataclass
class Answers:
    """What clients saw.

    Attributes:
        seconds: Route -> time from sending a request to the end of its answer, each.
        errors: Answers other than 200, and connections that were lost.
        wall_seconds: From the first counted request to the end of the last.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    errors: int = 0
    wall_seconds: float = 0.0

    @property
    def requests(self) -> int:
        """Requests that were answered with 200."""
        return sum(map(len, self.seconds.values()))


@contextmanager
def running_server(settings: dict[str, Any]) -> Iterator[str]:
    """The address of a server, which must end with 0 when it is told to stop.

    Args:
        settings: See `seqrec.benchmark.serve_child`.

    Raises:
        InputError: the server did not start, or did not end well; the message ends with what it said.
    """
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, "-m", "seqrec.benchmark.serve_child", json.dumps(settings)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            if url:
                yield url
                process.terminate()
                process.wait(START_SECONDS)
            if not url or process.returncode != 0:
                errors.seek(0)
                raise InputError(
                    f"the server failed: {(errors.read().strip().splitlines() or ['no reason'])[-1]}"
                )
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def measure_clients(
    url: str, *, clients: int, requests: int, seconds: float, items: int | None, k: int, seed: int
) -> Answers:
    """Send requests from many clients at once, each on one connection, one at a time.

    Args:
        url: Of the server.
        clients: How many.
        requests: Counted requests of all clients together.
        seconds: After so much time no more are sent.
        items: Each client in turn observes one of so many items and asks for recommendations for the same user; None
            asks the bare application for nothing.
        k: Items asked for.
        seed: Of users and items.
    """
    answers = Answers()

    async def all_clients() -> None:
        deadline = time.perf_counter() + seconds
        plans = [_requests(client, requests // clients, items, k, seed) for client in range(clients)]
        # Nobody is counted before all have begun.
        begun = asyncio.Barrier(clients) if sys.version_info >= (3, 11) else None
        starts = await asyncio.gather(*(_client(url, plan, answers, deadline, begun) for plan in plans))
        answers.wall_seconds = time.perf_counter() - max(starts)

    asyncio.run(all_clients())
    return answers


def _requests(
    client: int, count: int, items: int | None, k: int, seed: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    draw = random.Random(f"{seed} {client}")
    for number in range(WARM_UP + count):
        if items is None:
            yield "/nothing", {}
        elif number % 2 == 0:
            user = f"user-{client}-{draw.randrange(50)}"
            yield "/observe", {"user": user, "item": draw.randint(1, items)}
        else:
            yield "/recommend", {"user": user, "k": k}


async def _client(
    url: str, plan: Iterator[tuple[str, dict[str, Any]]], answers: Answers, deadline: float, begun: Any
) -> float:
    """One client; returns when its counted requests began."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    start = time.perf_counter()
    try:
        for number, (route, body) in enumerate(plan):
            if number == WARM_UP:
                if begun is not None:
                    await begun.wait()
                start = time.perf_counter()
            content = json.dumps(body).encode()
            head = f"POST {route} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
            sent = time.perf_counter()
            if sent > deadline:
                break
            writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            status = await _answer(reader)
            if status != 200:
                answers.errors += 1
            elif number >= WARM_UP:
                answers.seconds.setdefault(route, []).append(time.perf_counter() - sent)
    except (OSError, asyncio.IncompleteReadError):
        answers.errors += 1
    finally:
        writer.close()
    return start


async def _answer(reader: asyncio.StreamReader) -> int:
    """Reads one answer; returns its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").lower().split("\r\n")
    length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
    await reader.readexactly(length)
    return int(lines[0].split()[1])
