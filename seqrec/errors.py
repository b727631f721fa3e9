"""Errors that a user can mend: one line naming the argument, file or row, what was got and the fix.

The command line prints these without a traceback; every other exception is a bug of ours and keeps it.
"""


class InputError(ValueError):
    """A bad value that came from outside: a config, an argument, a log."""


class MissingInputError(InputError, FileNotFoundError):
    """A file or folder that should be there and is not."""


class StoreError(InputError):
    """An event store that is damaged, of another version, or made with other settings."""


class DivergenceError(InputError):
    """Training that gives numbers which are not finite."""


class BatchEntryError(InputError):
    """One entry of a batch of events or requests is bad; nothing of the batch has been done.

    Args:
        message: The reason, which names the entry.
        index: Its place in the batch, from 0.
    """

    def __init__(self, message: str, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


class UnknownUserError(BatchEntryError):
    """A user of whom no event is known."""


class UnknownItemError(BatchEntryError):
    """An item that is not in the model's catalogue."""


class LateEventError(BatchEntryError):
    """An event with an earlier time than the user's newest."""


class SessionStoreError(StoreError):
    """A store of sessions that is damaged, in use, out of reach, or of another model."""


class DamagedSessionError(BatchEntryError, SessionStoreError):
    """A session that cannot be read; those of other users can."""


class CheckpointError(InputError):
    """A checkpoint that cannot be written, or is not whole."""


class LockedError(InputError):
    """A folder that another job is working in."""


class StoppedError(SystemExit):
    """A run that was told to stop, and did; `code` is the exit status, 128 and the signal's number, as in shells."""
