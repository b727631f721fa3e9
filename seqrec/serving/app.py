"""The HTTP application: routes, checks of requests, and errors as JSON. Needs `seqrec[serve]`."""

# No `from __future__ import annotations`: the types of bodies are known only when the routes are made.

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, FastAPI, Path, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from seqrec.aliases import __version__
from seqrec.catalogue.candidates import Candidates
from seqrec.catalogue.item_columns import ItemColumns
from seqrec.catalogue.recommend import item_ids_of, trained_length
from seqrec.errors import InputError, UnknownUserError
from seqrec.inference.sessions import Event, Request, Scored, SessionRecommender
from seqrec.models import Recommender
from seqrec.serving.answers import RefusedError, error_response, json_response, refusal_of, validation_response
from seqrec.serving.batcher import Batcher
from seqrec.serving.bodies import (
    MAX_ID_LENGTH,
    ErrorAnswer,
    HealthAnswer,
    ObserveAnswer,
    ProbeAnswer,
    RecommendAnswer,
    request_types,
)
from seqrec.serving.choices import Choices
from seqrec.serving.demo import add_demo
from seqrec.serving.guard import Guard
from seqrec.serving.health import Health
from seqrec.serving.history_work import HistoryWork
from seqrec.serving.hosts import CLOSE, Hosts
from seqrec.serving.limits import Limits
from seqrec.serving.metrics import Metrics
from seqrec.serving.work import (
    FindSimilar,
    Forget,
    Observe,
    RecommendToHistory,
    SessionWork,
    Sizes,
    request_time_now,
    row_bytes_of,
)

DESCRIPTION = 'Recommends the items that users will want next. Errors are answered as `{"error": reason}`.'
REASONS = {
    400: "The body is not JSON, or was cut short.",
    401: "The token is missing or wrong.",
    403: "The request comes from a web page of another site.",
    404: "No event of the user is known.",
    408: "The body took too long to arrive.",
    409: "The event is older than the user's newest, or the user's session is damaged: forget the user.",
    413: "The body is too large, or the sessions of its users are.",
    415: "The Content-Type is not JSON.",
    421: "The request names another host.",
    422: "A field is missing, unknown or out of range, or an item is not in the catalogue.",
    503: "Too many requests are in progress, or the sessions cannot be reached: try again later.",
}
ALL = (401, 403, 421, 503)
BODY = (*ALL, 400, 408, 413, 415, 422)


