"""Refusals as HTTP: a status and `{"error": reason}`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from seqrec.errors import DamagedSessionError, InputError, LateEventError, SessionStoreError, UnknownUserError

# Reasons quote what was sent, which may be long.
MAX_REASON = 600
# Bad fields that are named.
MAX_SHOWN = 3
# Of the first that fits; any other `InputError` is 422.
STATUSES: tuple[tuple[type[InputError], int], ...] = (
    (UnknownUserError, 404),
    (LateEventError, 409),
    (DamagedSessionError, 409),
    (SessionStoreError, 503),
)


class RefusedError(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        reason: One line for the client.
        headers: Further headers.
    """

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = headers

    def response(self) -> Response:
        """The refusal as a response."""
        return error_response(self.status, self.reason, self.headers)


def refusal_of(error: InputError) -> RefusedError:
    """How an error of ours is answered."""
    status = next((status for kind, status in STATUSES if isinstance(error, kind)), 422)
    # Of a request for one user's items, the number is of no use to who sent it.
    reason = str(error).removeprefix("requests[0]: ")
    return RefusedError(status, reason, {"Retry-After": "1"} if status == 503 else None)


def validation_response(errors: Sequence[Mapping[str, Any]]) -> Response:
    """What is wrong with a body.

    Args:
        errors: What pydantic says of it, as FastAPI hands it on.
    """
    if errors[0]["type"] == "json_invalid":
        where, what = errors[0]["loc"][-1], errors[0]["ctx"]["error"]
        return error_response(400, f"the body is no JSON: {what} at character {where}")
    reasons: dict[str, list[Mapping[str, Any]]] = {}
    for error in errors:
        # ("body", kind of body, field, .., kind of id); the kinds are names of ours.
        place = [str(part) for part in error["loc"][2:] if not str(part).startswith("constrained-")]
        reasons.setdefault(".".join(place) or "the body", []).append(error)
    shown = [f"{place}: {_what(found)}" for place, found in reasons.items()]
    more = f"; and {len(shown) - MAX_SHOWN} more" if len(shown) > MAX_SHOWN else ""
    return error_response(422, "; ".join(shown[:MAX_SHOWN]) + more)


def _what(errors: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong with a field: with the kind of id that it is of, else that it is of neither."""
    of_kind = [error for error in errors if error["type"] not in ("int_type", "string_type")]
    return " or ".join(error["msg"] for error in of_kind or errors)


def error_response(status: int, reason: str, headers: Mapping[str, str] | None = None) -> Response:
    """`{"error": reason}`, whatever characters the reason has."""
    shown = reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]} .."
    # Escaped beyond ASCII: names of unknown fields may hold what UTF-8 cannot.
    return Response(json.dumps({"error": shown}), status, headers, "application/json")
