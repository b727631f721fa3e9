"""The page of `seqrec serve --demo`, and the two routes that it calls. Needs `seqrec[serve]`."""

# No `from __future__ import annotations`: the types of bodies are known only when the routes are made.

import base64
import hashlib
import importlib.resources
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from fastapi import APIRouter, FastAPI
from pydantic import Field, StrictInt
from starlette.responses import Response

from seqrec.catalogue.item_columns import TITLES, ItemColumns
from seqrec.catalogue.recommend import item_ids_of
from seqrec.data.inspect import utc_text
from seqrec.data.schema import CATEGORICAL
from seqrec.encoders.event_time import UNITS, EventTime
from seqrec.errors import InputError
from seqrec.inference.sessions import KeptEvents
from seqrec.models import Recommender, SequentialRecommender
from seqrec.serving.answers import json_response
from seqrec.serving.bodies import Body, Id
from seqrec.serving.guard import DEMO_ROUTES, PAGE
from seqrec.serving.served import Serving
from seqrec.serving.work import Explain, Explained, ShownUser, ShowUser, request_time_now

# Newest events and recommendations on the page, and values of a column that it suggests.
SHOWN_EVENTS, SHOWN_ITEMS, SHOWN_VALUES = 20, 50, 50
NO_TITLES = (
    "Items have no titles, only ids: no column of items is named "
    f"{', '.join(TITLES[:-1])} or {TITLES[-1]}. Prepare the log with one, or start with --items FILE."
)
NO_EXPLANATIONS = "Recommendations have no explanations: {} does not read a sequence of events."
NO_EVENTS = (
    "the store of sessions keeps no events of this user; it keeps those that are observed after a start with "
    "--sessions.keep_events 10000"
)
ABOUT, USER = DEMO_ROUTES


def add_demo(app: FastAPI, routes: APIRouter, serving: Serving) -> None:
    """Add the page and the routes that it calls, which need the token if there is one."""
    content, headers = page()
    most = min(serving.max_k, SHOWN_ITEMS)

    class Looked(Body):
        user: Id
        k: StrictInt = Field(min(10, most), ge=1, le=most)
        item: Id | None = None

    @app.api_route(PAGE, methods=["GET", "HEAD"], include_in_schema=False)
    async def show() -> Response:
        return Response(content, headers=headers)

    @routes.get(ABOUT, include_in_schema=False)
    async def describe() -> Response:
        model = serving.now.model
        about = _about(model, ItemNames(model, serving.now.titles), most)
        return json_response({**about, "time": _next_time(model, None)})

    @routes.post(USER, include_in_schema=False)
    async def look(body: Looked) -> Response:
        """Return a user's newest events and recommendations; the events explain `item`, or else the first of these."""
        model, names = serving.now.model, ItemNames(serving.now.model, serving.now.titles)
        shown: ShownUser = await serving.sessions.submit(ShowUser(body.user, body.k, request_time_now(model)))
        item = body.item if body.item is not None else shown.best[0].item if shown.best else None
        explained, reason = None, "no item is left to recommend"
        if shown.events is None:
            reason = NO_EVENTS
        elif item is not None:
            try:
                explained = await serving.histories.submit(Explain(shown.events, item, body.user, shown.at))
            except InputError as error:
                reason = str(error)
        answer = {"user": str(body.user), **_shown(model, names, shown, explained)}
        if explained is None:
            return json_response({**answer, "explained": None, "reason": reason})
        (named,) = names.of([item])
        read = sum(each is not None for each in explained.contributions)
        why = {**named, "score": explained.score, "method": explained.method, "num_events": read}
        return json_response({**answer, "explained": why, "reason": None})


class ItemNames:
    """Ids and titles of items, as texts.

    Args:
        model: Knows the log's ids.
        titles: Columns of items, one of which has titles; None if there are none.

    Attributes:
        titled: Whether items have titles.
    """

    def __init__(self, model: Recommender, titles: ItemColumns | None) -> None:
        self._items = item_ids_of(model)
        self._titles = titles
        self.titled = titles is not None and titles.title_column is not None

    def of(self, items: Sequence[Any]) -> list[dict[str, str | None]]:
        """Return each item's id, as text, since JavaScript's numbers have fewer than 64 bits, and its title or None."""
        found: list[str | None] = [None] * len(items)
        if self._titles is not None and self.titled:
            found = self._titles.titles(self._items.lookup(items))
        return [{"item": str(item), "title": title} for item, title in zip(items, found, strict=True)]


def page() -> tuple[str, dict[str, str]]:
    """Return the page and its headers: no script or style but its own, and no request but to its server."""
    content = (importlib.resources.files("seqrec.serving") / "demo.html").read_text(encoding="utf-8")
    sources = []
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", content, re.DOTALL)
        sources.append(f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")
    policy = [
        "default-src 'none'",
        *sources,
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ]
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(policy),
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return content, headers


def _about(model: Recommender, names: ItemNames, max_k: int) -> dict[str, Any]:
    """Return what the page shows before a user is looked up: the model, what it reads, and what cannot be shown."""
    missing = [] if names.titled else [NO_TITLES]
    if not isinstance(model, SequentialRecommender):
        missing.append(NO_EXPLANATIONS.format(model.title))
    time = _event_time(model)
    columns = [
        {
            "name": column.name,
            "kind": column.kind,
            "values": [str(each) for each in column.values[:SHOWN_VALUES]] if column.kind == CATEGORICAL else [],
        }
        for column in model.event_columns
    ]
    return {
        "model": model.title,
        "items": len(item_ids_of(model)),
        "max_k": max_k,
        "unit": None if time is None else time.unit,
        "columns": columns,
        "missing": missing,
    }


def _shown(model: Recommender, names: ItemNames, shown: ShownUser, explained: Explained | None) -> dict[str, Any]:
    """Return the recommendations, and the newest events, the newest first, with their contributions."""
    events = shown.events or KeptEvents(0, [], None, [])
    newest = range(len(events.items))[: -SHOWN_EVENTS - 1 : -1]
    newest_events: list[dict[str, Any]] = [*names.of([events.items[place] for place in newest])]
    for event, place in zip(newest_events, newest, strict=True):
        event["time"] = None if events.times is None else _time_text(model, events.times[place])
        event["contribution"] = None if explained is None else explained.contributions[place]
    items = names.of([each.item for each in shown.best])
    return {
        "num_events": shown.num_events,
        "events": newest_events,
        "items": [{**item, "score": scored.score} for item, scored in zip(items, shown.best, strict=True)],
        "time": _next_time(model, shown.newest_time),
    }


def _event_time(model: Recommender) -> EventTime | None:
    """Return how the model reads the time that each event needs; None if it reads none."""
    return model.time if isinstance(model, SequentialRecommender) else None


def _next_time(model: Recommender, newest: int | None) -> str | None:
    """Return a time for a user's next event, if the model reads it: now, but not before the newest event."""
    time = _event_time(model)
    if time is None:
        return None
    now = time.timestamp(datetime.now(timezone.utc))
    return str(now if newest is None else max(now, newest))


def _time_text(model: Recommender, time: int) -> str:
    """Return a time as a date in UTC; the number if that is too far away, or only a model before read times."""
    read = _event_time(model)
    if read is None:
        return str(time)
    try:
        return utc_text(time, UNITS[read.unit])
    except OverflowError:
        return str(time)
