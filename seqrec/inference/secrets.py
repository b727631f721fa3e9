"""Tokens and passwords: from files that others cannot read, or from the environment, and hidden in messages."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from seqrec.data.user_files import read_text, refuse_special
from seqrec.errors import InputError, MissingInputError

HIDDEN = "***"


def read_secret(path: str | None, name: str, variable: str) -> tuple[str, str] | None:
    """Return a secret and its source: a file, or else an environment variable; None if neither is set.

    Args:
        path: The file; None reads the variable.
        name: Name of the argument with the path, for errors.
        variable: Name of the variable.

    Raises:
        MissingInputError: if the file does not exist.
        InputError: if every user of the machine can read the file.
    """
    if path is None:
        return (os.environ[variable].strip(), variable) if variable in os.environ else None
    refuse_special(path, f"{name}={path}")
    if not Path(path).is_file():
        raise MissingInputError(f"{name}={path} does not exist")
    mode = Path(path).stat().st_mode
    if mode & stat.S_IROTH:
        raise InputError(
            f"{name}={path} can be read by every user of this machine (mode {stat.S_IMODE(mode):o}): chmod 600 {path}"
        )
    return read_text(Path(path), f"{name}={path}").strip(), name


def without_password(url: str) -> str:
    """Return a URL for messages, with its password hidden."""
    url = re.sub(r"^(\w+:/{0,2}[^:@/]*):.*@", rf"\1:{HIDDEN}@", url)
    return re.sub(r"(?i)([?&]password=)[^&]*", rf"\1{HIDDEN}", url)
