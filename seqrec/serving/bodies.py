"""Bodies of requests and answers: pydantic models, which also give the OpenAPI schema."""

# No `from __future__ import annotations`: the annotations contain limits that are known only at run time.

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StrictBool, StrictFloat, StrictInt, StrictStr, Tag

from seqrec.catalogue.conditions import MAX_LENGTH
from seqrec.serving.limits import Limits

MAX_ID_LENGTH = 256
INT64 = 2**63
Id = (
    Annotated[StrictInt, Field(ge=-INT64, lt=INT64)]
    | Annotated[StrictStr, Field(min_length=1, max_length=MAX_ID_LENGTH)]
)

Name = Annotated[StrictStr, Field(min_length=1, max_length=MAX_ID_LENGTH)]
Time = Annotated[StrictInt, Field(ge=-INT64, lt=INT64)]
Number = Annotated[StrictInt, Field(ge=-INT64, lt=INT64)] | StrictFloat
# Of a column of an event; null is a missing value.
Value = StrictBool | Number | Annotated[StrictStr, Field(max_length=MAX_ID_LENGTH)] | list[Number] | None


class Body(BaseModel):
    """Base of requests; it refuses misspelt fields."""

    model_config = ConfigDict(extra="forbid")


class EventBody(Body):
    """An event: a user interacted with an item."""

    user: Id = Field(description="The log's user id, or a new one; 7 and '7' are the same.")
    item: Id = Field(description="The log's item id.")
    time: Time | None = Field(
        None, description="Time in the log's unit; not before the user's newest event. Models that read time need it."
    )
    event_id: Name | None = Field(
        None, description="Name of the event: an event that is sent again with the same name counts once."
    )
    columns: dict[str, Value] | None = Field(
        None, description="Values of the event's columns by name, as in the log. Models that read columns need them."
    )


class Scored(BaseModel):
    """An item and its score; higher is better."""

    item: int | str
    score: float


class RecommendAnswer(BaseModel):
    """The best items, best first; fewer than k if no more are allowed."""

    items: list[Scored]


class ObserveAnswer(BaseModel):
    """Number of events that were kept: all that were sent."""

    observed: int


class HealthAnswer(BaseModel):
    """The model and sessions of the server."""

    model: str = Field(description="The model's title.")
    version: str = Field(description="Version of seqrec.")
    streams: bool = Field(description="Whether an event updates a state; otherwise histories are encoded again.")
    users: int = Field(description="Users with a session.")
    items: int = Field(description="Items of the catalogue.")
    checkpoint: str | None = Field(description="File of the model.")
    reloads: int = Field(description="How often the model of another checkpoint took over.")
    rebuilt_share: float = Field(
        description="Share of the sessions of the model before that have been made again from their events."
    )


class ReloadAnswer(BaseModel):
    """The model that answers from now on, its checkpoint, and for how long requests had to wait."""

    model: str
    checkpoint: str | None
    waited_seconds: float


class ProbeAnswer(BaseModel):
    """What was asked for: `live` or `ready`."""

    status: str


class ErrorAnswer(BaseModel):
    """The reason of a refusal."""

    error: str


def request_types(limits: Limits, max_k: int) -> tuple[Any, Any, Any]:
    """Return the types of bodies of /observe, /recommend and /similar that FastAPI checks, with a server's limits.

    Requests may ask for `max_k` items.
    """
    most = Field(max_length=limits.max_history)
    Ids = Annotated[list[Id], most]

    class Choose(Body):
        k: StrictInt = Field(min(10, max_k), ge=1, le=max_k, description="Number of items, best first.")
        candidates: Name | Annotated[Ids, Field(min_length=1)] | None = Field(
            None, description="The only items to choose from: a name that the server has for some, or their ids."
        )
        where: Annotated[StrictStr, Field(min_length=1, max_length=MAX_LENGTH)] | None = Field(
            None, description="Condition on the columns of items, such as: genres has 'jazz' and year > 1990."
        )

    class Similar(Choose):
        """The items most similar to an item."""

        item: Id = Field(description="The log's item id.")

    class Recommend(Choose):
        filter_seen: StrictBool = Field(True, description="Whether to leave out items that the user has seen.")
        block: Ids = Field([], description="Items that are not recommended; unknown ones are ignored.")
        at: Time | None = Field(
            None, description="When the user asks, in the log's unit, if the model reads it; else now, by our clock."
        )

    class RecommendToUser(Recommend):
        """Items for a user with observed events."""

        user: Id = Field(description="The user's id; 7 and '7' are the same.")

    class RecommendToHistory(Recommend):
        """Items for the events in the request; nothing is kept."""

        history: Ids = Field(min_length=1, description="Items of the history, oldest first.")
        times: Annotated[list[Time], most] | None = Field(None, description="Times of its events, in the log's unit.")
        columns: dict[str, Annotated[list[Value], most]] | None = Field(None, description="Columns of its events.")

    events = Annotated[list[EventBody], Field(min_length=1, max_length=limits.max_events)]
    observe = Annotated[
        Annotated[EventBody, Tag("event")] | Annotated[events, Tag("events")],
        Discriminator(lambda body: "events" if isinstance(body, list) else "event"),
    ]
    recommend = Annotated[
        Annotated[RecommendToUser, Tag("user")] | Annotated[RecommendToHistory, Tag("history")],
        Discriminator(lambda body: "history" if isinstance(body, dict) and "history" in body else "user"),
    ]
    return observe, recommend, Similar
