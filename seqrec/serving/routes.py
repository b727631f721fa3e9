"""What the server answers to."""

# No `from __future__ import annotations`: bodies are types that are known only when the routes are made.

import json
from typing import Annotated, Any

from fastapi import FastAPI, Path
from starlette.responses import Response

from seqrec import __version__
from seqrec.errors import UnknownUserError
from seqrec.inference.sessions import Event, Request, Scored, SessionRecommender
from seqrec.serving.batcher import Batcher
from seqrec.serving.bodies import (
    MAX_ID_LENGTH,
    ErrorAnswer,
    HealthAnswer,
    ObserveAnswer,
    RecommendAnswer,
    RequestTypes,
    request_types,
)
from seqrec.serving.history_work import RecommendToHistory
from seqrec.serving.limits import Limits
from seqrec.serving.metrics import Metrics
from seqrec.serving.work import Count, Forget, Observe, Recommend

REASONS = {
    400: "The body is no JSON, or was not sent to its end.",
    401: "The token is missing or wrong.",
    404: "No event of the user is known.",
    408: "The body took too long to arrive.",
    409: "The event is older than the user's newest, or the user's session is damaged: forget the user.",
    413: "The body is too large.",
    415: "The body is not said to be JSON.",
    422: "A field is missing, unknown or out of range, or an item is not in the catalogue.",
    503: "Too many requests are in work, or the sessions are out of reach: try again later.",
}
BODY = (400, 401, 408, 413, 415, 422, 503)


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What the schema says of a route's errors."""
    return {status: {"model": ErrorAnswer, "description": REASONS[status]} for status in statuses}


def add_routes(
    app: FastAPI,
    recommender: SessionRecommender,
    limits: Limits,
    metrics: Metrics,
    sessions: Batcher,
    histories: Batcher,
) -> None:
    """Add all routes to an application.

    Args:
        app: Gets the routes.
        recommender: Model and sessions.
        limits: What requests may ask for.
        metrics: What `/metrics` prints.
        sessions: Does the work of `SessionWork`.
        histories: Does the work of `HistoryWork`.
    """
    num_items = recommender.model.scorer().num_items
    _add_work(app, request_types(limits, num_items), sessions, histories)
    _add_state(app, recommender, num_items, metrics, sessions)


def _add_work(app: FastAPI, bodies: RequestTypes, sessions: Batcher, histories: Batcher) -> None:
    @app.post("/observe", response_model=ObserveAnswer, responses=errors(*BODY, 409))
    async def observe(body: bodies.observe) -> Response:  # type: ignore[name-defined]
        """Take in one event, or several in order: all of them or none. Once answered, they are kept."""
        events = [
            Event(each.user, each.item, each.time) for each in (body if isinstance(body, list) else [body])
        ]
        await sessions.submit(Observe(events))
        return _json({"observed": len(events)})

    @app.post("/recommend", response_model=RecommendAnswer, responses=errors(*BODY, 404, 409))
    async def recommend(body: bodies.recommend) -> Response:  # type: ignore[name-defined]
        """The best items, for a user whose events were observed or for a history that is sent along."""
        best: list[Scored]
        if hasattr(body, "history"):
            wish = RecommendToHistory(body.history, body.k, body.filter_seen, body.block)
            best = await histories.submit(wish)
        else:
            best = await sessions.submit(Recommend(Request(body.user, body.k, body.filter_seen), body.block))
        return _json({"items": [{"item": item, "score": score} for item, score in best]})


def _add_state(
    app: FastAPI, recommender: SessionRecommender, num_items: int, metrics: Metrics, sessions: Batcher
) -> None:
    @app.get("/health", response_model=HealthAnswer, responses=errors(401, 503))
    async def health() -> Response:
        """What the server has. The number of users may be some seconds old."""
        return _json(
            {
                "model": recommender.model.title,
                "version": __version__,
                "streams": recommender.streams,
                "users": await sessions.submit(Count()),
                "items": num_items,
            }
        )

    @app.get("/metrics", response_class=Response, responses=errors(401, 503))
    async def print_metrics() -> Response:
        """Counts for Prometheus."""
        metrics.users.set(await sessions.submit(Count()))
        return Response(metrics.text(), headers={"Content-Type": metrics.content_type})

    @app.delete("/users/{user:path}", status_code=204, responses=errors(401, 404, 422, 503))
    async def forget(user: Annotated[str, Path(min_length=1, max_length=MAX_ID_LENGTH)]) -> Response:
        """Delete all that is kept of a user, who then is unknown."""
        if not await sessions.submit(Forget(user)):
            raise UnknownUserError(f"no event of user={user!r} is known; there is nothing to forget")
        return Response(status_code=204)


def _json(answer: dict[str, Any]) -> Response:
    return Response(json.dumps(answer), media_type="application/json")
