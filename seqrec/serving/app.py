"""The application: routes, checks of requests, errors as JSON. Needs `seqrec[serve]`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from seqrec import __version__
from seqrec.errors import InputError
from seqrec.inference.sessions import SessionRecommender
from seqrec.serving.answers import error_response, refusal_of, validation_response
from seqrec.serving.batcher import Batcher
from seqrec.serving.guard import Guard
from seqrec.serving.history_work import HistoryWork
from seqrec.serving.limits import Limits
from seqrec.serving.metrics import Metrics
from seqrec.serving.routes import add_routes
from seqrec.serving.work import SessionWork

DESCRIPTION = 'Recommends the items that users will want next. Errors are answered as `{"error": reason}`.'


def create_app(
    recommender: SessionRecommender, *, limits: Limits | None = None, token: str | None = None
) -> FastAPI:
    """An ASGI application around a model and its users' sessions.

    Args:
        recommender: Whoever made it closes it, when the application has ended.
        limits: What requests may ask for; None is `Limits()`.
        token: What clients must send as `Authorization: Bearer <token>`; None asks for nothing.
    """
    limits = limits or Limits()
    metrics = Metrics()
    batching: dict[str, Any] = {"max_batch": limits.max_batch, "wait_seconds": limits.batch_wait_ms / 1000}
    sessions = Batcher(SessionWork(recommender, metrics), **batching)
    # In a thread of its own, so that a long history is not waited for by those who have a session.
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
        # Says in the schema what `Guard` asks for.
        dependencies=[] if token is None else [Security(HTTPBearer(auto_error=False))],
    )
    add_routes(app, recommender, limits, metrics, sessions, histories)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(InputError, _input_error)
    app.add_exception_handler(Exception, _failure)
    app.add_middleware(Guard, limits=limits, metrics=metrics, token=token)
    return app


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return validation_response(error.errors())


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, str(error.detail), error.headers)


async def _input_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, InputError)
    return refusal_of(error).response()


async def _failure(request: Request, error: Exception) -> Response:
    # A bug of ours: its traceback goes to the log.
    return error_response(500, "the server failed; its log says why")
