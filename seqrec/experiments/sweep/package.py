"""The package that sweeps need."""

from __future__ import annotations

import importlib
from typing import Any

from seqrec.errors import InputError


def optuna() -> Any:
    """The package.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module("optuna")
    except ImportError:
        raise InputError(
            'a sweep needs Optuna, which is not installed: pip install "seqrec[sweep]"'
        ) from None
