"""The HTTP application: routes, checks of requests, and errors as JSON. Needs `seqrec[serve]`."""

# No `from __future__ import annotations`: the types of bodies are known only when the routes are made.

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Path, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from seqrec.aliases import __version__
from seqrec.catalogue.candidates import Candidates
from seqrec.catalogue.item_columns import ItemColumns
from seqrec.errors import InputError, UnknownUserError
from seqrec.inference.sessions import Event, Request, Scored, SessionRecommender
from seqrec.models import Recommender
from seqrec.serving.answers import RefusedError, error_response, json_response, refusal_of, validation_response
from seqrec.serving.bodies import (
    MAX_ID_LENGTH,
    Body,
    ErrorAnswer,
    HealthAnswer,
    ObserveAnswer,
    ProbeAnswer,
    RecommendAnswer,
    ReloadAnswer,
    request_types,
)
from seqrec.serving.demo import add_demo
from seqrec.serving.guard import RELOAD, Guard
from seqrec.serving.hosts import CLOSE, Hosts
from seqrec.serving.limits import Limits
from seqrec.serving.metrics import Metrics
from seqrec.serving.served import Health, Loaded, Serving
from seqrec.serving.work import FindSimilar, Forget, Observe, RecommendToHistory, request_time_now

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
    checkpoint: str | None = None,
    load: Callable[[Recommender], Loaded] | None = None,
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
        checkpoint: The file of the model, as `/health` names it.
        load: Loads the model that takes over at `POST /reload` or SIGHUP, given the one that answers, with sessions in
            the same store; called in a thread. `served.check_successor` refuses a model that does not fit. None if the
            model stays.

    Example:
        >>> from seqrec import Popularity, SessionRecommender
        >>> from seqrec.data.vocabulary import Vocabulary
        >>> model = Popularity(num_items=3)
        >>> model.item_vocabulary = Vocabulary(["apple", "bread", "cheese"])
        >>> create_app(SessionRecommender(model)).title
        'seqrec: Popularity'
    """
    limits, metrics = limits or Limits(), Metrics()
    serving = Serving(Loaded(recommender, candidates, columns, titles, checkpoint), limits, metrics, load)
    app = FastAPI(
        title=f"seqrec: {recommender.model.title}",
        version=__version__,
        description=DESCRIPTION,
        lifespan=serving.lifespan,
        redoc_url=None,
    )
    app.state.metrics, app.state.serving = metrics, serving
    # Describes in the schema the token that `Guard` checks.
    routes = APIRouter(dependencies=[] if token is None else [Security(HTTPBearer(auto_error=False))])
    # FastAPI keeps the routes' functions for ever, so they refer to the model through `serving` alone.
    Observed, Recommended, Similar = request_types(limits, serving.max_k)
    _add_work(routes, Observed, Recommended, serving)
    _add_similar(routes, Similar, serving)
    _add_state(routes, serving, metrics)
    if load is not None:
        _add_reload(routes, serving)
    _add_probes(app, serving.health)
    if demo:
        add_demo(app, routes, serving)
    app.include_router(routes)
    for kind in (RequestValidationError, HTTPException, RefusedError, InputError, Exception):
        app.add_exception_handler(kind, _error)
    guarded: dict[str, Any] = {"limits": limits, "metrics": metrics, "gate": serving.gate}
    app.add_middleware(Guard, token=token, hosts=Hosts(allowed_hosts), demo=demo, **guarded)
    return app


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the schema of a route's errors."""
    return {status: {"model": ErrorAnswer, "description": REASONS[status]} for status in statuses}


def _add_work(routes: APIRouter, Observed: Any, Recommended: Any, serving: Serving) -> None:
    @routes.post("/observe", response_model=ObserveAnswer, responses=_errors(*BODY, 409))
    async def observe(body: Observed) -> Response:
        """Take in one event, or several in order: all of them or none. An answer means that they are kept."""
        bodies = body if isinstance(body, list) else [body]
        events = [Event(each.user, each.item, each.time, each.event_id, each.columns) for each in bodies]
        serving.now.new_state.check(events)
        await serving.sessions.submit(Observe(events))
        return json_response({"observed": len(events)})

    @routes.post("/recommend", response_model=RecommendAnswer, responses=_errors(*BODY, 404, 409))
    async def recommend(body: Recommended) -> Response:
        """Recommend items to a user with observed events, or for a history in the request."""
        best: list[Scored]
        at = request_time_now(serving.now.model) if body.at is None else body.at
        options = body.k, body.filter_seen, body.block, at
        chosen = await serving.now.choices.of(body)
        if hasattr(body, "history"):
            given = RecommendToHistory(body.history, *options, body.times, chosen, body.columns)
            best = await serving.histories.submit(given)
        else:
            best = await serving.sessions.submit(Request(body.user, *options, chosen))
        return _scored(best)


def _add_similar(routes: APIRouter, Similar: Any, serving: Serving) -> None:
    @routes.post("/similar", response_model=RecommendAnswer, responses=_errors(*BODY))
    async def similar(body: Similar) -> Response:
        """Return the items most similar to an item, without the item itself; scores are cosines of item vectors."""
        chosen = await serving.now.choices.of(body)
        return _scored(await serving.histories.submit(FindSimilar(body.item, body.k, chosen)))


def _scored(best: Sequence[Scored]) -> Response:
    return json_response({"items": [{"item": item, "score": score} for item, score in best]})


def _add_state(routes: APIRouter, serving: Serving, metrics: Metrics) -> None:
    @routes.get("/health", response_model=HealthAnswer, responses=_errors(*ALL))
    async def describe() -> Response:
        """Describe the server, also while the model does not answer. The number of users may be some seconds old."""
        users, now = (await serving.health.sizes()).users, serving.now
        return json_response(
            {
                "model": now.model.title,
                "version": __version__,
                "streams": now.recommender.streams,
                "users": users,
                "items": now.num_items,
                "checkpoint": now.checkpoint,
                "reloads": serving.reloads,
                "rebuilt_share": now.recommender.rebuilt_share,
            }
        )

    @routes.get("/metrics", response_class=Response, responses=_errors(*ALL))
    async def print_metrics() -> Response:
        """Return counts for Prometheus."""
        sizes, recommender = await serving.health.sizes(), serving.now.recommender
        text = metrics.text(sizes, recommender.rebuilt, recommender.rebuilt_share)
        return Response(text, headers={"Content-Type": metrics.content_type})

    @routes.delete("/users/{user:path}", status_code=204, responses=_errors(*ALL, 404, 422))
    async def forget(user: Annotated[str, Path(min_length=1, max_length=MAX_ID_LENGTH)]) -> Response:
        """Delete all that is kept of a user, who is unknown afterwards."""
        if not await serving.sessions.submit(Forget(user)):
            raise UnknownUserError(f"no event of user={user!r} is known; nothing to forget")
        return Response(status_code=204)


def _add_reload(routes: APIRouter, serving: Serving) -> None:
    reasons = {
        409: "Another checkpoint is being loaded.",
        422: "The checkpoint is damaged, or cannot continue the sessions.",
        503: "The checkpoint does not fit into memory.",
    }
    own: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer, "description": reason} for status, reason in reasons.items()
    }

    @routes.post(RELOAD, response_model=ReloadAnswer, responses=_errors(*BODY) | own)
    async def reload(body: Body) -> Response:
        """Load the server's checkpoint again; its model answers from then on, if it can continue the sessions."""
        seconds = await serving.reload()
        now = serving.now
        return json_response({"model": now.model.title, "checkpoint": now.checkpoint, "waited_seconds": seconds})


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
