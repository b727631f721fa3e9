"""Answers as HTTP responses: JSON, and errors as a status and `{"error": reason}`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from seqrec.errors import DamagedSessionError, InputError, LateEventError, SessionStoreError, UnknownUserError

# Longest reason, as reasons quote the request.
MAX_REASON = 600
# Most bad fields that are named.
MAX_SHOWN = 3
# Kinds of bodies of routes that take several.
BODY_KINDS = ("event", "events", "user", "history")
# The first class that fits decides; any other `InputError` is 422.
STATUSES: tuple[tuple[type[InputError], int], ...] = (
    (UnknownUserError, 404),
    (LateEventError, 409),
    (DamagedSessionError, 409),
    (SessionStoreError, 503),
)


class RefusedError(Exception):
    """A request that is answered with an HTTP status and a reason, one line for the client."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = headers

    def response(self) -> Response:
        """Return the refusal as a response."""
        return error_response(self.status, self.reason, self.headers)


def refusal_of(error: InputError) -> RefusedError:
    """Return the refusal for one of our errors."""
    status = next((status for kind, status in STATUSES if isinstance(error, kind)), 422)
    # A request for one user's items has no entry numbers.
    reason = str(error).removeprefix("requests[0]: ")
    return RefusedError(status, reason, {"Retry-After": "1"} if status == 503 else None)


def validation_response(errors: Sequence[Mapping[str, Any]]) -> Response:
    """Return the response to a body with errors, which FastAPI passes on from pydantic."""
    if errors[0]["type"] == "json_invalid":
        place, reason = errors[0]["loc"][-1], errors[0]["ctx"]["error"]
        return error_response(400, f"the body is not JSON: {reason} at character {place}")
    reasons: dict[str, list[Mapping[str, Any]]] = {}
    for error in errors:
        # ("body", kind of body if it has one, field, .., kind of id); we name the kinds.
        _, *path = (str(part) for part in error["loc"] if not str(part).startswith(("constrained-", "list[")))
        if path[:1] and path[0] in BODY_KINDS and (len(path) > 1 or error["type"] != "extra_forbidden"):
            del path[0]
        reasons.setdefault(".".join(path) or "the body", []).append(error)
    shown = [f"{field}: {_reason(found)}" for field, found in reasons.items()]
    more = f"; and {len(shown) - MAX_SHOWN} more" if len(shown) > MAX_SHOWN else ""
    return error_response(422, "; ".join(shown[:MAX_SHOWN]) + more)


def _reason(errors: Sequence[Mapping[str, Any]]) -> str:
    """Return why a field is refused: the errors of its own kind of id, or that it is of neither kind."""
    of_kind = [error for error in errors if error["type"] not in ("int_type", "string_type")]
    return " or ".join(error["msg"] for error in of_kind or errors)


def json_response(answer: Mapping[str, Any]) -> Response:
    """Return an answer with status 200."""
    return Response(json.dumps(answer), media_type="application/json")


def error_response(status: int, reason: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return `{"error": reason}`, for any characters in the reason."""
    shown = reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]} .."
    # Escaped beyond ASCII, as names of unknown fields may contain characters that UTF-8 cannot encode.
    return Response(json.dumps({"error": shown}), status, headers, "application/json")
