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
