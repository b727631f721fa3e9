"""The columns of a log: those that every log has, and those that a `Schema` adds.

The interaction frame, which every source returns and `prepare` reads, is a polars LazyFrame, one event a row:

| column | type | meaning |
|---|---|---|
| `user_id` | Int64 or String, never null | the log's own id of the user |
| `item_id` | Int64 or String, never null | the log's own id of the item |
| `timestamp` | Int64, never null | time in the log's unit; the column is absent if the log has no times |
| any other | any | for the event filter; the store keeps those that `Schema.events` names |

Row order is log order. It orders a user's events if the log has no timestamps, and if timestamps tie.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from seqrec.errors import InputError
from seqrec.registry import did_you_mean

if TYPE_CHECKING:
    import polars as pl

USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"
CATEGORICAL, NUMERIC, CATEGORIES, VECTOR = KINDS = ("categorical", "numeric", "categories", "vector")
# Groups of columns, which are the attributes of a schema.
EVENTS, ITEMS, USERS = GROUPS = ("events", "items", "users")
# Between the values of a text that has several.
BETWEEN = "|"
# Characters that the name of a file cannot have on some system, and the one that ends a column's name in a file's.
_NOT_IN_NAMES = set('/\\:*?"<>|.') | {chr(code) for code in range(32)}


@dataclass(frozen=True)
class Schema:
    """The columns that a store keeps besides users, items and times. Each has a kind:

    - `categorical`: one of several values, text or integers. Code 0 is missing or unknown; the values have the codes
      1, 2, .. in ascending order.
    - `numeric`: a number. It is standardised: events by the mean and standard deviation of the training part, items
      and users by those of all items or users. Missing is 0 after that, the mean.
    - `categories`: several values, text or integers, such as genres: a list, or text with `|` between the values.
    - `vector`: a list of numbers, equally many in each row. A missing one is zeros.

    Args:
        events: Kind of each column of the log by its name. Events have no `categories`.
        items: Kind of each column of the source's tables of items.
        users: Kind of each column of the source's tables of users.

    Raises:
        InputError: if a kind is unknown, or if a name is used twice, is one of the columns that every log has, or
            cannot be part of a file's name.

    Example:
        >>> from seqrec import Schema
        >>> schema = Schema(events={"rating": "numeric"}, items={"genres": "categories", "year": "numeric"})
        >>> schema.items["genres"]
        'categories'
    """

    events: dict[str, str] = field(default_factory=dict)
    items: dict[str, str] = field(default_factory=dict)
    users: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for group in GROUPS:
            columns = getattr(self, group)
            if not isinstance(columns, Mapping):
                raise InputError(f"schema.{group}={columns!r} must be kinds by name, as in {{rating: numeric}}")
            object.__setattr__(self, group, dict(columns))
            for name, kind in columns.items():
                _check_column(group, name, kind)
                # Some file systems do not distinguish upper and lower case.
                if (other := seen.get(name.casefold())) is not None:
                    raise InputError(f"schema.{group}: the name {name!r} is also in {other}; rename one of the columns")
                seen[name.casefold()] = f"schema.{group}"

    def named(self) -> dict[str, dict[str, str]]:
        """Return the groups that have columns, as plain values."""
        return {group: columns for group in GROUPS if (columns := dict(getattr(self, group)))}


def _check_column(group: str, name: object, kind: object) -> None:
    if not isinstance(name, str) or not name or _NOT_IN_NAMES & set(name):
        raise InputError(f"schema.{group}: {name!r} must become part of a file's name, but cannot; rename the column")
    if name in (USER_ID, ITEM_ID, TIMESTAMP):
        raise InputError(f"schema.{group}: {name!r} is kept anyway; leave it out")
    if kind not in KINDS:
        hint = did_you_mean(str(kind), KINDS)
        raise InputError(f"schema.{group}.{name}={kind!r} must be one of {', '.join(KINDS)}{hint}")
    if (group, kind) == (EVENTS, CATEGORIES):
        raise InputError(
            f"schema.{group}.{name}={kind!r} is for items and users; an event has one value: {CATEGORICAL}, {NUMERIC} "
            f"or {VECTOR}"
        )


def file_names(group: str, name: str, kind: str) -> dict[str, str]:
    """Return the stems of the files of a column in a store, by the attribute of `Column` that each holds."""
    stem = f"{group}.{name}"
    names = {"values": stem}
    if kind in (CATEGORICAL, CATEGORIES):
        names["vocabulary"] = f"{stem}.vocabulary"
    if kind == CATEGORIES:
        names["offsets"] = f"{stem}.offsets"
    return names


def check_interactions(frame: pl.LazyFrame, origin: str) -> None:
    """Refuse a frame without the columns of an interaction frame.

    Raises:
        InputError: if a column is missing or has another type.
    """
    schema = {name: str(dtype) for name, dtype in frame.collect_schema().items()}
    for column in (USER_ID, ITEM_ID):
        if column not in schema:
            raise InputError(f"source {origin} yields no column {column!r}; it yields {', '.join(schema)}")
        if schema[column] not in ("Int64", "String"):
            raise InputError(f"source {origin}: {column} is {schema[column]}; it must be Int64 or String")
    if schema.get(TIMESTAMP, "Int64") != "Int64":
        raise InputError(f"source {origin}: {TIMESTAMP} is {schema[TIMESTAMP]}; it must be Int64")