class NewState(NamedTuple):
    """The session state that a request may change."""

    row_bytes: int
    max_bytes: int

    def check(self, events: Sequence[Event]) -> None:
        """Refuse a request whose users' states have more bytes together."""
        users = len({event.user for event in events})
        if users > 1 and users * self.row_bytes > self.max_bytes:
            most = max(1, self.max_bytes // self.row_bytes)
            raise RefusedError(
                413,
                f"events: the states of {users:,} users take {users * self.row_bytes:,} bytes, and a request may have "
                f"{self.max_bytes:,}; send {most:,} users at a time",
            )


def create_app(
    recommender: SessionRecommender,
    *,
    limits: Limits | None = None,
    token: str | None = None,
    allowed_hosts: Sequence[str] = (),
    candidates: Mapping[str, Candidates] | None = None,
    columns: ItemColumns | None = None,
    demo: bool = False,
    titles: ItemColumns | None = None,
) -> FastAPI:
    """Return an ASGI application that serves a model and its users' sessions.

    Args:
        recommender: Model and sessions. Its owner closes it after the application has ended.
        limits: Limits of requests; None is `Limits()`.
        token: Token that clients must send as `Authorization: Bearer <token>`; None needs none.
        allowed_hosts: Names of this server besides `localhost` and IP addresses; requests that name others are
            refused. `*` allows all.
        candidates: Candidates that requests may name, by name.
        columns: Columns of items that conditions of requests (`where`) may read; None refuses conditions. Whoever may
            send requests can find out their values.
        demo: Whether `/` is a page on which one looks up users and adds events.
        titles: Columns of items, in which the page finds titles.

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
    row_bytes = row_bytes_of(recommender)
    batching: dict[str, Any] = {
        "max_batch": limits.max_batch,
        "wait_seconds": limits.batch_wait_ms / 1000,
        "max_size": limits.max_batch_events,
        "size_of": Sizes(row_bytes, trained_length(recommender.model)),
    }
    sessions = Batcher(SessionWork(recommender, metrics), **batching)
    # A separate thread, so that users with a session do not wait for long histories.
    histories = Batcher(HistoryWork(recommender.model, metrics), **batching)
    choices = Choices(item_ids_of(recommender.model), candidates or {}, columns)
    app = FastAPI(
        title=f"seqrec: {recommender.model.title}",
        version=__version__,
        description=DESCRIPTION,
        lifespan=_lifespan((sessions, histories), choices),
        redoc_url=None,
    )
    app.state.metrics = metrics
    # Describes in the schema the token that `Guard` checks.
    routes = APIRouter(dependencies=[] if token is None else [Security(HTTPBearer(auto_error=False))])
    num_items = recommender.model.scorer().num_items
    health = Health(sessions, histories, ready_seconds=limits.ready_seconds)
    new_state = NewState(row_bytes, limits.max_request_state_bytes)
    Observed, Recommended, Similar = request_types(limits, num_items)
    _add_work(routes, Observed, Recommended, sessions, histories, new_state, recommender.model, choices)
    _add_similar(routes, Similar, histories, choices)
    _add_state(routes, recommender, num_items, metrics, sessions, health)
    _add_probes(app, health)
    if demo:
        add_demo(app, routes, recommender, titles, min(limits.max_k, num_items), sessions, histories)
    app.include_router(routes)
    for kind in (RequestValidationError, HTTPException, RefusedError, InputError, Exception):
        app.add_exception_handler(kind, _error)
    app.add_middleware(Guard, limits=limits, metrics=metrics, token=token, hosts=Hosts(allowed_hosts), demo=demo)
    return app


def _lifespan(batchers: Sequence[Batcher], choices: Choices) -> Any:
    """Return what starts the threads of an application, and stops them in the end."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for batcher in batchers:
            batcher.start()
        yield
        for batcher in batchers:
            await batcher.close()
        choices.close()

    return lifespan


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the schema of a route's errors."""
    return {status: {"model": ErrorAnswer, "description": REASONS[status]} for status in statuses}


def _add_work(
    routes: APIRouter,
    Observed: Any,
    Recommended: Any,
    sessions: Batcher,
    histories: Batcher,
    new_state: NewState,
    model: Recommender,
    choices: Choices,
) -> None:
    @routes.post("/observe", response_model=ObserveAnswer, responses=_errors(*BODY, 409))
    async def observe(body: Observed) -> Response:
        """Take in one event, or several in order: all of them or none. An answer means that they are kept."""
        bodies = body if isinstance(body, list) else [body]
        events = [Event(each.user, each.item, each.time, each.event_id, each.columns) for each in bodies]
        new_state.check(events)
        await sessions.submit(Observe(events))
        return json_response({"observed": len(events)})

    @routes.post("/recommend", response_model=RecommendAnswer, responses=_errors(*BODY, 404, 409))
    async def recommend(body: Recommended) -> Response:
        """Recommend items to a user with observed events, or for a history in the request."""
        best: list[Scored]
        at = request_time_now(model) if body.at is None else body.at
        options = body.k, body.filter_seen, body.block, at
        chosen = await choices.of(body)
        if hasattr(body, "history"):
            given = RecommendToHistory(body.history, *options, body.times, chosen, body.columns)
            best = await histories.submit(given)
        else:
            best = await sessions.submit(Request(body.user, *options, chosen))
        return _scored(best)


def _add_similar(routes: APIRouter, Similar: Any, histories: Batcher, choices: Choices) -> None:
    @routes.post("/similar", response_model=RecommendAnswer, responses=_errors(*BODY))
    async def similar(body: Similar) -> Response:
        """Return the items most similar to an item, without the item itself; scores are cosines of item vectors."""
        return _scored(await histories.submit(FindSimilar(body.item, body.k, await choices.of(body))))


def _scored(best: Sequence[Scored]) -> Response:
    return json_response({"items": [{"item": item, "score": score} for item, score in best]})


def _add_state(
    routes: APIRouter,
    recommender: SessionRecommender,
    num_items: int,
    metrics: Metrics,
    sessions: Batcher,
    health: Health,
) -> None:
    @routes.get("/health", response_model=HealthAnswer, responses=_errors(*ALL))
    async def describe() -> Response:
        """Describe the server, also while the model does not answer. The number of users may be some seconds old."""
        return json_response(
            {
                "model": recommender.model.title,
                "version": __version__,
                "streams": recommender.streams,
                "users": (await health.sizes()).users,
                "items": num_items,
            }
        )

    @routes.get("/metrics", response_class=Response, responses=_errors(*ALL))
    async def print_metrics() -> Response:
        """Return counts for Prometheus."""
        text = metrics.text(await health.sizes(), recommender.rebuilt)
        return Response(text, headers={"Content-Type": metrics.content_type})

    @routes.delete("/users/{user:path}", status_code=204, responses=_errors(*ALL, 404, 422))
    async def forget(user: Annotated[str, Path(min_length=1, max_length=MAX_ID_LENGTH)]) -> Response:
        """Delete all that is kept of a user, who is unknown afterwards."""
        if not await sessions.submit(Forget(user)):
            raise UnknownUserError(f"no event of user={user!r} is known; nothing to forget")
        return Response(status_code=204)


def _add_probes(app: FastAPI, health: Health) -> None:
    @app.get("/live", response_model=ProbeAnswer)
    async def live() -> Response:
        """Answer at once, whatever the model does. Needs no token."""
        return json_response({"status": "live"})

    @app.get("/ready", response_model=ProbeAnswer, responses=_errors(503))
    async def ready() -> Response:
        """Answer if the model and the session store work, within a few seconds. Needs no token."""
        await health.check_ready()
        return json_response({"status": "ready"})


async def _error(request: HTTPRequest, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        return validation_response(error.errors())
    if isinstance(error, HTTPException):
        return error_response(error.status_code, str(error.detail), error.headers)
    if isinstance(error, RefusedError):
        return error.response()
    if isinstance(error, InputError):
        return refusal_of(error).response()
    # uvicorn logs the traceback, and closes the connection.
    return error_response(500, "the server failed; see its log", CLOSE)
