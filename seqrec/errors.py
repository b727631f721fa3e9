"""Errors that a user can fix: one line with the argument, file or row, the bad value and the fix.

The command line prints these without a traceback. Any other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class InputError(ValueError):
    """A bad value from outside: a config, an argument, a log.

    Example:
        >>> import seqrec
        >>> try:
        ...     seqrec.Adam(lr=0.0)
        ... except seqrec.InputError as error:
        ...     print(error)
        lr=0.0 must be above 0
    """


def check_at_least(least: float, **values: float | None) -> None:
    """Refuse the first of some named arguments that is None, below `least` or NaN.

    Raises:
        InputError: if there is one.
    """
    for name, value in values.items():
        if value is None:
            raise InputError(f"{name} is required: give a number of at least {least}")
        if not value >= least:
            raise InputError(f"{name}={value} must be at least {least}")


def first_difference(name: str, was: Any, now: Any) -> str:
    """Return the first setting that differs, for a message.

    Example:
        >>> first_difference("users", {"path": "a.csv", "item": "id"}, {"path": "b.csv", "item": "id"})
        "users.path='a.csv', now it is 'b.csv'"
    """
    if isinstance(was, dict) and isinstance(now, dict):
        others = (key for key in {*was, *now} if was.get(key) != now.get(key))
        key = min(others, key=lambda key: (isinstance(was.get(key), (dict, list)), key))
        return first_difference(f"{name}.{key}", was.get(key), now.get(key))
    nested = isinstance(was, (dict, list)) or isinstance(now, (dict, list))
    return f"other {name} than now" if nested else f"{name}={was!r}, now it is {now!r}"


class NothingToDrawError(InputError):
    """A user has seen every item that could be drawn; `users` are its places in the batch."""

    def __init__(self, message: str, users: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.users = tuple(users)


class MissingInputError(InputError, FileNotFoundError):
    """A file or folder that does not exist."""


class StoreError(InputError):
    """An event store that is damaged, of another version, or made with other settings."""


class DivergenceError(InputError):
    """A loss or weights that are not finite during training."""


class BatchEntryError(InputError):
    """A bad entry in a batch of events or requests; nothing of the batch has been processed.

    Args:
        message: The reason, which names the entry.
        index: Index of the entry in the batch, from 0.
    """

    def __init__(self, message: str, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


class UnknownUserError(BatchEntryError):
    """A user without any known event."""


class UnknownItemError(BatchEntryError):
    """An item that is not in the model's catalogue."""


class LateEventError(BatchEntryError):
    """An event with an earlier time than the user's newest."""


class SessionStoreError(StoreError):
    """A session store that is damaged, in use, unreachable, or of another model."""


class DamagedSessionError(BatchEntryError, SessionStoreError):
    """A session that cannot be read; sessions of other users can."""


class CheckpointError(InputError):
    """A checkpoint that cannot be written, or is damaged or incomplete."""


class LockedError(InputError):
    """A folder that is in use by another job."""


class StoppedError(SystemExit):
    """The end of a run that was asked to stop; `code` is the exit status, 128 + the signal's number, as in shells."""
