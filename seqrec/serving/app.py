"""The HTTP application: routes, checks of requests, and errors as JSON. Needs `seqrec[serve]`."""

# No `from __future__ import annotations`: the types of bodies are known only when the routes are made.

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Path, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from seqrec.aliases import __version__
from seqrec.errors import InputError, UnknownUserError
from seqrec.inference.sessions import Event, Request, Scored, SessionRecommender
from seqrec.serving.answers import error_response, refusal_of, validation_response
from seqrec.serving.batcher import Batcher
from seqrec.serving.bodies import (
    MAX_ID_LENGTH,
    ErrorAnswer,
    HealthAnswer,
    ObserveAnswer,
    RecommendAnswer,
    request_types,
)
from seqrec.serving.guard import Guard
from seqrec.serving.limits import Limits
from seqrec.serving.metrics import Metrics
from seqrec.serving.work import Count, Forget, HistoryWork, Observe, RecommendToHistory, SessionWork

DESCRIPTION = 'Recommends the items that users will want next. Errors are answered as `{"error": reason}`.'
REASONS = {
    400: "The body is not JSON, or was cut short.",
    401: "The token is missing or wrong.",
    404: "No event of the user is known.",
    408: "The body took too long to arrive.",
    409: "The event is older than the user's newest, or the user's session is damaged: forget the user.",
    413: "The body is too large.",
    415: "The Content-Type is not JSON.",
    422: "A field is missing, unknown or out of range, or an item is not in the catalogue.",
    503: "Too many requests are in progress, or the sessions cannot be reached: try again later.",
}
BODY = (400, 401, 408, 413, 415, 422, 503)


def create_app(recommender: SessionRecommender, *, limits: Limits | None = None, token: str | None = None) -> FastAPI:
    """Return an ASGI application that serves a model and its users' sessions.

    Args:
        recommender: Model and sessions. Its owner closes it after the application has ended.
        limits: Limits of requests; None is `Limits()`.
        token: Token that clients must send as `Authorization: Bearer <token>`; None needs none.

    Example:
        >>> from seqrec import Popularity, SessionRecommender
        >>> from seqrec.data.vocabulary import Vocabulary
        >>> model = Popularity(num_items=3)
        >>> model.item_vocabulary = Vocabulary(["apple", "bread", "cheese"])
        >>> create_app(SessionRecommender(model)).title
        'seqrec: Popularity'
    """
    limits = limits or Limits()
    metrics = Metrics()
    batching: dict[str, Any] = {"max_batch": limits.max_batch, "wait_seconds": limits.batch_wait_ms / 1000}
    sessions = Batcher(SessionWork(recommender, metrics), **batching)
    # A separate thread, so that users with a session do not wait for long histories.
    histories = Batcher(HistoryWork(recommender.model, metrics), **batching)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        sessions.start()
        histories.start()
        yield
        await sessions.close()
        await histories.close()

    app = FastAPI(
        title=f"seqrec: {recommender.model.title}",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        # Describes in the schema the token that `Guard` checks.
        dependencies=[] if token is None else [Security(HTTPBearer(auto_error=False))],
    )
    num_items = recommender.model.scorer().num_items
    _add_work(app, *request_types(limits, num_items), sessions, histories)
    _add_state(app, recommender, num_items, metrics, sessions)
    for kind in (RequestValidationError, HTTPException, InputError, Exception):
        app.add_exception_handler(kind, _error)
    app.add_middleware(Guard, limits=limits, metrics=metrics, token=token)
    return app


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the schema of a route's errors."""
    return {status: {"model": ErrorAnswer, "description": REASONS[status]} for status in statuses}


def _add_work(app: FastAPI, Observed: Any, Recommended: Any, sessions: Batcher, histories: Batcher) -> None:
    @app.post("/observe", response_model=ObserveAnswer, responses=_errors(*BODY, 409))
    async def observe(body: Observed) -> Response:
        """Take in one event, or several in order: all of them or none. An answer means that they are kept."""
        events = [Event(each.user, each.item, each.time) for each in (body if isinstance(body, list) else [body])]
        await sessions.submit(Observe(events))
        return _json({"observed": len(events)})

    @app.post("/recommend", response_model=RecommendAnswer, responses=_errors(*BODY, 404, 409))
    async def recommend(body: Recommended) -> Response:
        """Recommend items to a user with observed events, or for a history in the request."""
        best: list[Scored]
        if hasattr(body, "history"):
            best = await histories.submit(RecommendToHistory(body.history, body.k, body.filter_seen, body.block))
        else:
            best = await sessions.submit(Request(body.user, body.k, body.filter_seen, body.block))
        return _json({"items": [{"item": item, "score": score} for item, score in best]})


def _add_state(
    app: FastAPI, recommender: SessionRecommender, num_items: int, metrics: Metrics, sessions: Batcher
) -> None:
    @app.get("/health", response_model=HealthAnswer, responses=_errors(401, 503))
    async def health() -> Response:
        """Describe the server. The number of users may be some seconds old."""
        return _json(
            {
                "model": recommender.model.title,
                "version": __version__,
                "streams": recommender.streams,
                "users": await sessions.submit(Count()),
                "items": num_items,
            }
        )

    @app.get("/metrics", response_class=Response, responses=_errors(401, 503))
    async def print_metrics() -> Response:
        """Return counts for Prometheus."""
        metrics.users.set(await sessions.submit(Count()))
        return Response(metrics.text(), headers={"Content-Type": metrics.content_type})

    @app.delete("/users/{user:path}", status_code=204, responses=_errors(401, 404, 422, 503))
    async def forget(user: Annotated[str, Path(min_length=1, max_length=MAX_ID_LENGTH)]) -> Response:
        """Delete all that is kept of a user, who is unknown afterwards."""
        if not await sessions.submit(Forget(user)):
            raise UnknownUserError(f"no event of user={user!r} is known; nothing to forget")
        return Response(status_code=204)


def _json(answer: dict[str, Any]) -> Response:
    return Response(json.dumps(answer), media_type="application/json")


async def _error(request: HTTPRequest, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        return validation_response(error.errors())
    if isinstance(error, HTTPException):
        return error_response(error.status_code, str(error.detail), error.headers)
    if isinstance(error, InputError):
        return refusal_of(error).response()
    # Starlette logs the traceback.
    return error_response(500, "the server failed; see its log")
