"""What requests and answers look like: pydantic models, which are the OpenAPI schema too."""

# No `from __future__ import annotations`: the limits in the annotations are known only when the models are made.

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StrictBool, StrictInt, StrictStr, Tag

from seqrec.serving.limits import Limits

MAX_ID_LENGTH = 256
INT64 = 2**63
Id = (
    Annotated[StrictInt, Field(ge=-INT64, lt=INT64)]
    | Annotated[StrictStr, Field(min_length=1, max_length=MAX_ID_LENGTH)]
)


class Body(BaseModel):
    """Base of requests: a misspelt field is refused."""

    model_config = ConfigDict(extra="forbid")


class EventBody(Body):
    """A user met an item."""

    user: Id = Field(description="The log's user id, or a new one; 7 and '7' are the same.")
    item: Id = Field(description="The log's item id.")
    time: Annotated[StrictInt, Field(ge=-INT64, lt=INT64)] | None = Field(
        None, description="In the log's unit; not before the user's newest event."
    )


class WishBody(Body):
    """What all who want recommendations may say."""

    k: StrictInt = Field(10, description="Items wanted, best first.")
    filter_seen: StrictBool = Field(True, description="Whether items that the user met are left out.")
    block: list[Id] = Field([], description="Items that may not be recommended; unknown ones do no harm.")


class Scored(BaseModel):
    """An item and its score; higher is better."""

    item: int | str
    score: float


class RecommendAnswer(BaseModel):
    """The best items, best first; fewer than k where no more may be recommended."""

    items: list[Scored]


class ObserveAnswer(BaseModel):
    """How many events were kept: all that were sent."""

    observed: int


class HealthAnswer(BaseModel):
    """What the server has."""

    model: str = Field(description="The model's title.")
    version: str = Field(description="Version of seqrec.")
    streams: bool = Field(
        description="Whether an event updates a state; otherwise histories are encoded again."
    )
    users: int = Field(description="Users with a session.")
    items: int = Field(description="Items of the catalogue.")


class ErrorAnswer(BaseModel):
    """Why a request was refused."""

    error: str


@dataclass(frozen=True)
class RequestTypes:
    """Types of request bodies with the limits of one server."""

    observe: Any
    recommend: Any


def request_types(limits: Limits, num_items: int) -> RequestTypes:
    """Bodies that FastAPI checks and describes.

    Args:
        limits: What requests may ask for.
        num_items: Size of the catalogue.
    """
    max_k = min(limits.max_k, num_items)
    Ids = Annotated[list[Id], Field(max_length=limits.max_history)]

    class Wish(WishBody):
        k: StrictInt = Field(min(10, max_k), ge=1, le=max_k, description="Items wanted, best first.")
        block: Ids = Field([], description="Items that may not be recommended; unknown ones do no harm.")

    class RecommendToUser(Wish):
        """Items for a user whose events were observed."""

        user: Id = Field(description="The user's id; 7 and '7' are the same.")

    class RecommendToHistory(Wish):
        """Items for somebody whose events are in the request; nothing is kept."""

        history: Ids = Field(min_length=1, description="Items that were met, oldest first.")

    events = Annotated[list[EventBody], Field(min_length=1, max_length=limits.max_events)]
    observe = Annotated[
        Annotated[EventBody, Tag("event")] | Annotated[events, Tag("events")],
        Discriminator(lambda body: "events" if isinstance(body, list) else "event"),
    ]
    recommend = Annotated[
        Annotated[RecommendToUser, Tag("user")] | Annotated[RecommendToHistory, Tag("history")],
        Discriminator(lambda body: "history" if isinstance(body, dict) and "history" in body else "user"),
    ]
    return RequestTypes(observe, recommend)
