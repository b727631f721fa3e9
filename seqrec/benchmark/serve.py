"""`seqrec benchmark serve`: answers of a server to many clients at once, compared with a route that does nothing."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqrec.benchmark import harness
from seqrec.benchmark.harness import Benchmark, Row
from seqrec.data.report_table import ReportTable
from seqrec.errors import InputError
from seqrec.serving import Limits
from seqrec.serving.command import check_packages

if TYPE_CHECKING:
    import httpx

START_SECONDS = 120
# Requests of each client that are not counted.
WARM_UP = 10
# Routes and bodies of requests.
Plan = Iterator[tuple[str, dict[str, Any]]]


def benchmark_serve(
    clients: int = 32,
    *,
    requests: int = 4000,
    seconds: float = 30.0,
    items: int = 10_000,
    d_model: int = 64,
    num_layers: int = 2,
    k: int = 10,
    batch_wait_ms: float = Limits.batch_wait_ms,
    folder: str | None = None,
    seed: int = 0,
    json_file: str | None = None,
) -> None:
    """Time `seqrec serve` under many clients at once. Half of their requests observe and half recommend.

    The server has a process of its own, MambaRec with random weights, and sessions in an SQLite file. Clients share
    this process and keep their connections. The yardstick is a bare FastAPI application, served alike.

    Args:
        clients: Clients at once.
        requests: Requests of all clients together, to each of the two servers.
        seconds: Time after which no more requests are sent.
        items: Size of the catalogue.
        d_model: Width.
        num_layers: Blocks.
        k: Items asked for.
        batch_wait_ms: See `seqrec serve`.
        folder: Folder for the sessions; None is the system's for temporary files.
        seed: Seed of users and items.
        json_file: File for the figures, as JSON.

    Raises:
        InputError: if an argument is out of range, a package is not installed, or a request fails.
    """
    check_packages()
    _httpx()
    settings: dict[str, Any] = {"clients": clients, "requests": requests, "items": items}
    settings |= {"d_model": d_model, "num_layers": num_layers, "k": k}
    harness.check_numbers(1, **settings)
    if requests < clients:
        raise InputError(f"requests={requests} must be at least one for each of clients={clients}")
    if k > items:
        raise InputError(f"k={k} must be at most items={items}")
    load: dict[str, Any] = {"clients": clients, "requests": requests, "seconds": seconds, "k": k, "seed": seed}
    benchmark = Benchmark(json_file, 2, settings=settings, rows=[])
    rows: list[Row] = benchmark["rows"]
    with tempfile.TemporaryDirectory(prefix="seqrec-serve-", dir=folder) as place:
        file = str(Path(place) / "sessions.sqlite")
        for kind, drawn in (("bare", None), ("serve", items)):
            child = {"kind": kind, "sessions": file, "batch_wait_ms": batch_wait_ms, **settings}
            with benchmark.cell(kind), running_server(child) as url:
                every = clients * (WARM_UP + requests // clients)
                stage = benchmark.progress.stage(kind, every, unit="requests")
                rows += rows_of(kind, measure_clients(url, items=drawn, answered=partial(stage.advance, 1), **load))
                stage.end()
    title = f"{clients} clients at once; MambaRec, width {d_model}, {items:,} items, sessions in SQLite, top {k}"
    title += "; bare: a FastAPI route that does nothing"
    benchmark.finish(title, route_table(rows))
    if errors := max((row["errors"] for row in rows), default=0):
        raise InputError(f"{errors} requests failed; none should")


@dataclass
class Answers:
    """Answers that clients received: by route, the seconds from sending each request to the end of its answer.

    `errors` counts answers other than 200, and lost connections. `wall_seconds` are those from the first counted
    request to the end of the last.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    errors: int = 0
    wall_seconds: float = 0.0


def rows_of(server: str, answers: Answers) -> list[Row]:
    """Return a row per route, and one of all if there are several.

    Returns:
        `server`: "serve" or "bare"; `route`, or "all"; `requests` answered with 200; `per_second`, requests of all
        clients; `p50_ms` and `p99_ms`, percentiles of the time of an answer; `errors` of the server.
    """
    routes = dict(sorted(answers.seconds.items()))
    if len(routes) > 1:
        routes["all"] = [seconds for route in routes.values() for seconds in route]
    rows = []
    for route, seconds in routes.items():
        counts = {"requests": len(seconds), "per_second": len(seconds) / answers.wall_seconds}
        half, most = (float(1000 * value) for value in np.percentile(seconds, [50, 99]))
        times = {"p50_ms": half, "p99_ms": most}
        rows.append({"server": server, "route": route, **counts, **times, "errors": answers.errors})
    return rows


