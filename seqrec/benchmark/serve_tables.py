"""The figures of `benchmark serve`, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from seqrec.benchmark.serve_stages import Answers
from seqrec.benchmark.table import aligned

ALL = "all"


@dataclass(frozen=True)
class RouteRow:
    """One route of one server.

    Attributes:
        server: "serve" or "bare".
        route: The route, or "all".
        requests: Requests answered with 200.
        per_second: Of all clients together.
        p50_ms: Milliseconds in which half of the answers were there.
        p99_ms: Milliseconds in which 99 of 100 were.
        errors: Answers other than 200, and lost connections, of the server.
    """

    server: str
    route: str
    requests: int
    per_second: float
    p50_ms: float
    p99_ms: float
    errors: int


def rows_of(server: str, answers: Answers) -> list[RouteRow]:
    """A row a route, and one of all where there are several."""
    routes = dict(sorted(answers.seconds.items()))
    if len(routes) > 1:
        routes[ALL] = [seconds for route in routes.values() for seconds in route]
    return [_row(server, route, seconds, answers) for route, seconds in routes.items()]


def as_text(settings: dict[str, Any], rows: Sequence[RouteRow]) -> str:
    """Return the table."""
    title = (
        f"{settings['clients']} clients at once; MambaRec, width {settings['d_model']}, {settings['items']:,} items, "
        f"sessions in SQLite, top {settings['k']}; bare: a FastAPI route that does nothing"
    )
    head = ["route", "requests", "requests/s", "p50 ms", "p99 ms", "errors"]
    cells = [
        [
            f"{row.server} {row.route}",
            f"{row.requests:,}",
            f"{row.per_second:,.0f}",
            f"{row.p50_ms:.1f}",
            f"{row.p99_ms:.1f}",
            str(row.errors),
        ]
        for row in rows
    ]
    return "\n".join([title, "", *aligned([head, *cells])])


def as_json(settings: dict[str, Any], rows: Sequence[RouteRow]) -> str:
    """Return settings and rows; the attributes are the keys."""
    return json.dumps({"settings": settings, "rows": [asdict(row) for row in rows]}, indent=2)


def _row(server: str, route: str, seconds: Sequence[float], answers: Answers) -> RouteRow:
    half, most = (float(1000 * value) for value in np.percentile(seconds, [50, 99]))
    return RouteRow(
        server, route, len(seconds), len(seconds) / answers.wall_seconds, half, most, answers.errors
    )