def route_table(rows: list[Row]) -> ReportTable:
    """Return the table of routes."""
    text = "{server} {route}|{requests:,}|{per_second:,.0f}|{p50_ms:.1f}|{p99_ms:.1f}|{errors}"
    head = "route | requests | requests/s | p50 ms | p99 ms | errors"
    return harness.table(head, (text.format(**row).split("|") for row in rows))


@contextmanager
def running_server(settings: dict[str, Any]) -> Iterator[str]:
    """Yield the address of a server in a process of its own, and terminate it, which must end with status 0.

    See `seqrec.benchmark.serve_child` for the settings.

    Raises:
        InputError: if the server does not start, or ends with another status; the message is its last line.
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
                lines = errors.read().strip().splitlines()
                raise InputError(f"the server failed: {(lines or ['no reason'])[-1]}")
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def measure_clients(
    url: str,
    *,
    clients: int,
    requests: int,
    seconds: float,
    items: int | None,
    k: int,
    seed: int,
    answered: Callable[[], object] = lambda: None,
) -> Answers:
    """Send requests from many clients at once, each on one connection, one request at a time.

    Each client in turn observes one of `items` and asks for `k` recommendations for the same user. If `items` is None,
    it calls the route of the bare application. `answered` is called after each answer. See `benchmark_serve` for the
    other arguments.
    """
    httpx = _httpx()
    answers = Answers()

    async def one_client(number: int, deadline: float, begun: Any) -> float:
        # Return when the client's counted requests began.
        plan = _requests(number, requests // clients, items, k, seed)
        one = httpx.Limits(max_connections=1, max_keepalive_connections=1)
        async with httpx.AsyncClient(base_url=url, limits=one, timeout=None, trust_env=False, verify=False) as client:
            return await _send(client, plan, answers, deadline, begun, answered)

    async def all_clients() -> None:
        deadline = time.perf_counter() + seconds
        # Requests are counted from when all clients have warmed up.
        begun = asyncio.Barrier(clients) if sys.version_info >= (3, 11) else None
        starts = await asyncio.gather(*(one_client(number, deadline, begun) for number in range(clients)))
        answers.wall_seconds = time.perf_counter() - max(starts)

    asyncio.run(all_clients())
    return answers


def _httpx() -> Any:
    try:
        import httpx
    except ImportError:
        message = 'the clients need httpx, which is not installed: pip install "seqrec[benchmark]"'
        raise InputError(message) from None
    return httpx


def _requests(client: int, count: int, items: int | None, k: int, seed: int) -> Plan:
    draw = random.Random(f"{seed} {client}")
    for number in range(WARM_UP + count):
        if items is None:
            yield "/nothing", {}
        elif number % 2 == 0:
            user = f"user-{client}-{draw.randrange(50)}"
            yield "/observe", {"user": user, "item": draw.randint(1, items)}
        else:
            yield "/recommend", {"user": user, "k": k}


async def _send(
    client: httpx.AsyncClient, plan: Plan, answers: Answers, deadline: float, begun: Any, answered: Callable[[], object]
) -> float:
    start = time.perf_counter()
    try:
        for number, (route, body) in enumerate(plan):
            if number == WARM_UP:
                if begun is not None:
                    # Broken by a client that ended before: the others continue without it.
                    with suppress(RuntimeError):
                        await begun.wait()
                start = time.perf_counter()
            sent = time.perf_counter()
            if sent > deadline:
                break
            answer = await client.post(route, json=body)
            if answer.status_code != 200:
                answers.errors += 1
            elif number >= WARM_UP:
                answers.seconds.setdefault(route, []).append(time.perf_counter() - sent)
            answered()
    except _httpx().TransportError:
        answers.errors += 1
    finally:
        if begun is not None:
            await begun.abort()
    return start
